"""Restores by an index of each shard's log, of real processes: where an operator learns them, and what comes back."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

import needle
from harness.calm import CALM
from needle import backup as backups
from needle.backup.archiving import Archiver
from needle.base.errors import InvalidArgument
from needle.base.instants import rfc3339
from needle.cli.app import main
from needle.local.process_cluster import ProcessCluster
from needle.routing.strategy import CONSISTENT_HASH

SETTINGS = {"sharding": {"zone": "a"}, **CALM}


async def contents(client: needle.Client) -> dict[str, tuple[list[float], int]]:
    return {one.id: (one.vector.tolist(), one.version) async for one in client.scan(with_vectors=True)}


async def wrote(client: needle.Client, number: int) -> None:
    for n in range(20):
        await client.insert(f"d{n}", [float(n), float(number)])


async def test_two_shards_come_back_by_their_indexes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target, store = str(tmp_path / "target"), backups.open_store(str(tmp_path / "target"))

    async def said(*words: str, expect: int = 0) -> str:
        capsys.readouterr()
        code = await asyncio.to_thread(main, list(words))
        captured = capsys.readouterr()
        assert code == expect, f"{words}: {code} {captured.out}{captured.err}"
        return captured.out + captured.err

    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    async with ProcessCluster(tmp_path / "first", 1, **SETTINGS) as first:
        await first.create(2, 1, CONSISTENT_HASH)
        async with first.connect() as client:
            await client.create_collection("default", dimensions=2, metric="l2")
            archiver = Archiver(client, store)
            await archiver.look(flush=True)
            await wrote(client, 1)
            before, instant = await contents(client), int(time.time() * 1e6)
            await asyncio.sleep(0.01)
            last = [await client.insert(f"d{n}", [0.0, 2.0]) for n in range(20)]
            await archiver.look(flush=True)
            await archiver.close()
            after = await contents(client)
    [archived] = json.loads(await said("backup", "list", target, "--json"))["archives"]
    ends = {int(shard): index for shard, (_, index) in archived["indexes"].items()}
    assert {first for first, _ in archived["indexes"].values()} == {0} and max(ends.values()) >= last[-1].index
    listed = await said("backup", "list", target)
    assert all(f"shard {shard}: index 0 to {index}" in listed for shard, index in ends.items())

    options = (await said("backup", "list", target, "--at", rfc3339(instant))).split()
    there = json.loads(await said("backup", "list", target, "--at", rfc3339(instant), "--json"))["indexes"]
    assert options == [word for shard, index in there.items() for word in ("--index", f"{shard}:{index}")]
    assert all(0 < index < ends[int(shard)] for shard, index in there.items()) and set(there) == {"0", "1"}
    assert "until then the catalog is archived" in await said(
        "backup", "list", target, "--at", "2999-01-01T00:00:00Z", expect=1
    )

    async with ProcessCluster(tmp_path / "second", 1, **SETTINGS) as second:
        await second.create(3, 1, CONSISTENT_HASH)
        monkeypatch.setenv("NEEDLE_CLUSTER", second.cluster)
        async with second.connect() as client:
            told = await said("restore", target, *options, "--timeout", "60")
            assert "20 documents" in told
            assert {name: one for name, (one, _) in (await contents(client)).items()} == {
                name: one for name, (one, _) in before.items()
            }
            await client.drop_collection("default")
            mixed = {0: int(there["0"]), 1: ends[1]}
            done = await backups.restore_at(client, store, indexes=mixed)
            assert done.documents == 20
            found = {name: one for name, (one, _) in (await contents(client)).items()}
            assert all(found[name] in (before[name][0], after[name][0]) for name in found)
            assert found not in ({name: one for name, (one, _) in some.items()} for some in (before, after))
            await client.drop_collection("default")
            assert "one index for each of the shards [0, 1]" in await said(
                "restore", target, "--index", f"0:{ends[0]}", expect=1
            )
            with pytest.raises(InvalidArgument, match=f"at most {ends[1]}"):
                await backups.restore_at(client, store, indexes={0: ends[0], 1: ends[1] + 1})
            assert [spec.name for spec in await client.collections()] == [], "nothing was changed"
