"""Named vectors in commands: those that documents have beside the vector without a name (docs/adr/0118)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from needle.base.dtypes import DType


class Named(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Named vectors of some documents of a command. vector: the name that it has inside the shard. rows: the places of
    these documents among the command's ids, ascending. vectors, dtype: as in Insert, one for each of `rows`."""

    vector: str
    rows: list[int]
    vectors: bytes
    dtype: DType = DType.FLOAT32

    def each(self) -> list[memoryview]:
        """Its vectors."""
        width, block = len(self.vectors) // max(1, len(self.rows)), memoryview(self.vectors)
        return [block[at * width : (at + 1) * width] for at in range(len(self.rows))]


def taken(named: Named, keep: Sequence[int]) -> Named:
    """Of the documents at these places only, which ascend, and are the command's from now on."""
    if not named.rows:
        return named
    width, rows = len(named.vectors) // len(named.rows), memoryview(named.vectors)
    found, at = list[tuple[int, int]](), 0
    for place, row in enumerate(keep):  # what is kept may be a small part of it, one of many
        at = bisect_left(named.rows, row, at)
        if at == len(named.rows):
            break
        if named.rows[at] == row:
            found.append((place, at))
    block = b"".join(rows[at * width : (at + 1) * width] for _, at in found)
    return Named(named.vector, [at for at, _ in found], block, named.dtype)


def taken_of(named: Sequence[Named], keep: Sequence[int]) -> list[Named]:
    """The same of all names that some of these documents have."""
    return [one for one in (taken(all_, keep) for all_ in named) if one.rows]
