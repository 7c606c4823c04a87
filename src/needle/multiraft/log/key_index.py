"""Where each live key's value stands in the write-ahead log, in key order. In memory; no I/O.

Keys are kept in sorted buckets by their first bytes (a Raft group's entries share them), so that appending to one
group's log does not move the keys of the others.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PREFIX_BYTES = 6


class Place(NamedTuple):
    """Segment number, offset of the value in its file, length of the value."""

    segment: int
    offset: int
    length: int


_place = tuple.__new__
"""A NamedTuple's own is a Python function."""


class KeyIndex:
    """Key -> Place, ordered. `live` counts the bytes of values that stand in each segment and are still current."""

    def __init__(self) -> None:
        self._places: dict[bytes, Place] = {}
        self._buckets: dict[bytes, list[bytes]] = {}
        self.live: Counter[int] = Counter()
        self._written: dict[int, list[bytes]] = {}  # by segment: the keys whose values were written there

    def get(self, key: bytes) -> Place | None:
        return self._places.get(key)

    def put(self, segment: int, run: Sequence[tuple[bytes, int, int]]) -> None:
        """Set keys whose values were written to one segment, (key, offset, length) each; their former places are
        dead."""
        if not run:
            return
        places, live = self._places, 0
        prefix: bytes | None = None
        bucket: list[bytes] = []
        for key, offset, length in run:
            former = places.get(key)
            if former is not None:
                self.live[former.segment] -= _cost(key, former)
            else:
                if key[:PREFIX_BYTES] != prefix:
                    prefix = key[:PREFIX_BYTES]
                    bucket = self._buckets.setdefault(prefix, [])
                if not bucket or key > bucket[-1]:
                    bucket.append(key)
                else:
                    bucket.insert(bisect_left(bucket, key), key)
            places[key] = _place(Place, (segment, offset, length))
            live += len(key) + length
        self._written.setdefault(segment, []).extend([key for key, _, _ in run])
        self.live[segment] += live

    def delete_range(self, start: bytes, end: bytes) -> None:
        """Forget every key in [start, end)."""
        for prefix in self._prefixes(start, end):
            bucket = self._buckets[prefix]
            low, high = bisect_left(bucket, start), bisect_left(bucket, end)
            for key in bucket[low:high]:
                place = self._places.pop(key)
                self.live[place.segment] -= _cost(key, place)
            del bucket[low:high]
            if not bucket:
                del self._buckets[prefix]

    def delete(self, key: bytes) -> None:
        self.delete_range(key, key + b"\0")

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, Place]]:
        """Keys in [start, end) in order."""
        for prefix in self._prefixes(start, end):
            bucket = self._buckets[prefix]
            for key in bucket[bisect_left(bucket, start) : bisect_left(bucket, end)]:
                yield key, self._places[key]

    def in_segment(self, segment: int) -> list[bytes]:
        """The keys whose value stands in `segment`."""
        places, written = self._places, self._written.get(segment, ())
        return sorted({key for key in written if (place := places.get(key)) is not None and place.segment == segment})

    def forget(self, segment: int) -> None:
        """No value stands in `segment` any more."""
        del self.live[segment]
        self._written.pop(segment, None)

    def _prefixes(self, start: bytes, end: bytes) -> list[bytes]:
        first = start[:PREFIX_BYTES]
        return sorted(prefix for prefix in self._buckets if first <= prefix < end)


def _cost(key: bytes, place: Place) -> int:
    return len(key) + place.length
