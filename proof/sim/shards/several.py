"""Somebody who writes documents with a second vector, by name, and reads them back, while everything fails and moves.

Nobody else writes them, one write comes after the other, and what has an unknown fate is not touched again. So it is
known of each document what it is. Invariants checked: a strong read, and a strong search by the name, show just that:
the vector that came with the document, or was given to it last, and none where it has none.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from needle.base.errors import ClusterTooOld, CollectionNotFound, DiskFull, NeedleError, OutcomeUnknown, StorageError
from needle.base.model import IndexParams, Metric, VectorSpec, WriteResult
from needle.client.client import Client
from proof.checkers.violation import Violation
from proof.sim.databases import CALL_TIMEOUT
from proof.sim.machine import stream
from proof.sim.shards.profile import metadata_of
from proof.sim.stage import Stage

NAME, VECTOR = "several", "title"
DOCUMENTS: Final = 24
REST_SECONDS: Final = 0.6
LENGTH: Final = 3
RULE = "a document has the named vector that it was given last"


class State(msgspec.Struct, frozen=True):
    """Of a document. version: that it has. title: the number that its named vector is made of, None if it has none."""

    version: int
    title: int | None


class Several:
    """See the module. broken: the violation it found. judged: answers that were looked at."""

    def __init__(self, stage: Stage, client: Client) -> None:
        self._stage = stage
        self._client = client
        self._rng = stream(stage.spec.seed, NAME)
        self._sure: dict[str, State] = {}
        self._doubtful: set[str] = set()
        """What had a write of unknown fate: it may still be executed."""
        self._number = self.judged = 0
        self._given: dict[tuple[str, int], State] = {}
        """By id and version: what was written for sure."""
        self.begun = self.stopping = False
        self.broken: Violation | None = None

    async def run(self) -> None:
        """Until `stopping`."""
        spec = VectorSpec(dimensions=LENGTH, metric=Metric.L2, index=IndexParams(kind=self._stage.profile.index))
        made: dict[str, Any] = {"dimensions": self._stage.profile.dimensions, "metric": self._stage.profile.metric}
        while not self.stopping:
            await self._rest()
            create = self._client.create_collection(NAME, if_absent=True, timeout=CALL_TIMEOUT, **made)
            if await self._done(create):
                break
        while not self.stopping:
            await self._rest()
            add = self._client.add_vector(NAME, VECTOR, spec, if_absent=True, timeout=CALL_TIMEOUT)
            if await self._done(add):
                self.begun = True
                break
            await self._done(self._change(named=False))
        while not self.stopping:
            await self._done(self._change(named=True))
            await self._done(self._look() if self._rng.random() < 0.6 else self._search())
            await self._rest()
        self._stage.trace.tell(f"documents with two vectors: {self.judged} answers judged")

    async def _rest(self) -> None:
        await asyncio.sleep(self._rng.expovariate(1 / REST_SECONDS))

    async def _done(self, work: Awaitable[object]) -> bool:
        """Whether it was; what stands against it may pass."""
        try:
            await work
        except NeedleError as error:
            passing = StorageError | DiskFull | CollectionNotFound | ClusterTooOld | OutcomeUnknown
            if not error.retryable and not isinstance(error, passing):
                self.broken = self.broken or Violation("expected errors", f"{NAME}: {error!r}: {error}")
            self._stage.trace.note(f"several: {error.code}")
            return False
        except Violation as violation:
            self.broken = self.broken or violation
        return True

    # --- writes ------------------------------------------------------------------------------------------------------
    async def _change(self, *, named: bool) -> None:
        """named: the collection has the name."""
        key = self._key()
        before, draw = self._sure.pop(key, None), self._rng.random()
        self._doubtful.add(key)  # until it is answered
        try:
            after = await self._write(key, before, draw, named=named)
        except OutcomeUnknown:
            raise
        except NeedleError:  # of everything else it is known that nothing was done
            self._doubtful.discard(key)
            if before is not None:
                self._sure[key] = before
            raise
        self._doubtful.discard(key)
        if after is not None:
            self._sure[key] = self._given[key, after.version] = after

    def _key(self) -> str:
        free = [n for n in range(DOCUMENTS) if f"k{n % 5}.s{n}" not in self._doubtful]
        self._number += 1
        n = self._rng.choice(free) if free else DOCUMENTS + self._number
        return f"k{n % 5}.s{n}"

    async def _write(self, key: str, before: State | None, draw: float, *, named: bool) -> State | None:
        how: dict[str, Any] = {"collection": NAME, "timeout": CALL_TIMEOUT}
        client, number = self._client, self._number
        if before is None or draw < 0.3:
            title = number if named and self._rng.random() < 0.6 else None
            vectors = None if title is None else {VECTOR: self._title(key, title)}
            metadata = {"n": number} | metadata_of(key)
            return State((await client.insert(key, self._vector(), metadata, vectors=vectors, **how)).version, title)
        if draw < 0.4:
            await client.delete(key, **how)
            return None
        if draw < 0.6:
            return self._still(key, await client.patch(key, set={"m": number}, **how), before.title)
        if draw < 0.7 or not named:
            return self._still(key, await client.update_vector(key, self._vector(), **how), before.title)
        version = before.version if self._rng.random() < 0.5 else None
        if before.title is not None and draw < 0.75:
            return self._still(key, await client.delete_vector(key, VECTOR, if_version=version, **how), None)
        vector = self._title(key, number)
        done = await client.update_vector(key, vector, name=VECTOR, if_version=version, **how)
        return self._still(key, done, number)

    @staticmethod
    def _still(key: str, done: WriteResult, title: int | None) -> State:
        """After a change of a document that is there."""
        if done.count != 1:
            raise Violation(RULE, f"{key} was written, and a change finds {done.count} of it")
        return State(done.version, title)

    def _vector(self) -> Any:
        return np.array([self._rng.gauss(0, 1) for _ in range(self._stage.profile.dimensions)], np.float32)

    @staticmethod
    def _title(key: str, number: int) -> Any:
        rng = np.random.default_rng([zlib.crc32(key.encode()), number])
        return rng.standard_normal(LENGTH).astype(np.float32)

    # --- what a feed of these documents tells ------------------------------------------------------------------------
    def differs(self, key: str, version: int, vector: Any) -> State | None:
        """What a document with this version truly was, if it had another named vector then."""
        state = self._given.get((key, version))
        return None if state is None or self._has(key, state, vector) else state

    def wrong_in(self, mirror: Mapping[str, tuple[int, Any]]) -> list[tuple[str, Any, Any]]:
        """In what a mirror, by id the version and the named vector, differs from what there is now."""
        names = sorted((mirror.keys() | self._sure.keys()) - self._doubtful)
        pairs = [(name, mirror.get(name), self._sure.get(name)) for name in names]
        return [
            (name, held, true)
            for name, held, true in pairs
            if held is None or true is None or held[0] != true.version or not self._has(name, true, held[1])
        ]

    def _has(self, key: str, state: State, vector: Any) -> bool:
        wanted = None if state.title is None else self._title(key, state.title)
        return vector is None if wanted is None else vector is not None and np.array_equal(vector, wanted)

    # --- reads -------------------------------------------------------------------------------------------------------
    async def _look(self) -> None:
        keys = [f"k{n % 5}.s{n}" for n in self._rng.sample(range(DOCUMENTS), 6)]
        found = {
            one.id: one for one in await self._client.get(keys, vectors=[VECTOR], collection=NAME, timeout=CALL_TIMEOUT)
        }
        for key in keys:
            if key not in self._doubtful:
                one = found.get(key)
                self._judge(key, None if one is None else (one.version, (one.vectors or {}).get(VECTOR)))

    async def _search(self) -> None:
        query = np.array([self._rng.gauss(0, 1) for _ in range(LENGTH)], np.float32)
        hits = await self._client.search(
            query, 1000, vector_name=VECTOR, exact=self._rng.random() < 0.5, with_vectors=True, collection=NAME,
            timeout=CALL_TIMEOUT,
        )  # fmt: skip
        found = {hit.id: hit for hit in hits}
        for key, state in self._sure.items():
            if (hit := found.pop(key, None)) is not None:
                self._judge(key, (hit.version, hit.vector))
                far = float(np.linalg.norm(hit.vector.astype(np.float64) - query))
                if abs(hit.distance - far) > 1e-4:
                    raise Violation(RULE, f"{key} is at {hit.distance}, truly {far:.6f}")
            elif state.title is not None:
                raise Violation(RULE, f"{key} has vector {state.title}, and no search finds it")
        if wrong := sorted(found.keys() - self._doubtful):
            raise Violation(RULE, f"{wrong[0]} is found, and is not there")

    def _judge(self, key: str, told: tuple[int, Any] | None) -> None:
        self.judged += 1
        state = self._sure.get(key)
        if state is None or told is None:
            if (state is None) != (told is None):
                raise Violation(RULE, f"{key} is {state}, and a strong read tells {told}")
            return
        version, vector = told
        if version != state.version or not self._has(key, state, vector):
            raise Violation(RULE, f"{key} is {state}, and a strong read tells version {version} with {vector}")
