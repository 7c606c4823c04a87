"""Clients that write sparse vectors, declare them while they do, and search by them, while all changes and moves.

Invariant checked: what is found, and with which scores, is what the shards' logs say (checkers/sparse_searches.py): no
document that has one of the indices is passed over, none counts twice, and every score is the same bits on any replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final

import numpy as np

from needle.base.errors import (
    ClusterTooOld,
    CollectionNotFound,
    DiskFull,
    InvalidArgument,
    NeedleError,
    OutcomeUnknown,
    StorageError,
)
from needle.base.model import ReadMode
from needle.client.client import Client
from proof.checkers.sparse_searches import SparseSeen, check_sparse
from proof.checkers.violation import Violation
from proof.checkers.word_searches import Round
from proof.sim.databases import CALL_TIMEOUT, PARTIAL_TIMEOUT, ShardAware
from proof.sim.machine import stream
from proof.sim.shards.profile import metadata_of
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage
from proof.sim.workload import Keep

NAME, FIELD = "sparse", "splade"
DOCUMENTS, INDICES = 40, 30
FILTERS: Final[tuple[tuple[dict[str, Any] | None, Keep | None], ...]] = (
    (None, None),
    ({"n": {"$gte": 3}}, lambda metadata: metadata["n"] >= 3),
)
MODES = (ReadMode.STRONG, ReadMode.STRONG, ReadMode.LEASED, ReadMode.EVENTUAL)
REST_SECONDS = 0.7
PARTIAL_SHARE, RENEW_SHARE, DROP_SHARE = 0.15, 0.05, 0.03


class SparseSearcher:
    """See the module. broken: the violation it found. answered, hits: searches, and what all of them found."""

    def __init__(
        self, stage: Stage, writing: Callable[..., Client], reading: Callable[..., ShardAware], truth: Truth
    ) -> None:
        """writing, reading: make clients, for a machine's name, what is known of the cluster, and a number."""
        self._stage, self._truth, self._reading = stage, truth, reading
        self._client, self._clients = writing("sparse", truth.now), 0
        self._reader = self._another()
        self._rng = stream(stage.spec.seed, "sparse vectors")
        self._asking = stream(stage.spec.seed, "sparse vectors that are asked for")
        self._declared = self._drops = False
        self.answered = self.hits = 0
        self.stopping = False
        self.broken: Violation | None = None

    async def run(self) -> None:
        """Write, until `stopping`."""
        made: dict[str, Any] = {
            "dimensions": self._stage.profile.dimensions,
            "metric": self._stage.profile.metric,
            "index": self._stage.profile.index,
        }
        while not self.stopping:
            await self._rest(self._rng)
            if await self._done(self._client.create_collection(NAME, if_absent=True, timeout=CALL_TIMEOUT, **made)):
                break
        while not self.stopping:
            if not self._declared:
                self._declared = await self._done(self._client.add_sparse(NAME, FIELD, timeout=CALL_TIMEOUT))
            elif self._rng.random() < DROP_SHARE:
                self._declared = False
                self._drops = True
                await self._done(self._client.drop_sparse(NAME, FIELD, timeout=CALL_TIMEOUT))
            await self._done(self._change())
            await self._rest(self._rng)

    async def read(self) -> None:
        """Search, until `stopping`."""
        while not self.stopping:
            await self._rest(self._asking)
            if self._truth.now.collection(NAME) is not None:
                if self._asking.random() < RENEW_SHARE:
                    self._reader = self._another()
                await self._done(self._search())
        self._stage.trace.tell(f"searches by sparse vectors: {self.answered} answered, {self.hits} hits")

    async def is_answered(self) -> bool:
        """Once nothing changes any more: whether a search for every index is answered. Raises Violation."""
        found = self._truth.now.collection(NAME)
        if found is None or not found.sparse:
            return True  # some clusters have no version that knows them for as long as the run lasts
        self._reader = self._another()
        query = {"indices": list(range(INDICES)), "values": [1.0] * INDICES}
        answered = await self._done(self._asked(query, ReadMode.STRONG, 1000, FILTERS[0], partial=False))
        if self.broken is not None:
            raise self.broken
        return answered

    def _another(self) -> ShardAware:
        self._clients += 1
        return self._reading("sparse-reader", self._truth.now, self._clients)

    async def _rest(self, rng: Random) -> None:
        await asyncio.sleep(rng.expovariate(1 / REST_SECONDS))

    async def _done(self, work: Awaitable[object]) -> bool:
        """Whether it was; what stands against it may pass."""
        try:
            await work
        except NeedleError as error:
            passing = StorageError | DiskFull | CollectionNotFound | ClusterTooOld | OutcomeUnknown
            undeclared = isinstance(error, InvalidArgument) and error.details.get("field") == "sparse"
            undeclared = undeclared and (self._drops or not self._declared)
            if not error.retryable and not isinstance(error, passing) and not undeclared:
                text = f"{NAME}: {error!r}: {error}"
                self.broken = self.broken or Violation("expected errors", text)
            self._stage.trace.note(f"sparse: {error.code}")
            return False
        except Violation as violation:
            self.broken = self.broken or violation
        return True

    # --- writes -------------------------------------------------------------------------------------------------------
    def _ids(self, most: int) -> list[str]:
        """Spread over the ranges of every strategy."""
        numbers = self._rng.sample(range(DOCUMENTS), self._rng.randint(1, most))
        return [f"k{number % 5}.s{number}" for number in numbers]

    def _sparse(self, rng: Random) -> dict[str, Any]:
        indices = rng.sample(range(INDICES), rng.choice([1, 2, 5, 12]))
        return {"indices": indices, "values": [rng.choice([rng.gauss(0, 1), 1.0]) for _ in indices]}

    def _vector(self) -> Any:
        return np.array([self._rng.gauss(0, 1) for _ in range(self._stage.profile.dimensions)], np.float32)

    def _metadata(self, key: str) -> dict[str, Any]:
        field = {FIELD: self._sparse(self._rng)} if self._rng.random() < 0.8 else {}
        return {"n": self._rng.randrange(6)} | field | metadata_of(key)

    async def _change(self) -> None:
        how: dict[str, Any] = {"collection": NAME, "timeout": CALL_TIMEOUT}
        draw = self._rng.random()
        if draw < 0.55:
            await self._client.insert_each([(key, self._vector(), self._metadata(key)) for key in self._ids(8)], **how)
        elif draw < 0.75:
            await self._client.delete(self._ids(4), **how)
        elif draw < 0.9:
            await self._client.patch(self._ids(1)[0], set={FIELD: self._sparse(self._rng)}, **how)
        elif draw < 0.95:
            await self._client.update_vector(self._ids(1)[0], self._vector(), **how)
        else:
            await self._client.delete_where({"n": self._rng.randrange(6)}, **how)

    # --- searches -----------------------------------------------------------------------------------------------------
    async def _search(self) -> None:
        rng = self._asking
        mode, chosen, partial = rng.choice(MODES), rng.choice(FILTERS), rng.random() < PARTIAL_SHARE
        await self._asked(self._sparse(rng), mode, rng.choice([1, 3, 10, 1000]), chosen, partial=partial)

    async def _asked(
        self, query: dict[str, Any], mode: ReadMode, k: int, chosen: tuple[Any, Keep | None], *, partial: bool
    ) -> None:
        required, reader = {} if mode is ReadMode.EVENTUAL else self._truth.last(), self._reader
        how: dict[str, Any] = {"k": k, "filter": chosen[0], "mode": mode, "collection": NAME, "sparse": {FIELD: query}}
        if partial:
            await reader.client.search_partial(timeout=PARTIAL_TIMEOUT, **how)
        else:
            await reader.client.search(timeout=CALL_TIMEOUT, **how)
        found = reader.last_found()
        self.answered, self.hits, batch = self.answered + 1, self.hits + len(found.batch.ids), found.batch
        seen = SparseSeen(
            label=f"search {self.answered} by a sparse vector",
            field=FIELD,
            query=query,
            k=k,
            keep=chosen[1],
            found=Round(found.applied, found.epoch),
            hits=[(id_, v, -far) for id_, v, far in zip(batch.ids, batch.versions, batch.distances, strict=True)],
            required=required,
            partial=partial,
            missing=sorted(found.missing),
        )
        check_sparse(self._truth.models(NAME), self._truth.maps(), self._truth.logs.owned, seen)
