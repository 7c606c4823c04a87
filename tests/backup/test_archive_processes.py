"""`needle backup archive` as processes: it waits for nodes and for its target in clear words, and two of them at one
target do no harm."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import needle
from harness.calm import CALM
from needle import backup as backups
from needle.base.instants import micros
from needle.connecting import Credentials, connected
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.routing.strategy import CONSISTENT_HASH


@contextmanager
def archiver(target: Path, cluster: str, said: Path, key: str = "") -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", "needle", "backup", "archive", str(target), "--cluster", cluster, "--every", "0.5"]
    with said.open("wb") as err:
        process = subprocess.Popen(words, stderr=err, env={**os.environ, "NEEDLE_API_KEY": key})
        try:
            yield process
        finally:
            process.kill()
            process.wait(30)


async def says(said: Path, words: str, times: int = 1) -> None:
    await wait_for(lambda: said.read_text().count(words) >= times, 60, repr(words))


async def is_archived(target: Path) -> None:
    """Until what was written before is at the target."""
    now = time.time() * 1e6

    def there() -> bool:
        archives = backups.list_archives(backups.open_store(str(target)))
        return bool(archives) and (micros(archives[0].until) or 0) > now

    await wait_for(lambda: asyncio.to_thread(there), 60, "the archive")


async def write(client: needle.Client, n: int) -> None:
    await client.insert_batch(ids=[f"{n}-{m}" for m in range(20)], vectors=[[n, m + 1] for m in range(20)])


async def test_it_waits_for_nodes_and_its_target_and_another_may_run(tmp_path: Path) -> None:
    target, away, said, other = (tmp_path / name for name in ("target", "away", "said", "other"))
    (tmp_path / "nodes").mkdir()
    async with ProcessCluster(tmp_path / "nodes", 1, sharding={"zone": "a"}, **CALM) as cluster:
        await cluster.create(1, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            await client.create_collection("default", dimensions=2)
            await write(client, 0)
        cluster.kill("node-1")
        with archiver(target, cluster.cluster, said) as first:
            await says(said, "waiting for the cluster: no node of the cluster can be reached")
            assert first.poll() is None
            cluster.restart("node-1")
            await cluster.ready()
            await is_archived(target)
            async with cluster.connect() as client:
                target.rename(away)
                target.write_text("in its place")
                await write(client, 1)
                await says(said, "the archive waits, and tries again each second: ")
                assert str(target) in said.read_text() and first.poll() is None
                target.unlink()
                away.rename(target)
                await says(said, "the archive goes on")
                await is_archived(target)
                with archiver(target, cluster.cluster, other) as second:
                    await says(other, "archiving the logs")
                    await write(client, 2)
                    await is_archived(target)
                    first.kill()
                    first.wait(30)
                    await write(client, 3)
                    await is_archived(target)
                    second.send_signal(signal.SIGTERM)
                    assert await asyncio.to_thread(second.wait, 60) == 0
        assert said.read_text().count("the archive waits") == 1, "not each second"
        assert "stopped" in other.read_text() and "Traceback" not in said.read_text() + other.read_text()
    store = backups.open_store(str(target))
    found = backups.verify(store)
    assert found.problems == [] and found.compared[0].proven == found.compared[0].last > 0
    assert backups.list_archives(store)[0].gaps == []


async def test_it_ends_where_its_key_is_refused(tmp_path: Path) -> None:
    closed = {"require_keys": True, "cluster_secret": "s" * 40, "sharding": {"shards": 1, "replicas": 1}, **CALM}
    async with ProcessCluster(tmp_path, 1, **closed) as cluster:
        async with await connected(
            list(cluster.addresses.values()), "needle", 1 << 20, Credentials(secrets=("s" * 40,))
        ) as inside:
            reader = (await inside.create_key("some", "reader")).key
        for key, code in (("not-a-key", "unauthenticated"), (reader, "forbidden")):
            said = tmp_path / code
            with archiver(tmp_path / "target", cluster.cluster, said, key) as process:
                assert await asyncio.to_thread(process.wait, 60) == 1
            assert code in said.read_text() and "Traceback" not in said.read_text()
