"""Whether documents of a source and those of a collection are the same, whatever order they come in. Pure."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from needle.base.model import Document, Metric
from needle.cli.inputs import Record
from needle.client.values import metadata_bytes

SAMPLE: Final = 16
"""Documents whose neighbours are compared."""
NEIGHBOURS: Final = 10
SHOWN: Final = 5
"""Ids of documents that differ, in what is said of them."""
TOLERANCE: Final = 1e-6
"""Of a number of a vector of length 1: the collection makes it that long by itself."""
NEAR: Final = 1e-4
"""Distances that differ less are a tie, for other arithmetic finds either."""
NOTHING: Final[Mapping[str, Any]] = {}
_MODULUS: Final = 1 << 128
_sorted: Final = msgspec.json.Encoder(order="sorted")


def stored(vector: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """As a collection of this metric keeps it."""
    if metric is not Metric.COSINE:
        return vector
    wide = vector.astype(np.float64)
    return (wide / (np.sqrt(np.add.reduce(wide * wide)) or 1.0)).astype(np.float32)


def canonical(metadata: Any) -> bytes:
    """Metadata as JSON, in the order of its keys."""
    data = metadata_bytes(metadata)
    return _sorted.encode(msgspec.json.decode(data)) if data else b""


def differs(
    record: Record, document: Document | None, metric: Metric, named: Mapping[str, Metric] = NOTHING
) -> str | None:
    """What of a document is not as in the source; None if it is the same. named: the metrics of named vectors. Of these
    only those count that the source has: others may have been added since."""
    if document is None:
        return "is not there"
    if problem := _other(record.vector, document.vector, metric):
        return problem
    for name, vector in record.named.items():
        there = (document.vectors or {}).get(name)
        if problem := "has no such vector" if there is None else _other(vector, there, named.get(name, metric)):
            return f"{problem}: {name!r}"
    return None if canonical(record.metadata) == canonical(document.metadata) else "has other metadata"


def _other(vector: NDArray[np.float32], there: Any, metric: Metric) -> str | None:
    wanted, found = stored(vector, metric), np.asarray(there)
    if wanted.shape != found.shape:
        return f"has a vector of {len(found)} numbers instead of {len(wanted)}"
    same = np.array_equal(wanted, found)
    near = metric is Metric.COSINE and np.allclose(wanted, found, rtol=0, atol=TOLERANCE)
    return None if same or near else "has another vector"


class Digest:
    """Of a set of documents: the sum of their hashes, so that their order is nothing to it."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0

    def add(
        self, id: str, vector: NDArray[np.float32], metadata: Any, named: Mapping[str, NDArray[np.float32]] = NOTHING
    ) -> None:
        """vector, named: as they are stored."""
        name, numbers = id.encode(), vector.astype("<f4").tobytes()
        made = blake2b(b"%d %d " % (len(name), len(numbers)), digest_size=16)
        for part in (name, numbers, canonical(metadata)):
            made.update(part)
        for at in sorted(named):
            made.update(b" %d %b " % (named[at].nbytes, at.encode()) + named[at].astype("<f4").tobytes())
        self._sum = (self._sum + int.from_bytes(made.digest())) % _MODULUS
        self.count += 1

    def __str__(self) -> str:
        return f"{self._sum:032x}"


def hashed(id: str) -> int:
    return int.from_bytes(blake2b(id.encode(), digest_size=8).digest())


class Ids:
    """How many of the ids that went by are different ones: 8 bytes are kept of each."""

    def __init__(self) -> None:
        self._seen = array("Q")

    def add(self, id: str) -> None:
        self._seen.append(hashed(id))

    def different(self) -> int:
        return len(np.unique(np.array(self._seen, np.uint64)))

    def without(self, others: Ids) -> set[int]:
        """The hashes of those that `others` has not: `hashed` of an id."""
        found = np.setdiff1d(np.array(self._seen, np.uint64), np.array(others._seen, np.uint64))
        return set(found.tolist())


class Sample:
    """The documents with the lowest hashes of their ids: the same ones whatever order they come in."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str, NDArray[np.float32]]] = []

    def add(self, record: Record) -> None:
        entry = (-hashed(record.id), record.id)
        if any(entry == one[:2] for one in self._heap):
            return
        if len(self._heap) < SAMPLE:
            heapq.heappush(self._heap, (*entry, record.vector.copy()))
        elif entry > self._heap[0][:2]:
            heapq.heapreplace(self._heap, (*entry, record.vector.copy()))

    def vectors(self) -> list[NDArray[np.float32]]:
        return [vector for _, _, vector in sorted(self._heap, key=lambda one: one[:2])]


class Nearest:
    """The nearest of the documents that went by, for each of some queries: what a source without a search has."""

    def __init__(self, queries: Sequence[NDArray[np.float32]], metric: Metric) -> None:
        self._queries = np.stack(queries).astype(np.float64)
        self._metric = metric
        self._found: list[list[float]] = [[] for _ in queries]

    def add(self, records: Sequence[Record]) -> None:
        vectors = np.stack([one.vector for one in records])
        for query, found in zip(self._queries, self._found, strict=True):
            found[:] = heapq.nsmallest(NEIGHBOURS, [*found, *distances(query, vectors, self._metric).tolist()])

    def found(self) -> list[list[float]]:
        """Distances, nearest first."""
        return self._found


def distances(query: NDArray[Any], vectors: NDArray[Any], metric: Metric) -> NDArray[np.float64]:
    """Of each of the vectors (count, dimensions) to the query, in float64."""
    one, many = query.astype(np.float64), vectors.astype(np.float64)
    if metric is Metric.L2:
        found: NDArray[np.float64] = np.sqrt(((many - one) ** 2).sum(axis=1))
    elif metric is Metric.DOT:
        found = -(many @ one)
    else:
        lengths = np.sqrt((many**2).sum(axis=1)) * np.sqrt((one**2).sum())
        found = 1 - (many @ one) / np.where(lengths == 0, 1.0, lengths)
    return found


def agreeing(source: Sequence[float], target: Sequence[float]) -> float:
    """The share of the target's neighbours that the source has, or others as near. Both: distances, lower is nearer."""
    if not target:
        return 0.0 if source else 1.0
    bound = NEAR * max(1.0, *(abs(one) for one in target))
    limit = max(target) + bound
    return min(1.0, sum(one <= limit for one in source) / len(target))


def ascending(found: Sequence[float]) -> bool:
    """Whether distances are in order, but for ties."""
    return all(b - a >= -NEAR * max(1.0, abs(a)) for a, b in pairwise(found))


def kinds_of(records: Iterable[Record]) -> dict[str, str]:
    """Keys of the metadata of some documents, with the JSON types of their values."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        data = metadata_bytes(record.metadata)
        held = msgspec.json.decode(data) if data else {}
        for key, value in held.items() if isinstance(held, Mapping) else [("(itself)", held)]:
            found[key][_kind(value)] += 1
    return {key: ", ".join(sorted(kinds)) for key, kinds in sorted(found.items())}


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    named = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return named.get(type(value), "object")
