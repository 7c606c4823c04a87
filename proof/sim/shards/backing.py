"""An operator who makes backups, archives the logs and prunes, while nodes die, ranges move and replicas are replaced.

The commands' own code runs in processes that are killed, at any moment or in the middle of a call of the store; the
next one goes on. The store refuses, breaks off, is away for a while, and does what it then does not say (target.py).
What a dead process left is cleared away as the manual says: an operator knows who is dead. What all of it is worth in
the end is judged by bringing_back.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, NamedTuple, TypeVar

from needle.backup import archive, create, prune, restore
from needle.backup.archive_reading import chosen, read_head
from needle.backup.archiving import Archiver
from needle.backup.around import Around
from needle.backup.keeping import MAKING, PRUNING, backup_ids
from needle.backup.one_collection import MARK
from needle.base.errors import (
    CollectionExists,
    CorruptBackup,
    DiskFull,
    NeedleError,
    OutcomeUnknown,
    RestoreDiffers,
    StorageError,
)
from needle.client.client import Client
from proof.checkers.violation import Violation
from proof.sim.machine import WALL_EPOCH, SimClock, SimPool, stream
from proof.sim.process import Process
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage
from proof.sim.target import SimTarget, Target
from proof.sim.workload import COLLECTION

NAME: Final = "backing"
CALL_SECONDS: Final = 5.0
REST_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 0.25
KILLED_SHARE, IN_A_CALL_SHARE, PRUNE_SHARE, SECOND_SHARE = 0.5, 0.5, 0.25, 0.3
CALLS_MAX: Final = 60
KEPT_SECONDS: Final = 25.0
"""Of the archive, where it is pruned."""
RESTORED: Final = "restored"
T = TypeVar("T")


class Made(NamedTuple):
    """A backup that is there whole. before: by shard, what was committed when it began. topologies: the catalog's, from
    then until it was there, by their places in all that there ever were."""

    before: dict[int, int]
    topologies: tuple[int, int]


class Machine(NamedTuple):
    """One process of the operator's, and what its command is handed."""

    process: Process
    client: Client
    store: SimTarget
    around: Around


