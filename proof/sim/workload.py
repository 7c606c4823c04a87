"""What clients do: draw operations from the seed, ask through the real client, and write down what they were told.

Invariant: an operation is `failed` in the history only if the product promised that it had no effect; whatever it left
open is `unknown`. Keys rotate, so that unknown outcomes do not pile up on one key. It must not know the servers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import numpy as np

from needle.base.errors import (
    AlreadyExists,
    CollectionNotFound,
    ConnectionLost,
    DiskFull,
    NeedleError,
    OutcomeUnknown,
    SessionExpired,
    StorageError,
    Unavailable,
    VersionMismatch,
)
from needle.base.model import HitBatch, ReadMode, WriteResult
from proof.checkers.replay import GetSeen, SearchSeen
from proof.sim.history import History, Kind, Operation
from proof.sim.machine import stream
from proof.sim.spec import Profile
from proof.sim.trace import Trace
from proof.sim.violation import Violation

COLLECTION = "default"
MODES = (ReadMode.STRONG, ReadMode.STRONG, ReadMode.LEASED, ReadMode.EVENTUAL)
NEW_SESSION_CHANCE = 0.1
WRITES_SHARE = 0.54
CHANGES_SHARE = 0.15
LULL_EVERY, LULL_SECONDS = 15.0, 5.0
"""Seconds. In a lull nobody writes: then every log is up to date, and only votes and leases keep order."""
BURST_EVERY, BURST_WRITES = 4.0, 2
HOT_SLOTS = 2
Keep = Callable[[Any], bool]

FILTERS: tuple[tuple[dict[str, Any] | None, Keep | None], ...] = (
    (None, None),
    (None, None),
    ({"odd": True}, lambda metadata: metadata["odd"] is True),
    ({"n": {"$gte": 5}}, lambda metadata: metadata["n"] >= 5),
    ({"n": {"$in": [1, 2, 3]}}, lambda metadata: metadata["n"] in (1, 2, 3)),
    ({"$and": [{"odd": False}, {"n": {"$lt": 7}}]}, lambda metadata: metadata["odd"] is False and metadata["n"] < 7),
)


class Database(Protocol):
    """The part of the real client that the workload uses; sim.nodes adapts it. by_filter: whether it may be asked to
    delete by a filter."""

    by_filter: bool

    async def put(self, key: str, vector: Any, metadata: Any) -> WriteResult: ...
    async def insert_if_absent(self, key: str, vector: Any, metadata: Any) -> WriteResult: ...
    async def compare_and_set(self, key: str, expected: int, vector: Any, metadata: Any) -> WriteResult: ...
    async def delete(self, key: str) -> WriteResult: ...
    async def delete_where(self, filter: dict[str, Any]) -> WriteResult: ...
    async def patch(self, key: str, added: dict[str, Any], expected: int) -> WriteResult:
        """expected: 0 for any version."""
        ...

    async def get(self, key: str, mode: ReadMode) -> tuple[int, Any, int]:
        """(version or 0, metadata, applied index or 0 if the client does not tell)."""
        ...

    async def search(self, vector: Any, k: int, filter: Any, mode: ReadMode, exact: bool) -> HitBatch: ...
    def token(self, key: str) -> int:
        """The log index that this session's eventual reads of a key must have seen."""
        ...


class Timed(Protocol):
    """What the workload needs of an event loop, virtual or real."""

    def time(self) -> float: ...


def value_of(metadata: Any) -> str:
    """What a read has seen (history.Operation.tag)."""
    return str(metadata.get("tag", "")) + (f"+{metadata['added']}" if "added" in metadata else "")


