"""Looks after what a replica has stored: reads it to find damage, and gives back the space of what is gone.

At a pace, on a background thread: a step takes a few milliseconds, and the next one waits long enough that all of them
take at most a small share of a disk and of a core. It must not know Raft or the network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Protocol

from needle.base.runtime import Clock, Pool
from needle.shard.documents.row_check import Checked
from needle.shard.held_collections import HeldCollections

ROWS: Final = 256
BYTES_A_SECOND: Final = 8 << 20
"""At this rate stored documents are read: 1.7 GB, a million of 384 dimensions, take three and a half minutes."""
PAUSE_SECONDS: Final = 0.02
LOOK_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 10.0
"""After so long without a write, all that is dead goes."""
AGE_SECONDS: Final = 600.0
"""While writes go on: after so long, or when it is an eighth of what is stored."""


class Cared(Protocol):
    """What it needs of a replica (state_machine.Replica)."""

    @property
    def held(self) -> HeldCollections: ...
    def check_sums(self) -> None: ...
    def check_rows(self, collection_id: int, after: str, rows_max: int) -> Checked | None: ...
    def applied_index(self) -> int: ...
    def tidy(self, *, all_of_it: bool, short: bool = False) -> bool: ...


class Caretaker:
    """Of one replica. Damage is raised as CorruptDocuments or ReplicaDamaged, and ends `run`."""

    def __init__(
        self, replica: Cared, pool: Pool, clock: Clock, interval: float, short: Callable[[], bool] = lambda: False
    ) -> None:
        """interval: seconds from the end of one reading of everything to the next; the first begins at once. short:
        whether the disk is: then all that is dead goes at once, what change feeds may still read too."""
        self._replica = replica
        self._pool = pool
        self._clock = clock
        self._interval = interval
        self._short = short
        self.passes = 0
        """How often everything was read."""

    async def run(self) -> None:
        """Work until cancelled."""
        tasks = [asyncio.ensure_future(work) for work in (self._check_always(), self._tidy_always())]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _check_always(self) -> None:
        while True:
            await self.check()
            await asyncio.sleep(self._interval)

    async def _tidy_always(self) -> None:
        seen, since, all_at = self._replica.applied_index(), self._clock.monotonic(), self._clock.monotonic()
        done = (-1, False)  # what was applied when all that was dead was gone, and whether the disk was short
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now, applied = self._clock.monotonic(), self._replica.applied_index()
            if applied != seen:
                seen, since = applied, now
            short = self._short()
            if done in ((applied, short), (applied, True)):
                continue
            all_of_it = short or now - since >= IDLE_SECONDS or now - all_at >= AGE_SECONDS
            tidy = partial(self._replica.tidy, all_of_it=all_of_it, short=short)
            while await self._pool.run(tidy):  # noqa: ASYNC110 - the pause is the pace
                await asyncio.sleep(PAUSE_SECONDS)
            if all_of_it:
                all_at, done = now, (applied, short)

    async def check(self) -> None:
        """Read every row once. Raises CorruptDocuments, ReplicaDamaged."""
        await self._pool.run(self._replica.check_sums)
        for collection_id in self._collections():
            after = ""
            while True:
                page = await self._pool.run(self._replica.check_rows, collection_id, after, ROWS)
                if page is None:
                    break
                after = page.last
                await asyncio.sleep(max(PAUSE_SECONDS, page.size / BYTES_A_SECOND))
        self.passes += 1

    def _collections(self) -> Iterator[int]:
        for vectors in self._replica.held.collection_vectors():
            yield vectors.collection_id
