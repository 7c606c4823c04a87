"""Hits that were chosen to be unlike each other, or put in the order of a field, against what the logs say.

What is near is scatter.py's to say. Here: each hit was worth no less than any other that could have stood in its place,
by maximal marginal relevance; and hits stand in the order of their values, equal ones as near as they are. Of an exact
search whose shards say at which index they were searched, all candidates are known, so the pool of the nearest is, too,
but for a few of whose writes nobody knows the fate. Of others it is known that the hits themselves were candidates. The
rules are those of docs/documents.md, written anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from proof.checkers.replay import TOLERANCE, ModelDocument, distances
from proof.checkers.violation import Violation

NAME = "search shape"
GROUPED_BY, VALUES = "n", 10
"""A field of all documents of the workload, and how many values it has."""
POOL_LEAST, POOL_MOST, POOL_TIMES = 100, 1000, 4
Hit = tuple[str, int, float]
"""id, version, distance."""


class Shaping(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a search asks for beside the nearest. of_each: so many hits of each value of GROUPED_BY in place of k.
    diversify, pool, order_by, descending: as the product's search has them."""

    of_each: int = 0
    diversify: float | None = None
    pool: int | None = None
    order_by: str | None = None
    descending: bool = False

    def options(self, k: int) -> dict[str, Any]:
        """What a search is given, in Python as by HTTP."""
        if self.of_each:
            return {"k": VALUES, "group_by": GROUPED_BY, "group_size": self.of_each}
        how: dict[str, Any] = {"k": k}
        if self.diversify is not None:
            how |= {"diversify": self.diversify, "pool": self.pool}
        return how | ({"order_by": self.order_by, "descending": self.descending} if self.order_by is not None else {})

    def by_distance(self) -> bool:
        """Whether hits come nearest first."""
        return self.diversify is None and self.order_by is None

    def plain(self) -> bool:
        """Whether nothing is asked for beside the nearest."""
        return not self.of_each and self.by_distance()

    def candidates(self, k: int) -> int:
        """How many of the nearest the hits are chosen of."""
        return self.pool if self.pool is not None else min(POOL_MOST, max(POOL_LEAST, POOL_TIMES * k))


PLAIN = Shaping()


class Shaped(msgspec.Struct, frozen=True, kw_only=True):
    """An answer. documents: of each hit, as the log has it. others: all documents that could be hits, with the hits,
    by id; None where they are not known. doubts: so many more there may have been, at most."""

    label: str
    shaping: Shaping
    vector: Any
    k: int
    metric: str
    hits: Sequence[Hit]
    documents: Sequence[ModelDocument]
    others: Mapping[str, ModelDocument] | None = None
    doubts: int = 0


def check_shaped(seen: Shaped) -> None:
    """Raises Violation."""
    if seen.hits and seen.shaping.diversify is not None:
        _check_varied(seen, seen.shaping.diversify)
    if seen.shaping.order_by is not None:
        _check_order(seen, seen.shaping.order_by)


# --- unlike each other -----------------------------------------------------------------------------------------------
def _check_varied(seen: Shaped, weight: float) -> None:
    rows = np.array([one.vector for one in seen.documents], np.float64)
    far = distances(seen.vector, rows, seen.metric)
    names = [name for name, _, _ in seen.hits]
    more = _pool(seen, far)
    every, others = [*names, *more], [one.vector for one in more.values()]
    vectors = np.array([*rows, *others], np.float64)
    distance = distances(seen.vector, vectors, seen.metric)
    order: Sequence[int] = range(len(names))
    if seen.shaping.order_by is not None:  # in which order they were taken, they do not tell
        taken = _taken(rows, far, weight, seen.metric)
        if taken is None:
            return
        order = taken
    left, before = set(range(len(every))), list[int]()
    for at in order:
        worth = _worth(vectors, distance, before, weight, seen.metric)
        left.discard(at)
        better = [n for n in left if worth[n] > worth[at] + TOLERANCE * max(1.0, abs(worth[at]))]
        if better:
            best = max(better, key=lambda n: float(worth[n]))
            raise Violation(
                NAME,
                f"{seen.label}: {every[at]} was taken behind {[every[n] for n in before]} for {worth[at]:.6f}, and "
                f"{every[best]} was worth {worth[best]:.6f}",
            )
        before.append(at)