class Budget:
    """Operations that all clients together may still begin."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self) -> bool:
        self.left -= 1
        return self.left >= 0


class Keys:
    """Names in use: each slot moves on to a fresh key after some operations. The last slots are the hot ones."""

    def __init__(self, profile: Profile) -> None:
        self._slots = profile.key_slots
        self._hot = profile.hot_share
        self._uses = [0] * (self._slots + HOT_SLOTS)
        self._per_key = profile.operations_per_key

    def draw(self, rng: random.Random) -> str:
        hot = self._hot and rng.random() < self._hot
        slot = self._slots + rng.randrange(HOT_SLOTS) if hot else rng.randrange(self._slots)
        self._uses[slot] += 1
        return f"k{slot}.{self._uses[slot] // self._per_key}"


class Workload:
    """State shared by the clients of a run."""

    def __init__(
        self, loop: Timed, history: History, trace: Trace, profile: Profile, seed: int, budget: Budget
    ) -> None:
        self.loop = loop
        self.lulls = True
        self.changes = False
        """Whether documents are also patched, and deleted by a filter."""
        self.history = history
        self.trace = trace
        self.profile = profile
        self.seed = seed
        self.budget = budget
        self.keys = Keys(profile)
        self.searches: list[SearchSeen] = []
        self.gets: list[GetSeen] = []
        self.stopping = False
        self.broken: Violation | None = None
        self.on_ack: Callable[[str, int], None] = lambda key, index: None
        self.latest: Callable[[str], int] = lambda key: 0


class Client:
    """One client session, one operation at a time."""

    def __init__(self, name: str, connect: Callable[[], Database], work: Workload, laziness: float = 1.0) -> None:
        """connect: makes a new session, which knows no leader yet. laziness: factor of the pauses."""
        self.name = name
        self._connect = connect
        self._database = connect()
        self._think = work.profile.think_seconds * laziness
        self._work = work
        self._rng = stream(work.seed, "client", name)
        self._versions: dict[str, int] = {}
        self._writes = 0

    async def run(self) -> None:
        """Until the workload stops or its budget is spent."""
        while not self._work.stopping and self._work.budget.take():
            await self.step()
            await asyncio.sleep(self._rng.expovariate(1 / self._think) if self._rng.random() < 0.8 else 0)

    async def run_in_bursts(self) -> None:
        """Write together with all others that run like this, then rest: many appends are under way at once."""
        while not self._work.stopping:
            await asyncio.sleep(BURST_EVERY - self._work.loop.time() % BURST_EVERY)
            for _ in range(0 if self._is_lull() else BURST_WRITES):
                if self._work.stopping or not self._work.budget.take():
                    return
                await self.put(self._work.keys.draw(self._rng))

    def renew(self) -> None:
        """Begin a new session."""
        self._database = self._connect()

    async def step(self) -> None:
        """One operation of a random kind, now and then in a new session."""
        if self._rng.random() < NEW_SESSION_CHANCE:
            self.renew()
        key, draw = self._work.keys.draw(self._rng), self._rng.random()
        if self._work.changes and not self._is_lull() and self._rng.random() < CHANGES_SHARE:
            patches = self._rng.random() < 0.8 or not self._database.by_filter
            await (self.patch(key) if patches else self.delete_where(key))
            return
        if self._is_lull():
            draw = max(draw, WRITES_SHARE)
        if draw < 0.25:
            await self.put(key)
        elif draw < 0.33:
            await self.insert(key)
        elif draw < 0.48:
            await self.compare_and_set(key)
        elif draw < WRITES_SHARE:
            await self.delete(key)
        elif draw < 0.76:
            await self.get(key, MODES[self._rng.randrange(len(MODES))])
        else:
            await self.search(MODES[self._rng.randrange(len(MODES))])

    def _is_lull(self) -> bool:
        return self._work.lulls and self._work.loop.time() % LULL_EVERY < LULL_SECONDS

    # --- writes -------------------------------------------------------------------------------------------------------
    def _document(self, key: str) -> tuple[str, Any, dict[str, Any]]:
        self._writes += 1
        tag = f"{self.name}-{self._writes}"
        metadata = {"tag": tag, "key": key, "n": self._rng.randrange(10), "odd": self._rng.random() < 0.5}
        return tag, self._vector(), metadata

    def _vector(self) -> Any:
        return np.array([self._rng.gauss(0, 1) for _ in range(self._work.profile.dimensions)], np.float32)

    async def put(self, key: str) -> bool:
        """True if it was acknowledged."""
        tag, vector, metadata = self._document(key)
        return await self._write(
            "put", key, tag, 0, lambda: self._database.put(key, vector, metadata), shown(vector, metadata)
        )

    async def insert(self, key: str) -> None:
        tag, vector, metadata = self._document(key)
        await self._write(
            "insert",
            key,
            tag,
            0,
            lambda: self._database.insert_if_absent(key, vector, metadata),
            shown(vector, metadata),
        )

    async def compare_and_set(self, key: str) -> None:
        tag, vector, metadata = self._document(key)
        expected = self._versions.get(key)
        if expected is None:
            await self.get(key, ReadMode.STRONG)
            expected = self._versions.get(key)
        if expected:
            version = expected
            await self._write(
                "cas",
                key,
                tag,
                version,
                lambda: self._database.compare_and_set(key, version, vector, metadata),
                shown(vector, metadata),
            )

    async def delete(self, key: str) -> None:
        await self._write("delete", key, "", 0, lambda: self._database.delete(key), {})

    async def delete_where(self, key: str) -> None:
        """By a filter that one document matches: to its clients the same as a delete."""
        await self._write("delete", key, "", 0, lambda: self._database.delete_where({"key": key}), {"where": True})

    async def patch(self, key: str) -> None:
        self._writes += 1
        added = f"{self.name}-{self._writes}"
        expected = (self._versions.get(key) or 0) if self._rng.random() < 0.3 else 0
        await self._write(
            "patch", key, added, expected, lambda: self._database.patch(key, {"added": added}, expected), {}
        )

    async def _write(
        self, kind: Kind, key: str, tag: str, expected: int, ask: Callable[[], Any], details: dict[str, Any]
    ) -> bool:
        op = self._invoke(kind, key, tag=tag, expected=expected, details=details)
        try:
            result: WriteResult = await ask()
        except (AlreadyExists, VersionMismatch) as error:
            found = error.details.get("version" if isinstance(error, AlreadyExists) else "actual")
            self._finish(op, "refused", version=int(found or 0), error=error.code)
        except NeedleError as error:
            self._finish(op, "failed" if surely_without_effect(error) else "unknown", error=error.code)
            self._expect(op, error)
        else:
            gone = kind == "delete" or (kind == "patch" and not result.existed)
            version = self._versions[key] = 0 if gone else result.version
            self._finish(op, "ok", version=version, index=result.index, existed=result.existed)
            self._work.on_ack(key, result.index)
            return True
        self._versions.pop(key, None)
        return False

    # --- reads --------------------------------------------------------------------------------------------------------
    async def get(self, key: str, mode: ReadMode) -> bool:
        """True if it was answered."""
        eventual = mode is ReadMode.EVENTUAL
        required = self._database.token(key) if eventual else self._work.latest(key)
        op = self._invoke("search" if eventual else "get", key, details={"mode": str(mode), "required": required})
        try:
            version, metadata, applied = await self._database.get(key, mode)
        except NeedleError as error:
            self._finish(op, "failed", error=error.code)
            self._expect(op, error)
            return False
        seen = value_of(metadata) if version else ""
        self._versions[key] = version
        op.details["applied"] = applied
        self._finish(op, "ok", version=version, seen=seen)
        if applied:
            self._work.gets.append(
                GetSeen(
                    key=key,
                    version=version,
                    applied_index=applied,
                    latest_index=self._work.latest(key),
                    required_index=required,
                    label=f"get #{op.id} of {key} ({mode})",
                )
            )
        return True

    async def search(self, mode: ReadMode) -> None:
        vector = self._vector()
        filter_, keep = FILTERS[self._rng.randrange(len(FILTERS))]
        k, exact = self._rng.choice([1, 3, 10, 100]), self._rng.random() < 0.7
        required = self._database.token("") if mode is ReadMode.EVENTUAL else self._work.latest("")
        asked = {"mode": str(mode), "k": k, "filter": filter_, "exact": exact, "vector": vector.tolist()}
        op = self._invoke("search", "", details={**asked, "required": required})
        try:
            hits = await self._database.search(vector, k, filter_, mode, exact)
        except NeedleError as error:
            self._finish(op, "failed", error=error.code)
            self._expect(op, error)
            return
        tags = [msgspec.json.decode(metadata).get("tag", "") for metadata in hits.metadata]
        op.details |= {"applied": hits.applied_index}
        op.details["hits"] = [list(hit) for hit in zip(hits.ids, hits.versions, hits.distances, tags, strict=True)]
        self._finish(op, "ok", index=hits.applied_index, version=len(hits.ids))
        self._work.searches.append(
            SearchSeen(
                mode=str(mode),
                vector=vector,
                k=k,
                keep=keep,
                exact=exact,
                hits=list(zip(hits.ids, hits.versions, hits.distances, strict=True)),
                applied_index=hits.applied_index,
                required_index=required,
                label=f"search #{op.id} by {self.name}",
            )
        )

    # --- the record ---------------------------------------------------------------------------------------------------
    def _invoke(self, kind: Kind, key: str, **fields: Any) -> Operation:
        op = self._work.history.invoke(self.name, kind, key, self._work.loop.time(), **fields)
        self._work.trace.note(f"{self.name} invoke #{op.id} {kind} {key} {op.tag} {op.expected} {op.details}")
        return op

    def _finish(self, op: Operation, outcome: Any, **fields: Any) -> None:
        self._work.history.finish(op, outcome, self._work.loop.time(), **fields)
        self._work.trace.note(f"{self.name} return #{op.id} {outcome} {fields}")

    def _expect(self, op: Operation, error: NeedleError) -> None:
        """Under faults a client may be told that the cluster cannot serve it now; not that it broke."""
        if isinstance(error, CollectionNotFound) and op.details.get("mode") == ReadMode.EVENTUAL:
            return  # a prefix of the log from before the collection
        if not isinstance(error, Unavailable | OutcomeUnknown | SessionExpired | StorageError | DiskFull):
            self._work.broken = Violation(
                "expected errors", f"#{op.id} {op.kind} {op.key} failed with {error!r}: {error}"
            )


def surely_without_effect(error: NeedleError) -> bool:
    """The client's promise: a write whose fate is open raises OutcomeUnknown, or breaks off with ConnectionLost."""
    return error.retryable and not isinstance(error, ConnectionLost)


def shown(vector: Any, metadata: Any) -> dict[str, Any]:
    """What a write carries, for the record."""
    return {"vector": vector.tolist(), "metadata": metadata}
