"""Backups that are made while documents are written, a leader is killed and ranges move: none misses a write that was
acknowledged before it began, none has one that was not asked for before it ended."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import needle
from harness.calm import CALM
from needle import backup as backups
from needle.backup.keeping import read_piece
from needle.backup.store import Store
from needle.base.errors import NeedleError
from needle.local.process_cluster import ProcessCluster
from needle.routing.strategy import CONSISTENT_HASH

SETTINGS = {"sharding": {"zone": "a"}, **CALM}
WRITERS = 4
IDS = 25
BACKUPS_MIN = 6


class Writers:
    """Each writes its own ids, one number higher each time. asked, acknowledged: the last number of an id."""

    def __init__(self, client: needle.Client) -> None:
        self._client = client
        self.asked: dict[str, int] = {}
        self.acknowledged: dict[str, int] = {}

    async def run(self, writer: int) -> None:
        number = 0
        while True:
            for n in range(IDS):
                name = f"w{writer}-{n}"
                number += 1
                self.asked[name] = number
                with contextlib.suppress(NeedleError):
                    await self._client.insert(name, [float(number), *[1.0] * 7], {"n": number}, timeout=5)
                    self.acknowledged[name] = number


def held(store: Store, manifest: backups.Manifest) -> dict[str, int]:
    """The number of each id in a backup."""
    found: dict[str, int] = {}
    for ref in manifest.pieces():
        piece = read_piece(store, ref)
        for at, name in enumerate(piece.ids):
            assert name not in found, f"{name} is there twice"
            found[name] = int(piece.metadata[at].split(b":")[1].rstrip(b"}"))
    return found


async def test_no_acknowledged_write_is_missing(tmp_path: Path) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    (tmp_path / "nodes").mkdir()
    async with ProcessCluster(tmp_path / "nodes", 3, **SETTINGS) as cluster:
        await cluster.create(2, 3, CONSISTENT_HASH)
        async with cluster.connect() as client, cluster.connect() as other:
            await client.create_collection("default", dimensions=8, metric="l2")
            writers = Writers(client)
            tasks = [asyncio.create_task(writers.run(n)) for n in range(WRITERS)]
            try:
                n, shards = 0, 2
                while n < BACKUPS_MIN or shards < 3:  # the test's own time is the bound
                    if n == 1:
                        await other.add_shard(timeout=30)
                    if n == 3:
                        victim = await other.leader(0, timeout=30) or "node-1"
                        cluster.kill(victim)
                    if n == 4:
                        cluster.restart(victim)
                    before = dict(writers.acknowledged)
                    one = (await backups.create(other, store, timeout=60)).manifest
                    found, asked = held(store, one), dict(writers.asked)
                    for name, number in before.items():
                        assert found.get(name, 0) >= number, f"backup {n} misses {name}: {number}"
                    for name, number in found.items():
                        assert number <= asked[name]
                    assert one.documents == len(found)
                    n, shards = n + 1, len(one.collections[0].cuts)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            assert len(writers.acknowledged) == WRITERS * IDS
    assert backups.verify(store).problems == []
