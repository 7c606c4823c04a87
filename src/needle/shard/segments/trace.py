"""What a search notes of itself when it is to be explained: which way each part of the vectors went, and how long.

Without a trace the search pays for a comparison with None in each part. The clock is an argument; knows no documents.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from needle.base.explain import SegmentExplanation, Way
from needle.shard.arrays import Bools, Ints


class Ways:
    """How the queries of a search went in one index file: beams, the widest (0: not by the index), and which were
    scored exactly. Those of some queries write to the same arrays."""

    __slots__ = ("_beams", "_exact", "_queries")

    def __init__(self, beams: Ints, exact: Bools, queries: Ints) -> None:
        self._beams, self._exact, self._queries = beams, exact, queries

    @classmethod
    def of(cls, count: int) -> Ways:
        """Of `count` queries, none of which went any way yet."""
        return cls(np.zeros(count, np.int64), np.zeros(count, np.bool_), np.arange(count))

    def some(self, queries: Ints) -> Ways:
        """Of those at these places among these."""
        return Ways(self._beams, self._exact, self._queries[queries])

    def by_index(self, beam: int) -> None:
        """All of these were searched in the file's index."""
        self._beams[self._queries] = np.maximum(self._beams[self._queries], beam)

    def exactly(self) -> None:
        """For all of these each row that counts was scored."""
        self._exact[self._queries] = True

    def told(self, query: int, by: Way) -> tuple[Way, int]:
        """The way of one query, and its beam. by: what the file has, if it has an index."""
        beam = int(self._beams[query])
        exact = bool(self._exact[query])
        if beam:
            return (Way.BOTH if exact else by), beam
        return (Way.EXACT if exact else Way.SKIPPED), 0


class Trace:
    """Of queries that are searched together. clock: seconds."""

    def __init__(self, queries: int, clock: Callable[[], float]) -> None:
        self._queries = queries
        self.clock = clock
        self._parts: list[tuple[SegmentExplanation, Ways | None, Way]] = []

    def ways(self) -> Ways:
        """To be handed to the search of one index file."""
        return Ways.of(self._queries)

    def searched(
        self,
        first: int,
        last: int,
        rows: int,
        allowed: int,
        since: float,
        ways: Ways | None = None,
        by: Way = Way.GRAPH,
    ) -> None:
        """A part was searched since that instant; without `ways`, growing rows. by: as in Ways.told."""
        way = Way.GROWING if allowed else Way.SKIPPED
        milliseconds = round(1000 * (self.clock() - since), 3)
        part = SegmentExplanation(
            way=way, first=first, last=last, rows=rows, allowed=allowed, ef=0, milliseconds=milliseconds
        )
        self._parts.append((part, ways, by))

    def segments(self, query: int) -> list[SegmentExplanation]:
        """What one query's search did, by ordinals."""
        return sorted((_told(part, ways, by, query) for part, ways, by in self._parts), key=lambda part: part.first)


def _told(part: SegmentExplanation, ways: Ways | None, by: Way, query: int) -> SegmentExplanation:
    if ways is None:
        return part
    way, ef = ways.told(query, by)
    return msgspec.structs.replace(part, way=way, ef=ef)