class BackingUp:
    """See the module. broken: the violation it found. made: the whole backups that were not pruned. since: the instant
    (microseconds since 1970) before which the archive may be pruned."""

    def __init__(self, stage: Stage, connect: Callable[..., Client], truth: Truth) -> None:
        """connect: makes a client for a machine's name, what it knows, and a number."""
        self._stage, self._connect, self._truth = stage, connect, truth
        self._rng = stream(stage.spec.seed, NAME)
        self._machines = 0
        self.target = Target(stage.loop, stream(stage.spec.seed, NAME, "target"))
        stage.client_process(NAME)
        self.made: dict[str, Made] = {}
        self.since = 0
        self.killed = self.pruned = 0
        self.stopping = self._unclaimed = self._cut_off = False
        """Of restores: whether a collection is in the way that one may have made which was killed before it noted so,
        which nobody can tell from another's; and whether one was killed."""
        self.broken: Violation | None = None
        self._last: tuple[Machine, Archiver] | None = None

    async def run(self) -> None:
        """Until `stopping`."""
        self.since = int((WALL_EPOCH + self._stage.loop.time()) * 1e6)
        work = [self._archive("archiver"), self._back_up()]
        if self._rng.random() < SECOND_SHARE:
            work.append(self._archive("other-archiver"))
        await asyncio.gather(*work)
        told = ", ".join(f"{what} {count}" for what, count in sorted(self.target.counts.items()))
        self._stage.trace.tell(f"backups: {len(self.made)} stay, {self.killed} commands killed; the store: {told}")

    async def is_archived(self) -> bool:
        """Whether an archiver whose store is well has all that was committed, now that nothing goes on any more."""
        self.target.faulty, self.target.device.slow = False, 1.0
        if self._last is None:  # always the same one: it waits for replicas that may have what others lack
            one = self.machine("archiver")
            self._last = one, Archiver(one.client, one.store, around=one.around)
        return await self._stage.loop.spawn(self._last[0].process, self._archived(self._last[1], self._truth.last()))

    async def _archived(self, archiver: Archiver, wanted: dict[int, int]) -> bool:
        try:
            await archiver.look(flush=True)
        except NeedleError as error:
            self._stage.trace.note(f"the archiver waits: {error}")
            return False
        head = read_head(self.target, chosen(self.target, None))
        serving = [info.shard for info in self._truth.now.serving]
        if not all(head.shards.get(shard, (0, 0))[0] >= wanted[shard] for shard in serving):
            return False
        await archiver.close()
        return True

    async def is_restored(self) -> bool:
        """Whether the workload's collection was restored under another name, of the newest backup, by commands that are
        killed as the others were."""
        there = {info.spec.name for info in self._truth.now.collections}
        if not self.made or (RESTORED in there and not any(name.startswith(MARK) for name in there)):
            return True  # who was killed may have been done
        one = self.machine("restoring")
        if self._unclaimed and not await self._given_up(one):
            return False
        work = restore(
            one.client, one.store, max(self.made), collection=COLLECTION, name=RESTORED, timeout=CALL_SECONDS,
            around=one.around,
        )  # fmt: skip
        before = self.killed
        done = await self._watched(one, work, self._end(one.store))
        self._cut_off = self._cut_off or self.killed > before
        return done

    async def _given_up(self, one: Machine) -> bool:
        """Whether the collection that a restore may have made was dropped, as the refusal says."""
        dropping = one.client.drop_collection(RESTORED, timeout=CALL_SECONDS)
        try:
            await self._stage.loop.spawn(one.process, dropping)
        except NeedleError as error:
            self._stage.trace.note(f"{one.process.name}: {error}")
            return False
        self._unclaimed = self._cut_off = False
        return True

    def machine(self, name: str) -> Machine:
        """A process of that name, which takes the place of the one before."""
        stage, self._machines = self._stage, self._machines + 1
        process = stage.client_again(name)
        store = SimTarget(self.target, process, lambda: stage.loop.kill(process))

        async def blocking(work: Callable[..., T], *arguments: object) -> T:
            return await SimPool(stage.loop, process, self.target.device).run(work, *arguments)

        rng = stream(stage.spec.seed, NAME, name, self._machines)
        around = Around(clock=SimClock(stage.loop), blocking=blocking, rng=rng)
        return Machine(process, self._connect(name, self._truth.now, self._machines), store, around)

    async def _rest(self) -> None:
        await asyncio.sleep(self._rng.expovariate(1 / REST_SECONDS))

    # --- commands, and their ends -------------------------------------------------------------------------------------
    async def _watched(self, machine: Machine, work: Coroutine[Any, Any, object], seconds: float | None) -> bool:
        """Run a command to its end, or until it was killed: after so many seconds (None: not by the clock), or by its
        store. Whether it did what it had to."""
        loop, process = self._stage.loop, machine.process
        task, deadline = loop.spawn(process, work), None if seconds is None else loop.time() + seconds
        while process.alive and not task.done():
            if deadline is not None and loop.time() >= deadline:
                loop.kill(process)
            await asyncio.sleep(LOOK_SECONDS)
        if not task.done():
            self.killed += 1
            self._stage.trace.note(f"{process} was killed")
        elif (error := task.exception()) is not None:
            self._judge(process.name, error)
        else:
            return True
        return False

    def _judge(self, name: str, error: BaseException) -> None:
        self._stage.trace.note(f"{name}: {error}")
        lasting = isinstance(error, CorruptBackup | RestoreDiffers)  # nobody damages anything
        if not isinstance(error, NeedleError):
            raise error
        if isinstance(error, CollectionExists) and self._cut_off:
            self._unclaimed = True
            return
        passing = StorageError | OutcomeUnknown | DiskFull  # the last: what is scanned would take room
        if lasting or not (error.retryable or isinstance(error, passing)):
            self.broken = self.broken or Violation("expected errors", f"{name}: {error!r}: {error}")

    def _end(self, store: SimTarget) -> float | None:
        """Draw how a command ends: after how many seconds it is killed, None for not by the clock."""
        rng = self._rng
        if rng.random() >= KILLED_SHARE:
            return None
        if rng.random() < IN_A_CALL_SHARE:
            store.kill_at(rng.randint(1, CALLS_MAX), before=rng.random() < 0.5)
            return None
        return rng.uniform(0.0, 3.0)

    async def _archive(self, name: str) -> None:
        rng = self._rng
        while not self.stopping:
            one, lasts = self.machine(name), rng.uniform(3.0, 15.0)
            ends = self._end(one.store)
            work = archive(
                one.client, one.store, every=rng.choice([0.5, 2.0]), base_every=rng.choice([6.0, 20.0]),
                indexes_every=rng.choice([0.0, 4.0]), around=one.around, until=self._until(lasts),
            )  # fmt: skip
            await self._watched(one, work, None if ends is None else ends * 5)
            await self._rest()

    def _until(self, seconds: float) -> Callable[[], Awaitable[object]]:
        async def over() -> None:
            for _ in range(int(seconds / LOOK_SECONDS)):
                if not self.stopping:
                    await asyncio.sleep(LOOK_SECONDS)

        return over

    async def _back_up(self) -> None:
        while not self.stopping:
            await self._rest()
            self._clear()
            one = self.machine("backup")
            if self.made and self._rng.random() < PRUNE_SHARE:
                await self._prune(one)
            else:
                await self._create(one)
            await self._seen()

    def _clear(self) -> None:
        """An operator knows that nobody is at work any more behind these marks."""
        for name in self.target.left_by_the_dead((MAKING, PRUNING)):
            self.target.delete(name)

    async def _create(self, one: Machine) -> None:
        truth = self._truth
        before, first = truth.last(), len(truth.topologies) - 1
        indexes = self._rng.random() < 0.7
        rate = self._rng.choice([0.0, None])
        work = create(one.client, one.store, rate=rate, indexes=indexes, timeout=CALL_SECONDS, around=one.around)
        await self._watched(one, work, self._end(one.store))
        for name in self._ids():
            self.made.setdefault(name, Made(before, (first, len(truth.topologies))))

    async def _prune(self, one: Machine) -> None:
        hours, keep = self._rng.choice([None, KEPT_SECONDS / 3600]), self._rng.randint(1, 3)
        if hours is not None:
            self.since = max(self.since, one.around.micros() - int(hours * 3.6e9))
        await self._watched(one, prune(one.store, keep, archive_hours=hours, around=one.around), self._end(one.store))
        self.pruned += 1

    async def _seen(self) -> None:
        ids = self._ids()
        for name in [name for name in self.made if name not in ids]:
            del self.made[name]
        self._stage.trace.note(f"backups: {ids}")

    def _ids(self) -> list[str]:
        return backup_ids(self.target)
