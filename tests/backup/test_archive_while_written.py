"""The archive of real processes, while documents are written and deleted, leaders are killed, a shard is added and the
archiver is killed: of each instant comes back what was acknowledged before it, and nothing that was asked for after."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import time
from pathlib import Path

import needle
from needle import backup as backups
from needle.backup.archive_reading import chosen, read_head
from needle.backup.archiving import Archiver
from needle.backup.instant import Making
from needle.backup.keeping import read_manifest, read_piece
from needle.backup.store import Store
from needle.base.errors import NeedleError
from needle.local.process_cluster import ProcessCluster
from needle.routing.strategy import CONSISTENT_HASH

SETTINGS = {"sharding": {"zone": "a"}, "election_timeout": 0.5, "heartbeat_interval": 0.1}
WRITERS = 3
IDS = 40
CLOCK_SECONDS = 0.002
"""Two processes of a machine read one clock; the leader reads it a little before it proposes."""


class Writers:
    """Each writes its own ids, one number higher each time; every fourth write deletes. asked, done: of each id, when
    each of its numbers was asked for, and acknowledged."""

    def __init__(self, client: needle.Client) -> None:
        self._client = client
        self.asked: dict[str, list[tuple[float, int]]] = {}
        self.done: dict[str, list[tuple[float, int]]] = {}
        self.deletes: set[tuple[str, int]] = set()

    async def run(self, writer: int) -> None:
        number = 0
        while True:
            for n in range(IDS):
                name = f"w{writer}-{n}"
                number += 1
                if number % 4 == 0:
                    self.deletes.add((name, number))
                self.asked.setdefault(name, []).append((time.time(), number))
                with contextlib.suppress(NeedleError):
                    if number % 4 == 0:
                        await self._client.delete([name], timeout=10)
                    else:
                        await self._client.insert(name, [float(number), 1.0], {"n": number}, timeout=10)
                    self.done.setdefault(name, []).append((time.time(), number))

    def judge(self, at: float, found: dict[str, int]) -> None:
        """Is this what there may have been then?"""
        for name, asked in self.asked.items():
            done = self.done.get(name, [])
            before = bisect.bisect_left(done, (at - CLOCK_SECONDS, 0))
            least = done[before - 1][1] if before else 0
            most = max((number for when, number in asked if when < at + CLOCK_SECONDS), default=0)
            may = [number for _, number in asked if least <= number <= most]
            if name in found:
                assert found[name] in may, f"{name} is {found[name]}, not one of {may}"
            else:
                gone = any((name, number) in self.deletes for number in may)
                assert gone or not least, f"{name} is missing, and was {least} to {most}"


def held(store: Store, directory: Path, at: float) -> dict[str, int]:
    directory.mkdir()
    making = Making(store, directory)
    manifest = read_manifest(making.local, making.run(int(at * 1e6), {}, None))
    found: dict[str, int] = {}
    for ref in manifest.pieces():
        piece = read_piece(making.local, ref)
        for at_, name in enumerate(piece.ids):
            assert name not in found, f"{name} is there twice"
            found[name] = int(piece.metadata[at_].split(b":")[1].rstrip(b"}"))
    return found


async def archiving(client: needle.Client, store: Store) -> None:
    """Killed every second and a half; the next one goes on."""
    while True:
        task = asyncio.create_task(Archiver(client, store, every=0.3, base_every=4.0).run())
        await asyncio.sleep(1.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def settled(client: needle.Client) -> None:
    """No range moves any more."""
    while True:
        job = (await client.refresh_topology(confirmed=True, timeout=30)).rebalance
        if job is not None and job.over:
            return
        await asyncio.sleep(0.2)


async def test_each_instant_comes_back_as_it_was(tmp_path: Path) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    (tmp_path / "nodes").mkdir()
    async with ProcessCluster(tmp_path / "nodes", 3, **SETTINGS) as cluster:
        await cluster.create(2, 3, CONSISTENT_HASH)
        async with cluster.connect() as client, cluster.connect() as other:
            await client.create_collection("default", dimensions=2, metric="l2")
            writers = Writers(client)
            await Archiver(other, store).look(flush=True)
            began = time.time()
            tasks = [asyncio.create_task(writers.run(n)) for n in range(WRITERS)]
            tasks.append(asyncio.create_task(archiving(other, store)))
            try:
                await asyncio.sleep(1)
                await client.add_shard(timeout=60)
                victim = await client.leader(0, timeout=30) or "node-1"
                cluster.kill(victim)
                await asyncio.sleep(2)
                cluster.restart(victim)
                await settled(client)
                await client.add_shard(timeout=60)
                await settled(client)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            ended = time.time()
            last = Archiver(other, store)
            while min(until for _, until in read_head(store, chosen(store, None)).shards.values()) < ended * 1e6:
                await last.look(flush=True)
    assert backups.verify(store).problems == []
    (told,) = backups.list_archives(store)
    assert told.gaps == [] and told.shards == 4
    moments = [began + (ended - began) * n / 12 for n in range(13)]
    for n, at in enumerate(moments):
        writers.judge(at, await asyncio.to_thread(held, store, tmp_path / f"at-{n}", at))
    assert sum(map(len, writers.done.values())) > WRITERS * IDS
