"""What the committed log says: replay it to any index, and compare what reads returned with the exact answer there.

A search that says it ran at applied index `a` must return the exact k nearest documents of the log's prefix `a` (exact
mode) or at least only documents of that prefix, with their distances (index mode). A strong or leased read's `a` is at
least every index acknowledged before it was invoked; an eventual read's at least its session's token. The model knows
commands and their answers, nothing of how a replica stores them. Source: raft.md, section 5.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection
from typing import Any

import msgspec
import numpy as np

from proof.checkers.violation import Violation

NAME = "search replay"
TOLERANCE = 1e-4


class ModelDocument(msgspec.Struct, frozen=True):
    """A document as the log wrote it. vector: float32, shape (dimensions,). expires: microseconds since 1970, 0:
    never."""

    version: int
    vector: Any
    metadata: Any
    expires: int = 0


class SearchSeen(msgspec.Struct, kw_only=True):
    """One answered search. hits: (id, version, distance). required_index: applied_index may not be lower."""

    mode: str
    vector: Any
    k: int
    keep: Callable[[Any], bool] | None
    exact: bool
    hits: list[tuple[str, int, float]]
    applied_index: int
    required_index: int
    label: str


class GetSeen(msgspec.Struct, kw_only=True):
    """One answered get. version: 0 for absent. It read the state at some index from applied_index, which the answer
    names, to latest_index, the last that any replica had applied when the answer arrived."""

    key: str
    version: int
    applied_index: int
    latest_index: int
    required_index: int
    label: str


class LogModel:
    """The documents of one collection after every committed index."""

    def __init__(self) -> None:
        self._changes: dict[str, list[tuple[int, ModelDocument | None]]] = {}
        self._marks: set[int] = set()
        self.last_index = 0

    def write(self, index: int, key: str, document: ModelDocument | None) -> None:
        """Entry `index` wrote (or, None, deleted) `key`. Indices ascend."""
        self._changes.setdefault(key, []).append((index, document))
        self.last_index = max(self.last_index, index)

    def mark(self, index: int) -> None:
        """Entry `index` made a state that counts as another one even if no document changed."""
        self._marks.add(index)

    def at(self, index: int) -> dict[str, ModelDocument]:
        """Documents after entry `index`."""
        found: dict[str, ModelDocument] = {}
        for key, changes in self._changes.items():
            place = bisect_right(changes, index, key=lambda change: change[0])
            document = changes[place - 1][1] if place else None
            if document is not None:
                found[key] = document
        return found

    def now(self, key: str) -> ModelDocument | None:
        """A document after the last entry."""
        changes = self._changes.get(key)
        return changes[-1][1] if changes else None

    def keys(self) -> Collection[str]:
        """Every document that was ever written or deleted."""
        return self._changes.keys()

    def history(self, key: str) -> list[tuple[int, ModelDocument | None]]:
        """Every entry that wrote or deleted a document."""
        return self._changes.get(key, [])

    def states(self, first: int, last: int) -> list[int]:
        """Indices whose states are all that the collection had from entry `first` to entry `last`."""
        changed = {index for changes in self._changes.values() for index, _ in changes} | self._marks
        return [first, *sorted(index for index in changed if first < index <= last)]

    def versions(self, key: str, first: int, last: int) -> set[int]:
        """The versions (0: absent) a document has after the entries first to last."""
        changes = self._changes.get(key, [])
        start = bisect_right(changes, first, key=lambda change: change[0])
        stop = bisect_right(changes, last, key=lambda change: change[0])
        before = changes[start - 1][1] if start else None
        return {doc.version if doc is not None else 0 for doc in (before, *(doc for _, doc in changes[start:stop]))}


def distances(query: Any, vectors: Any, metric: str) -> Any:
    """Distances as needle.base.model.Metric defines them, in float64. query: (d,), vectors: (n, d)."""
    query, vectors = np.asarray(query, np.float64), np.asarray(vectors, np.float64)
    if metric == "l2":
        return np.sqrt(((vectors - query) ** 2).sum(axis=1))
    if metric == "dot":
        return -(vectors @ query)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    return 1.0 - (vectors @ query) / np.where(norms == 0, 1.0, norms)


def check_get(model: LogModel, seen: GetSeen) -> None:
    """Raises Violation when a get is not the prefix's answer."""
    check_fresh(seen.label, seen.applied_index, seen.required_index)
    possible = model.versions(seen.key, seen.applied_index, seen.latest_index)
    if seen.version not in possible:
        raise Violation(
            NAME,
            f"{seen.label} at {seen.applied_index}..{seen.latest_index} returned version {seen.version}, "
            f"the log: {sorted(possible)}",
        )


def check_fresh(label: str, applied_index: int, required_index: int) -> None:
    if applied_index < required_index:
        raise Violation(
            "read freshness", f"{label} ran at {applied_index}, before {required_index} which it had to see"
        )


def check_search(model: LogModel, seen: SearchSeen, metric: str) -> None:
    """Raises Violation when an answer is not the prefix's answer."""
    check_fresh(f"{seen.label} ({seen.mode})", seen.applied_index, seen.required_index)
    documents = model.at(seen.applied_index)
    expected = {key: doc for key, doc in documents.items() if seen.keep is None or seen.keep(doc.metadata)}
    order = list(expected)
    true: dict[str, float] = {}
    if order:
        vectors = np.array([expected[key].vector for key in order], np.float64)
        true = dict(zip(order, distances(seen.vector, vectors, metric), strict=True))
    _check_hits(seen, expected, true)
    if seen.exact:
        _check_complete(seen, true)


def _check_hits(seen: SearchSeen, expected: dict[str, ModelDocument], true: dict[str, float]) -> None:
    names = [key for key, _, _ in seen.hits]
    if len(names) > seen.k or len(set(names)) != len(names):
        raise Violation(NAME, f"{seen.label} asked for {seen.k} and got {names}")
    last = -np.inf
    for key, version, distance in seen.hits:
        document = expected.get(key)
        if document is None or document.version != version:
            actual = document.version if document else "absent or filtered out"
            raise Violation(
                NAME, f"{seen.label} at {seen.applied_index}: hit {key} version {version}, the log: {actual}"
            )
        if abs(true[key] - distance) > TOLERANCE * max(1.0, abs(distance)):
            raise Violation(NAME, f"{seen.label} at {seen.applied_index}: {key} at {distance}, truly {true[key]:.6f}")
        if distance < last - TOLERANCE:
            raise Violation(NAME, f"{seen.label}: hits are not in order of distance")
        last = distance


def _check_complete(seen: SearchSeen, true: dict[str, float]) -> None:
    want = min(seen.k, len(true))
    if len(seen.hits) != want:
        raise Violation(NAME, f"{seen.label} at {seen.applied_index}: {len(seen.hits)} hits, the log has {want}")
    nearest = sorted(true.values())[:want]
    for (key, _, distance), exact in zip(seen.hits, nearest, strict=True):
        if abs(distance - exact) > TOLERANCE * max(1.0, abs(exact)):
            raise Violation(NAME, f"{seen.label} at {seen.applied_index}: {key} at {distance}, nearer: {exact:.6f}")
