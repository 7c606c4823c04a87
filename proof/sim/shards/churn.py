"""A client that creates, fills, reads and drops a collection, over and over: the catalog never rests, maps grow old.

Invariants checked: what was acknowledged in a collection is there until it is dropped; nothing of a dropped collection
is ever seen in the next one of that name; once a drop was acknowledged, a client that has not heard of it can neither
write to the dropped collection nor read it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from needle.base.errors import CollectionNotFound, DiskFull, NeedleError, OutcomeUnknown, StorageError, Unavailable
from needle.base.model import Hit, WriteResult
from needle.client.client import Client
from needle.routing.topology import Topology
from proof.checkers.violation import Violation
from proof.sim.databases import CALL_TIMEOUT
from proof.sim.machine import stream
from proof.sim.shards.profile import metadata_of
from proof.sim.stage import Stage

NAME = "side"
REST_SECONDS = 4.0


class Churn:
    """See the module. broken: the violation it found."""

    def __init__(self, stage: Stage, connect: Callable[[Topology], Client], now: Topology) -> None:
        """connect: makes a client that knows this topology."""
        self._stage = stage
        self._connect = connect
        self._client = connect(now)
        self._rng = stream(stage.spec.seed, "churn")
        self._written = 0
        self._open_creation = False
        """Of a creation nobody knows whether it will be executed yet: the name may be there again at any time."""
        self.rounds = 0
        self.stopping = False
        self.broken: Violation | None = None

    async def run(self) -> None:
        """Until `stopping`. The collection may be there at the end, or not."""
        while not self.stopping:
            if not await self._done(self._create):
                return
            await self._look(set(), set())
            await self._fill()
            await self._rest()
            before = self._client.topology()
            if not await self._done(self._drop):
                return
            if before.collection(NAME) is not None and not self._open_creation:
                await self._haunt(self._connect(before))
            self.rounds += 1
            self._stage.trace.note(f"churn: round {self.rounds}")
            await self._rest()

    async def _create(self) -> None:
        dimensions = self._stage.profile.dimensions
        try:
            await self._client.create_collection(NAME, dimensions=dimensions, if_absent=True, timeout=CALL_TIMEOUT)
        except OutcomeUnknown:
            self._open_creation = True
            raise

    async def _drop(self) -> None:
        await self._client.drop_collection(NAME, timeout=CALL_TIMEOUT)

    async def _rest(self) -> None:
        await asyncio.sleep(self._rng.expovariate(1 / REST_SECONDS))

    async def _done(self, ask: Callable[[], Awaitable[None]]) -> bool:
        """Repeat until it is answered; False when the run ends before. Dropping what is gone is done, too."""
        while not self.stopping:
            try:
                await ask()
            except CollectionNotFound:
                return True
            except (Unavailable, OutcomeUnknown, StorageError, DiskFull) as error:
                self._stage.trace.note(f"churn: {error.code}")
                await asyncio.sleep(0.2)
            else:
                return True
        return False

    async def _fill(self) -> None:
        """Write a few documents, and look for them."""
        sure: set[str] = set()
        possible: set[str] = set()
        for _ in range(self._rng.randint(1, 3)):
            keys = [f"s{self._written + n}" for n in range(4)]
            documents = [(key, self._vector(), metadata_of(key)) for key in keys]
            self._written += len(documents)
            possible.update(key for key, _, _ in documents)
            try:
                fates = await self._client.insert_each(documents, collection=NAME, timeout=CALL_TIMEOUT)
            except NeedleError as error:
                self._judge(error)
                continue
            sure.update(key for key, fate in fates.items() if isinstance(fate, WriteResult))
            for fate in fates.values():
                if isinstance(fate, NeedleError):
                    self._judge(fate)
        await self._look(sure, possible)

    async def _haunt(self, late: Client) -> None:
        """A client that knows the dropped collection only; nobody makes a new one meanwhile."""
        vector, metadata = self._vector(), metadata_of("late")
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "written to": lambda: late.insert("late", vector, metadata, collection=NAME, timeout=CALL_TIMEOUT),
            "read": lambda: late.search(vector, 1, collection=NAME, timeout=CALL_TIMEOUT),
        }
        for what, call in calls.items():
            try:
                await call()
            except CollectionNotFound:
                continue
            except NeedleError as error:
                self._judge(error)
            else:
                self.broken = self.broken or Violation("collections", f"{NAME} was {what} after it was dropped")

    async def _look(self, sure: set[str], possible: set[str]) -> None:
        """An exact strong search finds what is surely there, and nothing that cannot be."""
        try:
            hits: list[Hit] = await self._client.search(
                self._vector(), 100, exact=True, collection=NAME, timeout=CALL_TIMEOUT
            )
        except NeedleError as error:
            self._judge(error)
            return
        found = [hit.id for hit in hits]
        if len(set(found)) != len(found) or not sure <= set(found) <= possible:
            self.broken = self.broken or Violation(
                "collections", f"{NAME} holds {sorted(sure)} and may hold {sorted(possible)}; found {found}"
            )

    def _judge(self, error: NeedleError) -> None:
        if not isinstance(error, Unavailable | OutcomeUnknown | StorageError | DiskFull):
            self.broken = self.broken or Violation("expected errors", f"{NAME}: {error!r}: {error}")

    def _vector(self) -> Any:
        return np.array([self._rng.gauss(0, 1) for _ in range(self._stage.profile.dimensions)], np.float32)