def _pool(seen: Shaped, far: Any) -> dict[str, ModelDocument]:
    """What was surely a candidate beside the hits. Raises Violation for a hit that was none."""
    if not seen.others:
        return {}
    names, found = list(seen.others), [one.vector for one in seen.others.values()]
    near = distances(seen.vector, np.array(found, np.float64), seen.metric)
    size = seen.shaping.candidates(seen.k)
    end = np.sort(near)[size - 1] if size < len(near) else np.inf
    slack = TOLERANCE * max(1.0, abs(end)) if np.isfinite(end) else 0.0
    for (name, _, _), distance in zip(seen.hits, far, strict=True):
        if distance > end + slack:
            raise Violation(
                NAME, f"{seen.label}: {name} at {distance:.6f} is none of the {size} nearest, up to {end:.6f}"
            )
    hits, surely = {name for name, _, _ in seen.hits}, end
    if len(near) > (places := size - seen.doubts):  # so many of these are candidates at least
        surely = np.sort(near)[places - 1] if places > 0 else -np.inf
        slack = TOLERANCE * max(1.0, abs(surely)) if np.isfinite(surely) else 0.0
    return {
        name: seen.others[name]
        for name, distance in zip(names, near, strict=True)
        if name not in hits and distance < surely - slack
    }


def _worth(vectors: Any, distance: Any, taken: Sequence[int], weight: float, metric: str) -> Any:
    if not taken:
        return -distance
    apart = np.min([distances(vectors[at], vectors, metric) for at in taken], axis=0)
    return weight * apart - (1 - weight) * distance


def _taken(rows: Any, far: Any, weight: float, metric: str) -> list[int] | None:
    """In which order these were taken; None if two of them were worth the same."""
    order, left = list[int](), set(range(len(far)))
    while left:
        worth = _worth(rows, far, order, weight, metric)
        first, *rest = sorted(left, key=lambda at: -float(worth[at]))
        if rest and worth[first] - worth[rest[0]] < 2 * TOLERANCE * max(1.0, abs(worth[first])):
            return None
        order.append(first)
        left.discard(first)
    return order


# --- in order --------------------------------------------------------------------------------------------------------
def _check_order(seen: Shaped, field: str) -> None:
    down = seen.shaping.descending
    values = {
        hit: _value(document.metadata, field, descending=down)
        for hit, document in zip(seen.hits, seen.documents, strict=True)
    }
    near = sorted(seen.hits, key=lambda hit: (hit[2], hit[0]))
    there = sorted((hit for hit in near if values[hit]), key=lambda hit: values[hit] or (), reverse=down)
    wanted = there + [hit for hit in near if not values[hit]]
    if wanted != list(seen.hits):
        told = [(name, values[hit], hit[2]) for hit in seen.hits for name in hit[:1]]
        raise Violation(
            NAME, f"{seen.label}: in the order of {field}, {'down' if down else 'up'}, came {told}, not {wanted}"
        )


def _value(metadata: Any, field: str, *, descending: bool) -> tuple[Any, ...]:
    """By what a document is ordered: numbers before texts before truths; () without any."""
    found = metadata
    for name in field.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    keys = [_key(one) for one in (found if isinstance(found, list) else [found]) if isinstance(one, str | int | float)]
    return (max(keys) if descending else min(keys)) if keys else ()


def _key(value: str | int | float) -> tuple[Any, ...]:
    return (2, value) if isinstance(value, bool) else (1, value) if isinstance(value, str) else (0, value)
