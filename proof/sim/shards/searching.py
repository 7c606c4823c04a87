"""What clients do that write documents and search for them in one more way than by vectors, while everything changes
and moves: words (wording.py), sparse vectors (sparse.py)."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, ClassVar, Final

import numpy as np

from needle.base.errors import (
    ClusterTooOld,
    CollectionNotFound,
    DiskFull,
    NeedleError,
    OutcomeUnknown,
    StorageError,
)
from needle.base.model import ReadMode
from needle.client.client import Client
from proof.checkers.violation import Violation
from proof.sim.databases import CALL_TIMEOUT, ShardAware
from proof.sim.machine import stream
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage
from proof.sim.workload import Keep

DOCUMENTS = 40
FILTERS: Final[tuple[tuple[dict[str, Any] | None, Keep | None], ...]] = (
    (None, None),
    ({"n": {"$gte": 3}}, lambda metadata: metadata["n"] >= 3),
    (
        {"at": {"$geo_box": {"south": 5, "west": 170, "north": 35, "east": -170}}},
        lambda metadata: 1 <= metadata["n"] <= 3,
    ),
    (
        {"at": {"$geo_radius": {"centre": {"lat": 30, "lon": 180}, "metres": 1_500_000}}},
        lambda metadata: 2 <= metadata["n"] <= 4,
    ),
)
MODES = (ReadMode.STRONG, ReadMode.STRONG, ReadMode.LEASED, ReadMode.EVENTUAL)
REST_SECONDS = 0.7
RENEW_SHARE, PARTIAL_SHARE = 0.05, 0.15
NUMBERS: Final = 6
PASSING = StorageError | DiskFull | CollectionNotFound | ClusterTooOld | OutcomeUnknown


def numbered(number: int) -> dict[str, Any]:
    """Metadata of one of NUMBERS kinds of documents, each at a place of its own: FILTERS tell them apart by either."""
    return {"n": number, "at": {"lat": 10 * number, "lon": 179 if number % 2 else -179}}


class Searcher(ABC):
    """See the module. name: of the collection, and of the machine that writes. what: the way of searching. broken: the
    violation it found. answered, hits: searches, and what all of them found."""

    name: ClassVar[str]
    what: ClassVar[str]

    def __init__(
        self, stage: Stage, writing: Callable[..., Client], reading: Callable[..., ShardAware], truth: Truth
    ) -> None:
        """writing, reading: make clients, for a machine's name, what is known of the cluster, and a number."""
        self.stage, self.truth, self._reading = stage, truth, reading
        self.client, self._clients = writing(self.name, truth.now), 0
        self.reader = self._another()
        self.rng = stream(stage.spec.seed, self.what)
        self.asking = stream(stage.spec.seed, f"{self.what} that are asked for")
        self.answered = self.hits = 0
        self.stopping = False
        self.broken: Violation | None = None

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Of the collection, beside what all have."""

    @abstractmethod
    async def change(self) -> None:
        """Write something."""

    @abstractmethod
    async def search(self) -> None:
        """Search, and judge what was found."""

    @abstractmethod
    async def search_all(self) -> None:
        """Search for all that there may be."""

    async def step(self) -> None:
        """One of the writer's."""
        await self.done(self.change())

    def may_pass(self, error: NeedleError) -> bool:
        """What a fault, or what somebody else did, explains."""
        return error.retryable or isinstance(error, PASSING)

    def is_there(self) -> bool:
        """Whether it can be searched. Some clusters have no version for it for as long as the run lasts."""
        return self.truth.now.collection(self.name) is not None

    async def run(self) -> None:
        """Write, until `stopping`."""
        made: dict[str, Any] = {
            "dimensions": self.stage.profile.dimensions,
            "metric": self.stage.profile.metric,
            "index": self.stage.profile.index,
        }
        made |= self.settings()
        while not self.stopping:
            await self._rest(self.rng)
            if await self.done(self.client.create_collection(self.name, if_absent=True, timeout=CALL_TIMEOUT, **made)):
                break
        while not self.stopping:
            await self.step()
            await self._rest(self.rng)

    async def read(self) -> None:
        """Search, until `stopping`."""
        while not self.stopping:
            await self._rest(self.asking)
            if self.truth.now.collection(self.name) is not None:
                if self.asking.random() < RENEW_SHARE:
                    self.reader = self._another()
                await self.done(self.search())
        self.stage.trace.tell(f"searches by {self.what}: {self.answered} answered, {self.hits} hits")

    async def is_answered(self) -> bool:
        """Once nothing changes any more: whether a search for everything is answered. Raises Violation."""
        if not self.is_there():
            return True
        self.reader = self._another()
        answered = await self.done(self.search_all())
        if self.broken is not None:
            raise self.broken
        return answered

    async def done(self, work: Awaitable[object]) -> bool:
        """Whether it was; what stands against it may pass."""
        try:
            await work
        except NeedleError as error:
            if not self.may_pass(error):
                self.broken = self.broken or Violation("expected errors", f"{self.name}: {error!r}: {error}")
            self.stage.trace.note(f"{self.name}: {error.code}")
            return False
        except Violation as violation:
            self.broken = self.broken or violation
        return True

    def ids(self, most: int) -> list[str]:
        """Spread over the ranges of every strategy."""
        numbers = self.rng.sample(range(DOCUMENTS), self.rng.randint(1, most))
        return [f"k{number % 5}.{self.name[0]}{number}" for number in numbers]

    def vector(self, rng: Random) -> Any:
        return np.array([rng.gauss(0, 1) for _ in range(self.stage.profile.dimensions)], np.float32)

    def required(self, mode: ReadMode) -> dict[int, int]:
        """By shard, the index that a search has to see that begins now."""
        return {} if mode is ReadMode.EVENTUAL else self.truth.last()

    def _another(self) -> ShardAware:
        self._clients += 1
        return self._reading(f"{self.name}-reader", self.truth.now, self._clients)

    async def _rest(self, rng: Random) -> None:
        await asyncio.sleep(rng.expovariate(1 / REST_SECONDS))
