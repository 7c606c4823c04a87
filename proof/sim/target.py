"""Where simulated backups lie: what `needle.backup.store.Store` asks for, in memory, with the faults that stores have.

Invariant: a file is there whole or not at all, as the port promises; what a put left that was torn has a name of its
own. Whoever is killed does it between two calls, in the middle of what blocks, too: what the call did stays. It must
not know what files mean.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from needle.backup.store import PARTIAL, Stat
from needle.base.errors import StorageError
from proof.sim.disk import DiskDevice
from proof.sim.event_loop import SimLoop
from proof.sim.machine import WALL_EPOCH
from proof.sim.process import Killed, Process

REFUSED_SHARE: Final = 0.006
LOST_SHARE: Final = 0.006
TORN_SHARE: Final = 0.004
"""Of the calls, while there are faults: refused; done, though the caller is told otherwise; a put that leaves a part
beside the file that it was to make or replace."""
AWAY_SHARE, AWAY_SECONDS = 0.001, 3.0
"""Calls after which nothing is taken for a while."""


class _File(NamedTuple):
    """writer: who wrote it."""

    data: bytes
    modified: float
    writer: Process


class Target:
    """What is there, whoever wrote it. faulty: whether calls fail. device: how long they take."""

    def __init__(self, loop: SimLoop, rng: random.Random) -> None:
        self._loop, self._rng = loop, rng
        self._files: dict[str, _File] = {}
        self._away_until = 0.0
        self.device = DiskDevice(rng)
        self.device.slow = rng.choice([1.0, 1.0, 30.0, 200.0])
        self.faulty = True
        self.counts: Counter[str] = Counter()

    def left_by_the_dead(self, prefixes: tuple[str, ...]) -> list[str]:
        """Files that begin so, and whose writer runs no more."""
        return sorted(name for name, file in self._files.items() if name.startswith(prefixes) and not file.writer.alive)

    def called(self, name: str, effect: Callable[[], None], torn: Callable[[], None]) -> None:
        """One call of a store. Raises StorageError as the faults have it."""
        if not self.faulty:
            effect()
            return
        if self._loop.time() < self._away_until:
            raise StorageError(f"{name}: simulated: the store takes nothing", path=name)
        draw = self._rng.random()
        if draw < REFUSED_SHARE + AWAY_SHARE:
            self.counts["refused"] += 1
            if draw < AWAY_SHARE:
                self._away_until = self._loop.time() + self._rng.expovariate(1 / AWAY_SECONDS)
            raise StorageError(f"{name}: simulated: refused", path=name)
        draw -= REFUSED_SHARE + AWAY_SHARE
        if draw < LOST_SHARE:
            self.counts["lost answers"] += 1
            effect()
            raise StorageError(f"{name}: simulated: the connection broke", path=name)
        if draw - LOST_SHARE < TORN_SHARE:
            self.counts["torn"] += 1
            torn()
            raise StorageError(f"{name}: simulated: broken off", path=name)
        effect()

    def put(self, name: str, data: bytes, writer: Process | None = None) -> None:
        """Make or replace a file. writer: None for the world itself."""
        self._files[name] = _File(bytes(data), WALL_EPOCH + self._loop.time(), writer or self._loop.root)

    def tear(self, name: str, data: bytes, writer: Process) -> None:
        """What a put leaves that is broken off, as a directory keeps it."""
        self.put(f"{name}{PARTIAL}-{self._rng.getrandbits(32):08x}", data[: len(data) // 2], writer)

    def get(self, name: str) -> bytes | None:
        """A file's bytes."""
        file = self._files.get(name)
        return None if file is None else file.data

    def names(self, prefix: str) -> dict[str, Stat]:
        """All files whose names begin so."""
        return {
            name: Stat(len(file.data), file.modified)
            for name, file in sorted(self._files.items())
            if name.startswith(prefix)
        }

    def delete(self, name: str) -> None:
        """Fine if it is not there."""
        self._files.pop(name, None)


class SimTarget:
    """The Store of one process, which may be killed at one of its calls. die: ends the process."""

    def __init__(self, target: Target, process: Process, die: Callable[[], None]) -> None:
        self._target, self._process, self._die = target, process, die
        self._left = 0
        self._before = False

    def kill_at(self, calls: int, *, before: bool) -> None:
        """End the process at so many calls from now: before the call takes effect, with a put half done, or after
        it."""
        self._left, self._before = calls, before

    def _call(self, name: str, effect: Callable[[], None], torn: Callable[[], None] = lambda: None) -> None:
        self._process.fence()
        self._left -= 1
        if self._left == 0:
            self._target.counts["killed in a call"] += 1
            if self._before:
                torn()
            else:
                effect()
            self._die()
            raise Killed(name)
        self._target.called(name, effect, torn)

    def put(self, name: str, data: bytes) -> None:
        target, process = self._target, self._process
        self._call(name, lambda: target.put(name, data, process), lambda: target.tear(name, data, process))

    def get(self, name: str) -> bytes | None:
        self._call(name, lambda: None)
        return self._target.get(name)

    def names(self, prefix: str) -> dict[str, Stat]:
        self._call(prefix, lambda: None)
        return self._target.names(prefix)

    def delete(self, name: str) -> None:
        self._call(name, lambda: self._target.delete(name))
