"""The drill itself: faults, backups and the archive beside them, then what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import needle
from needle import backup as backups
from needle.backup.archive_looking import Archived, Look
from needle.backup.archive_reading import chosen, read_head
from needle.backup.archiving import Archiver
from needle.backup.instant import Making
from needle.backup.keeping import MAKING, read_manifest
from needle.base.errors import InvalidArgument, NeedleError, StorageError, Unavailable
from needle.base.instants import micros, rfc3339
from needle.local.process_cluster import ProcessCluster
from needle.routing.strategy import CONSISTENT_HASH
from needle.routing.topology import Topology
from proof.checkers.violation import Violation
from proof.operator import Operator
from proof.restore_drill.model import Found, Key, Writers, held
from proof.restore_drill.returns import SETTINGS, Returning, Shape

NODES = 4
REPLICAS = 3
WRITERS = 3
FOUNDED = 2
SHARDS_MAX = 1000
"""More than a drill makes."""
CALL_SECONDS = 30.0
LOOK_SECONDS = 0.02
ARCHIVED_SECONDS = 0.2
"""Between two looks whether something was archived."""
END_SECONDS = 300.0
"""After the faults: a backup that never succeeds, or a cluster that never settles, is a fault of its own."""
REFUSED_SECONDS = 30
"""Within so long of an instant that is refused there is one that is not."""
SLOW_MEGABYTES = 0.002
"""A second: at this rate a backup that is to be killed reads for some seconds."""
SEEN = {"kill", "grow", "move", "backup killed", "archiver killed"}
"""Without each of these it is no drill."""
Told = Callable[[str], None]


class Plan(NamedTuple):
    """seconds: how long faults last. every: seconds between backups. instants: of the archive, that are taken out.
    shapes: of the clusters that something is restored into."""

    seconds: float
    every: float
    instants: int
    shapes: tuple[Shape, ...]


LONG = Plan(180.0, 30.0, 24, (Shape(1, 1, 6), Shape(3, 2, 6), Shape(2, 5, 6)))
SHORT = Plan(10.0, 2.0, 6, (Shape(1, 3, 1),))


class Drill:
    """See the package. directory: of this drill alone."""

    def __init__(self, directory: Path, plan: Plan, seed: int, told: Told = lambda _: None) -> None:
        self._directory, self._plan, self._told = directory, plan, told
        self._rng = random.Random(seed)
        self._target = str(directory / "target")
        self._store = backups.open_store(self._target)
        self.faults: list[str] = []
        self.backups: list[str] = []
        self.refused = 0
        self._grows = True

    async def run(self) -> str:
        """What was done, in a line. Raises Violation."""
        (self._directory / "nodes").mkdir()
        async with ProcessCluster(self._directory / "nodes", NODES, **SETTINGS) as cluster:
            await cluster.create(FOUNDED, REPLICAS, CONSISTENT_HASH)
            operator = Operator({"NEEDLE_CLUSTER": cluster.cluster})
            async with cluster.connect() as client, cluster.connect() as other:
                writers = Writers(client)
                await writers.begin()
                await Archiver(other, self._store).look(flush=True)
                began = time.time()
                work = [*(writers.run(n) for n in range(WRITERS)), self._archive(operator), self._back_up(operator)]
                tasks = [asyncio.create_task(one) for one in work]
                try:
                    async with _within(self._plan.seconds + END_SECONDS, "what has to be seen"):
                        await self._disturb(cluster, client, began + self._plan.seconds)
                finally:
                    for task in tasks:
                        task.cancel()
                    done = await asyncio.gather(*tasks, return_exceptions=True)
                for one in done:
                    if isinstance(one, Exception):  # it went on without what had failed
                        raise one
                ended = time.time()
                async with _within(END_SECONDS, "the archive"):
                    await self._archived_until(other, ended)
        told = await asyncio.to_thread(self._judge, writers, began, ended)
        self._told(told)
        return told + await self._returned(writers, began, ended)

    # --- what goes on ------------------------------------------------------------------------------------------------
    async def _archive(self, operator: Operator) -> None:
        """Killed with -9 again and again; the next one goes on. It never ends by itself: where no node answers it
        waits. Every second one is killed only when it has archived something: on a slow machine none came to that, and
        once replicas have moved nobody has the entries any more."""
        for number in itertools.count():
            before = self._archived()
            process = operator.popen("backup", "archive", self._target, "--every", "0.5", "--base-hours", "0.01")
            with _killed_at_the_end(process):
                ended = await _ended(process, self._rng.uniform(2.0, 8.0))
                deadline = time.monotonic() + END_SECONDS
                while not ended and number % 2 == 0 and self._archived() == before and time.monotonic() < deadline:
                    ended = await _ended(process, ARCHIVED_SECONDS)
                if ended:
                    out, err = process.communicate()
                    raise Violation("restore", f"the archiver ended by itself: {out}{err}")
                self.faults.append("archiver killed")

    def _archived(self) -> int:
        """The clock up to which there is an archive; 0 without one."""
        with contextlib.suppress(InvalidArgument, StorageError):
            return read_head(self._store, chosen(self._store, None)).at
        return 0

    async def _back_up(self, operator: Operator) -> None:
        """Every second one is killed with -9 while it reads, and one is made right behind it."""
        while True:
            if len(self.backups) % 2:
                await self._broken_off(operator)
            process = operator.popen("backup", "create", self._target, "--timeout", f"{CALL_SECONDS:g}", "--json")
            with _killed_at_the_end(process):
                out, err = await _said(process)
                if process.returncode == 0:
                    self.backups.append(json.loads(out.splitlines()[0])["backup"])
                elif process.returncode == 1:  # the majority may be away for a while
                    self._told(f"no backup: {err.strip()}")
                else:
                    raise Violation("restore", f"needle backup create ended with {process.returncode}: {err}")
            await asyncio.sleep(self._plan.every)

    async def _broken_off(self, operator: Operator) -> None:
        marks = self._store.names(MAKING).keys()
        process = operator.popen("backup", "create", self._target, "--rate", str(SLOW_MEGABYTES))
        deadline = time.monotonic() + CALL_SECONDS
        with _killed_at_the_end(process):
            while not (self._store.names(MAKING).keys() - marks) and time.monotonic() < deadline:
                if await _ended(process, LOOK_SECONDS):
                    return  # it could not begin
            if not await _ended(process, self._rng.uniform(0.0, 0.5)):
                self.faults.append("backup killed")

    async def _disturb(self, cluster: ProcessCluster, client: needle.Client, until: float) -> None:
        """One fault after the other; a rebalance goes on beside them. Until what has to be seen was seen."""
        while time.time() < until or not set(self.faults) >= SEEN or len(self.backups) < 2:
            now = await client.refresh_topology(confirmed=True, timeout=CALL_SECONDS)
            if now.rebalance is None or now.rebalance.over:
                await self._rearrange(cluster, client, now)
            fault = self._rng.choice(("kill", "kill", "kill all", "step-down"))
            with contextlib.suppress(NeedleError):
                if fault == "step-down":
                    await client.step_down(shard=0, timeout=CALL_SECONDS)
                else:
                    leader = await client.leader(0, timeout=CALL_SECONDS) or "node-1"
                    victims = [leader] if fault == "kill" else list(cluster.nodes)
                    cluster.kill(*victims)
                    await asyncio.sleep(self._rng.uniform(0.2, 2.0))
                    for victim in victims:
                        cluster.restart(victim)
            self.faults.append(fault)
            await asyncio.sleep(self._rng.uniform(0.5, 2.0))
        await self._settled(client)

    async def _rearrange(self, cluster: ProcessCluster, client: needle.Client, now: Topology) -> None:
        """In turn a shard comes or goes, and a replica moves to the node that has none of its shard: of the shards that
        were there from the start, as a new one may lose entries to a leader that came by a snapshot (_judge_gaps)."""
        founded = [info for info in now.serving if info.shard < FOUNDED]
        if founded and self.faults.count("move") < self.faults.count("grow") + self.faults.count("shrink"):
            shard = self._rng.choice(founded)
            free = sorted(set(cluster.nodes) - set(shard.replicas))
            with contextlib.suppress(Unavailable):  # a node that was killed is not up again: the next time
                if free:
                    await client.move_replica(
                        shard.shard, self._rng.choice(sorted(shard.replicas)), free[0], timeout=CALL_SECONDS
                    )
                self.faults.append("move")
            return
        self._grows = len(now.serving) < 3 or (self._grows and len(now.serving) < 5)
        if self._grows:
            await client.add_shard(timeout=CALL_SECONDS)
        else:
            await client.remove_shard(now.serving[-1].shard, timeout=CALL_SECONDS)
        self.faults.append("grow" if self._grows else "shrink")

    async def _settled(self, client: needle.Client) -> None:
        while True:
            job = (await client.refresh_topology(confirmed=True, timeout=CALL_SECONDS)).rebalance
            if job is None or job.over:
                return
            await asyncio.sleep(0.2)

    async def _archived_until(self, client: needle.Client, ended: float) -> None:
        """Of the shards that there are now: the client knows of one that has just gone only once it has looked."""
        last, behind = Archiver(client, self._store), {}
        try:
            while True:
                await last.look(flush=True)
                head = read_head(self._store, chosen(self._store, None)).shards
                known = {info.shard: head.get(info.shard, (0, 0)) for info in client.topology().serving}
                behind = {shard: said for shard, said in known.items() if said[1] < ended * 1e6}
                if not behind:
                    return
        finally:
            if behind:
                self._told(f"archived until {rfc3339(int(ended * 1e6))}, but for (shard: entry, clock) {behind}")
            await last.close()

    # --- what comes back ---------------------------------------------------------------------------------------------
    def _judge(self, writers: Writers, began: float, ended: float) -> str:
        store = self._store
        if problems := backups.verify(store).problems:
            raise Violation("restore", problems[0])
        (archived,) = backups.list_archives(store)
        for backup in self.backups:
            writers.judge(f"backup {backup}", *self._span(backup), held(store, backup))
        count = self._plan.instants
        documents = 0
        for wanted in [began + (ended - began) * n / (count - 1) for n in range(count)]:
            at, found = self._taken_out(wanted, began, ended)
            writers.judge(f"the archive at {rfc3339(int(at * 1e6))}", at, at, found)
            documents += len(found)
        self._judge_gaps(archived)
        counts = {fault: self.faults.count(fault) for fault in sorted(set(self.faults))}
        return (
            f"{len(self.backups)} backups and {count} instants of {archived.shards} shards as the model says, "
            f"{self.refused} refused, {len(archived.gaps)} gaps told, "
            f"{sum(map(len, writers.done.values()))} writes, {documents} documents restored; "
            + ", ".join(f"{name} {times}" for name, times in counts.items())
        )

    def _judge_gaps(self, archived: Archived) -> None:
        """None of the shards that were there from the start. One that came while no archiver ran may lack
        its first entries, if its leader had a snapshot, and one that went the last ones: that is told, and such
        instants are refused."""
        look = self._look(archived)
        found = [look.missing.get(shard, []) for shard in range(SHARDS_MAX)]
        lost = [f"shard {shard}: {gap}" for shard, gaps in enumerate(found) for gap in gaps[shard >= FOUNDED :]]
        if lost or len(archived.gaps) > sum(map(len, found)) + len(look.unended):
            raise Violation("restore", "; ".join(lost or archived.gaps))

    def _look(self, archived: Archived) -> Look:
        return Look(self._store, int(archived.cluster, 16))

    def _near(self, wanted: float, began: float, ended: float) -> Iterator[float]:
        """An instant and those up to REFUSED_SECONDS from it, the nearest ones first; what cannot be had for want of
        the end of a shard's log is not one of them."""
        (archived,) = backups.list_archives(self._store)
        gaps = [(since / 1e6, until / 1e6) for _, since, until in self._look(archived).unended]
        places = (wanted + sign * n for n in range(int(ended - began) + 1) for sign in ((1, -1) if n else (1,)))
        whole = (at for at in places if began <= at <= ended and not any(since < at < until for since, until in gaps))
        return itertools.islice(whole, 2 * REFUSED_SECONDS)

    def _taken_out(self, wanted: float, began: float, ended: float) -> tuple[float, dict[Key, Found]]:
        """What the archive has at an instant: this one, or one some seconds from it, where it is refused because a
        range of keys was just on its way, or a new shard's first entries were cut before anybody archived them (see
        _judge_gaps). Raises Violation if none of those is to be had."""
        for at in self._near(wanted, began, ended):
            with tempfile.TemporaryDirectory(dir=self._directory) as scratch:
                making = Making(self._store, Path(scratch))
                try:
                    return at, held(making.local, making.run(int(at * 1e6), {}, None))
                except (StorageError, InvalidArgument) as error:
                    self._told(f"{rfc3339(int(at * 1e6))} is refused: {error.message}")
                    self.refused += 1
        raise Violation(
            "restore", f"no instant of the {REFUSED_SECONDS} s at {rfc3339(int(wanted * 1e6))} is to be had"
        )

    def _span(self, backup: str) -> tuple[float, float]:
        """When it began and ended, in seconds since 1970."""
        manifest = read_manifest(self._store, backup)
        return (micros(manifest.began) or 0) / 1e6, (micros(manifest.ended) or 0) / 1e6

    async def _returned(self, writers: Writers, began: float, ended: float) -> str:
        """Restores into running clusters; "" if the plan has none."""
        returning = Returning(self._directory, self._target, self._rng)
        for shape in self._plan.shapes:
            instants = [
                self._taken_out(self._rng.uniform(began, ended), began, ended)[0] for _ in range(shape.instants)
            ]
            backup = self._rng.choice(self.backups)
            moments: dict[str, tuple[float, float]] = {
                **{f"--at {rfc3339(int(at * 1e6))}": (at, at) for at in instants},
                f"--backup {backup}": self._span(backup),
            }
            async for words, found in returning.into(shape, list(moments)):
                writers.judge(f"needle restore {words} into {shape}", *moments[words], found)
        return returning.told()


@contextlib.asynccontextmanager
async def _within(seconds: float, what: str) -> AsyncIterator[None]:
    """Raises Violation if it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise Violation("restore", f"{what} has not come about within {seconds:g} s") from error


@contextlib.contextmanager
def _killed_at_the_end(process: subprocess.Popen[Any]) -> Iterator[None]:
    """A process that does not outlive this."""
    try:
        yield
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


async def _said(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it writes until its end; it is killed if nobody waits for that any more."""
    task = asyncio.ensure_future(asyncio.to_thread(process.communicate))
    try:
        return await asyncio.shield(task)
    finally:
        process.kill()
        await asyncio.wait([task])


async def _ended(process: subprocess.Popen[Any], seconds: float) -> bool:
    """Whether it ends by itself within so long."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        await asyncio.to_thread(process.wait, seconds)
    return process.poll() is not None
