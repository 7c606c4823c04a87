"""`python -m proof.restore_drill [--minutes 3] [--seed 1]`: do backups and the archive bring back what there was?

Documents are written and deleted on real processes, while backups are made every 30 seconds, the logs are archived by a
archiver that is broken off again and again, nodes are killed, leaders step down, shards come and go. Then each backup,
and the archive at many instants, is taken out and judged by a model: of each document there is a state that was
acknowledged before, or was under way then; nothing that was asked for later, and no id twice.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import needle
from needle import backup as backups
from needle.backup.archive_reading import chosen, read_head
from needle.backup.archiving import Archiver
from needle.backup.instant import Making
from needle.backup.keeping import read_manifest, read_piece
from needle.backup.store import Store
from needle.base.errors import NeedleError
from needle.base.instants import micros, rfc3339
from needle.local.process_cluster import ProcessCluster
from needle.routing.strategy import CONSISTENT_HASH
from proof.checkers.violation import Violation

SETTINGS: dict[str, Any] = {"sharding": {"zone": "a"}, "election_timeout": 0.5, "heartbeat_interval": 0.1}
NODES = 3
WRITERS = 3
IDS = 40
CLOCK_SECONDS = 0.002
"""The processes of a machine read one clock; a leader reads it a little before it proposes."""
INSTANTS = 24
CALL_SECONDS = 30.0
Told = Callable[[str], None]


class Writers:
    """Each writes its own ids, one number higher each time; every fourth write deletes. asked, done: of each id, when
    each of its numbers was asked for, and acknowledged."""

    def __init__(self, client: needle.Client) -> None:
        self._client = client
        self.asked: dict[str, list[tuple[float, int]]] = {}
        self.done: dict[str, list[tuple[float, int]]] = {}
        self._deletes: set[tuple[str, int]] = set()

    async def run(self, writer: int) -> None:
        """Until it is cancelled."""
        number = 0
        while True:
            for n in range(IDS):
                name = f"w{writer}-{n}"
                number += 1
                if number % 4 == 0:
                    self._deletes.add((name, number))
                self.asked.setdefault(name, []).append((time.time(), number))
                with contextlib.suppress(NeedleError):
                    if number % 4 == 0:
                        await self._client.delete([name], timeout=10)
                    else:
                        await self._client.insert(name, [float(number), 1.0], {"n": number}, timeout=10)
                    self.done.setdefault(name, []).append((time.time(), number))

    def judge(self, what: str, since: float, until: float, found: dict[str, int]) -> None:
        """Is this what there may have been at some moment between the two? Each document for itself: two shards are cut
        at moments of their own. Raises Violation."""
        for name, asked in self.asked.items():
            done = self.done.get(name, [])
            before = bisect.bisect_left(done, (since - CLOCK_SECONDS, 0))
            least = done[before - 1][1] if before else 0
            most = max((number for when, number in asked if when < until + CLOCK_SECONDS), default=0)
            may = [number for _, number in asked if least <= number <= most]
            if name in found:
                if found[name] not in may:
                    raise Violation("restore", f"{what}: {name} is {found[name]}, not one of {may}")
            elif least and not any((name, number) in self._deletes for number in may):
                raise Violation("restore", f"{what}: {name} is missing, and was {least} to {most}")
        if strange := set(found) - set(self.asked):
            raise Violation("restore", f"{what}: nobody wrote {sorted(strange)[:3]}")


def held(store: Store, backup: str) -> dict[str, int]:
    """The number of each id in a backup. Raises Violation if one is there twice."""
    found: dict[str, int] = {}
    for ref in read_manifest(store, backup).pieces():
        piece = read_piece(store, ref)
        for at, name in enumerate(piece.ids):
            if name in found:
                raise Violation("restore", f"{backup}: {name} is there twice")
            found[name] = int(piece.metadata[at].split(b":")[1].rstrip(b"}"))
    return found


class Drill:
    """See the module. seconds: how long faults last. every: seconds between backups."""

    def __init__(self, directory: Path, seconds: float, every: float, seed: int, told: Told = lambda _: None) -> None:
        self._directory, self._seconds, self._every, self._told = directory, seconds, every, told
        self._rng = random.Random(seed)
        self._store = backups.open_store(str(directory / "target"))
        self.faults: list[str] = []
        self.backups: list[str] = []

    async def run(self) -> str:
        """What was done, in a line. Raises Violation."""
        (self._directory / "nodes").mkdir()
        async with ProcessCluster(self._directory / "nodes", NODES, **SETTINGS) as cluster:
            await cluster.create(2, NODES, CONSISTENT_HASH)
            async with cluster.connect() as client, cluster.connect() as other:
                await client.create_collection("default", dimensions=2, metric="l2")
                writers = Writers(client)
                await Archiver(other, self._store).look(flush=True)
                began = time.time()
                work = [*(writers.run(n) for n in range(WRITERS)), self._archive(other), self._back_up(other)]
                tasks = [asyncio.create_task(one) for one in work]
                try:
                    await self._disturb(cluster, client, began + self._seconds)
                finally:
                    for task in tasks:
                        task.cancel()
                    done = await asyncio.gather(*tasks, return_exceptions=True)
                for one in done:
                    if isinstance(one, Exception):  # it went on without what had failed
                        raise one
                ended = time.time()
                await self._archived_until(other, ended)
        return await asyncio.to_thread(self._judge, writers, began, ended)

    # --- what goes on ------------------------------------------------------------------------------------------------
    async def _archive(self, client: needle.Client) -> None:
        """Killed every few seconds; the next one goes on."""
        while True:
            task = asyncio.create_task(Archiver(client, self._store, every=0.3, base_every=4.0).run())
            try:
                await asyncio.wait([task], timeout=self._rng.uniform(0.5, 3.0))
                if task.done():  # nobody killed it
                    task.result()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _back_up(self, client: needle.Client) -> None:
        while True:
            with contextlib.suppress(NeedleError):  # the majority may be away for a while
                made = await backups.create(client, self._store, timeout=CALL_SECONDS)
                self.backups.append(made.manifest.id)
            await asyncio.sleep(self._every)

    async def _disturb(self, cluster: ProcessCluster, client: needle.Client, until: float) -> None:
        """One fault after the other; a rebalance goes on beside them."""
        grows = True
        while time.time() < until or "kill" not in self.faults:
            job = (await client.refresh_topology(confirmed=True, timeout=CALL_SECONDS)).rebalance
            if job is None or job.over:
                serving = len(client.topology().serving)
                grows = serving < 3 or (grows and serving < 5)
                if grows:
                    await client.add_shard(timeout=CALL_SECONDS)
                else:
                    await client.remove_shard(client.topology().serving[-1].shard, timeout=CALL_SECONDS)
                self.faults.append("grow" if grows else "shrink")
            fault = self._rng.choice(("kill", "kill", "step-down"))
            with contextlib.suppress(NeedleError):
                if fault == "kill":
                    victim = await client.leader(0, timeout=CALL_SECONDS) or "node-1"
                    cluster.kill(victim)
                    await asyncio.sleep(self._rng.uniform(0.2, 2.0))
                    cluster.restart(victim)
                else:
                    await client.step_down(shard=0, timeout=CALL_SECONDS)
            self.faults.append(fault)
            await asyncio.sleep(self._rng.uniform(0.5, 2.0))
        await self._settled(client)

    async def _settled(self, client: needle.Client) -> None:
        while True:
            job = (await client.refresh_topology(confirmed=True, timeout=CALL_SECONDS)).rebalance
            if job is None or job.over:
                return
            await asyncio.sleep(0.2)

    async def _archived_until(self, client: needle.Client, ended: float) -> None:
        last = Archiver(client, self._store)
        shards = [info.shard for info in client.topology().serving]
        while True:
            await last.look(flush=True)
            head = read_head(self._store, chosen(self._store, None)).shards
            if all(head.get(shard, (0, 0))[1] >= ended * 1e6 for shard in shards):
                return

    # --- what comes back ---------------------------------------------------------------------------------------------
    def _judge(self, writers: Writers, began: float, ended: float) -> str:
        store = self._store
        if problems := backups.verify(store).problems:
            raise Violation("restore", problems[0])
        (archived,) = backups.list_archives(store)
        for backup in self.backups:
            manifest = read_manifest(store, backup)
            since, until = ((micros(text) or 0) / 1e6 for text in (manifest.began, manifest.ended))
            writers.judge(f"backup {backup}", since, until, held(store, backup))
        moments = [began + (ended - began) * n / (INSTANTS - 1) for n in range(INSTANTS)]
        documents = 0
        for at in moments:
            with tempfile.TemporaryDirectory(dir=self._directory) as scratch:
                making = Making(store, Path(scratch))
                found = held(making.local, making.run(int(at * 1e6), {}, None))
            writers.judge(f"the archive at {rfc3339(int(at * 1e6))}", at, at, found)
            documents += len(found)
        if archived.gaps:
            raise Violation("restore", archived.gaps[0])
        counts = {fault: self.faults.count(fault) for fault in sorted(set(self.faults))}
        return (
            f"{len(self.backups)} backups and {len(moments)} instants of {archived.shards} shards as the model says, "
            f"{sum(map(len, writers.done.values()))} writes, {documents} documents restored; "
            + ", ".join(f"{name} {times}" for name, times in counts.items())
        )


def main(arguments: list[str] | None = None) -> int:
    """0 if all that came back was right."""
    parser = argparse.ArgumentParser(prog="python -m proof.restore_drill", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between backups")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="needle-drill-") as directory:
        drill = Drill(Path(directory), options.minutes * 60, options.every, options.seed)
        try:
            sys.stdout.write(asyncio.run(drill.run()) + "\n")
        except Violation as violation:
            sys.stdout.write(f"VIOLATION {violation}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
