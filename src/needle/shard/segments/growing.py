"""Vectors that no index covers yet: preallocated chunks of what is stored, searched exactly.

Invariant: a `Chunk` never changes once a reader can see it. Rows are appended behind the part that published chunks
count (`rows`); a tombstone or a removal makes a new Chunk that shares the memory. So a reader holds a consistent set
without a lock. It does not know segments' files, SQLite or collections.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from needle.base.dtypes import StoredRows, VectorForm
from needle.base.errors import Internal
from needle.shard.segments.scoring import Bools, Floats, Ints, Scan, square_norms

CHUNK_ROWS_FIRST = 4
CHUNK_ROWS_MIN = 64
CHUNK_ROWS_MAX = 8192
PAGES_BYTES = 1 << 20
"""A chunk of fewer bytes, or of fewer rows than CHUNK_ROWS_MIN, is copied into one twice as large once it is full: most
collections may be small, and a scan takes some fifty microseconds a chunk, whatever it holds. Larger ones stay, and
have pages of their own."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """`rows` vectors with ascending ordinals. Arrays may be longer than `rows`. norms: squared lengths of the stored
    numbers. live: None when no row is dead. norm_max: no row that is scored is longer. grows: once it is full it may be
    replaced by a larger copy."""

    vectors: StoredRows
    ordinals: Ints
    norms: Floats
    rows: int
    live: Bools | None
    norm_max: float
    grows: bool = False

    @property
    def first(self) -> int:
        return int(self.ordinals[0])

    @property
    def last(self) -> int:
        return int(self.ordinals[self.rows - 1])

    def live_rows(self) -> int:
        return self.rows if self.live is None else int(np.count_nonzero(self.live))

    def count(self, allowed: Ints) -> int:
        """Live rows of the sorted ordinals `allowed`."""
        at = positions(self.ordinals[: self.rows], allowed)
        return len(at) if self.live is None else int(np.count_nonzero(self.live[at]))

    def without(self, dead: Ints) -> Chunk:
        """This chunk with the sorted ordinals `dead` tombstoned (those that it holds)."""
        at = positions(self.ordinals[: self.rows], dead)
        if len(at) == 0:
            return self
        live = np.ones(self.rows, np.bool_) if self.live is None else self.live.copy()
        live[at] = False
        return replace(self, live=live)

    def slice(self, start: int, stop: int) -> Chunk:
        """Rows start..stop as a chunk of its own, memory copied so that the rest can be freed."""
        return Chunk(
            self.vectors[start:stop].copy(),
            self.ordinals[start:stop].copy(),
            self.norms[start:stop].copy(),
            stop - start,
            None if self.live is None else self.live[start:stop].copy(),
            self.norm_max,
        )

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Row numbers (start, stop) of the ordinals [first, last]."""
        ordinals = self.ordinals[: self.rows]
        return int(np.searchsorted(ordinals, first)), int(np.searchsorted(ordinals, last, side="right"))

    def live_between(self, first: int, last: int) -> int:
        """Live rows with ordinals in [first, last]."""
        start, stop = self.span(first, last)
        return stop - start if self.live is None else int(np.count_nonzero(self.live[start:stop]))

    def rows_of(self, first: int, last: int) -> tuple[Ints, StoredRows]:
        """Live rows with ordinals in [first, last]: (ordinals, vectors)."""
        ordinals = self.ordinals[: self.rows]
        start, stop = self.span(first, last)
        ordinals, vectors = ordinals[start:stop], self.vectors[start:stop]
        if self.live is None:
            return ordinals, vectors
        live = self.live[start:stop]
        return ordinals[live], vectors[live]


class GrowingSegment:
    """An immutable set of chunks, ascending by ordinal. Mutators return a new GrowingSegment.

    Only the newest one may be appended to, by one thread at a time.
    """

    def __init__(self, form: VectorForm, chunks: tuple[Chunk, ...] = ()) -> None:
        self._form = form
        self._small = min(max(CHUNK_ROWS_MIN, -(-PAGES_BYTES // form.row_bytes)), CHUNK_ROWS_MAX)
        self.chunks = chunks

    def __len__(self) -> int:
        """Live rows."""
        return sum(chunk.live_rows() for chunk in self.chunks)

    @property
    def norm_max(self) -> float:
        return max((chunk.norm_max for chunk in self.chunks), default=0.0)

    def bytes_held(self) -> int:
        """Memory of the vectors, reserved rows included."""
        return sum(chunk.vectors.nbytes for chunk in self.chunks)

    def live_between(self, first: int, last: int) -> int:
        """Live rows with ordinals in [first, last]."""
        return sum(c.live_between(first, last) for c in self.chunks if c.last >= first and c.first <= last)

    def count(self, allowed: Ints) -> int:
        """Live rows of the sorted ordinals `allowed`."""
        return sum(chunk.count(allowed) for chunk in self.chunks)

    def appended(self, ordinals: Ints, vectors: StoredRows) -> GrowingSegment:
        """With rows added. ordinals: (n,) ascending, above every ordinal held. vectors: as they are stored."""
        if self.chunks and len(ordinals) and int(ordinals[0]) <= self.chunks[-1].last:
            raise Internal(f"ordinal {int(ordinals[0])} appended after {self.chunks[-1].last}")
        chunks, done = list(self.chunks), 0
        while done < len(ordinals):
            left = len(ordinals) - done
            if chunks and chunks[-1].rows < len(chunks[-1].vectors):
                tail = chunks.pop()
            elif chunks and chunks[-1].grows:
                tail = self._grown(chunks.pop(), left)
            else:
                tail = self._new_chunk(chunks, left)
            take = min(len(tail.vectors) - tail.rows, len(ordinals) - done)
            chunks.append(_fill(self._form, tail, ordinals[done : done + take], vectors[done : done + take]))
            done += take
        return GrowingSegment(self._form, tuple(chunks))

    def _new_chunk(self, chunks: list[Chunk], wanted: int) -> Chunk:
        """Doubling up to CHUNK_ROWS_MAX, so that thousands of small collections stay small."""
        doubled = 2 * len(chunks[-1].vectors) if chunks else CHUNK_ROWS_FIRST
        return self._empty_chunk(min(max(doubled, min(wanted, self._small)), CHUNK_ROWS_MAX))

    def _empty_chunk(self, capacity: int) -> Chunk:
        vectors, ordinals = _room(capacity, self._form), np.empty(capacity, np.int64)
        grows = capacity < self._small
        return Chunk(vectors, ordinals, np.empty(capacity, np.float32), 0, None, 0.0, grows)

    def _grown(self, full: Chunk, wanted: int) -> Chunk:
        """A copy of a small chunk, with room, and without the dead if these are most of it: then it is no larger.
        Readers keep the one that they have."""
        if 2 * full.live_rows() < full.rows:
            full = _copied(full)
        rows = full.rows
        larger = self._empty_chunk(min(max(2 * rows, rows + wanted, CHUNK_ROWS_FIRST), self._small))
        larger.vectors[:rows], larger.ordinals[:rows], larger.norms[:rows] = full.vectors, full.ordinals, full.norms
        return replace(larger, rows=rows, live=full.live, norm_max=full.norm_max)

    def without(self, dead: Ints) -> GrowingSegment:
        """With the sorted ordinals `dead` tombstoned; ordinals that are not here do not matter."""
        if not len(dead):
            return self
        lowest, highest = int(dead[0]), int(dead[-1])
        chunks = list(self.chunks)
        for at, chunk in enumerate(chunks):
            if chunk.last < lowest or chunk.first > highest:
                continue
            start, stop = np.searchsorted(dead, chunk.first), np.searchsorted(dead, chunk.last, side="right")
            if stop > start:
                chunks[at] = chunk.without(dead[start:stop])
        return GrowingSegment(self._form, tuple(chunks))

    def compacted(self, first: int) -> GrowingSegment:
        """With full chunks from ordinal `first` on copied without their dead rows once these are more than half, so
        that overwriting the same documents forever neither fills the memory nor slows scans. Neighbours that then fit
        are joined; a row is copied about once each time its chunk halves.

        From `first` on no segment may be served from a file: a joined chunk could span it.
        """
        if not any(_mostly_dead(chunk, first) for chunk in self.chunks):
            return self
        chunks: list[Chunk] = []
        for chunk in self.chunks:
            if not _mostly_dead(chunk, first):
                chunks.append(chunk)
            elif live := chunk.live_rows():
                before = chunks[-1] if chunks else None
                joins = before is not None and before.first >= first and before.live_rows() + live <= CHUNK_ROWS_MAX
                chunks.append(_copied(*((chunks.pop(), chunk) if joins else (chunk,))))
        return GrowingSegment(self._form, tuple(chunks))

    def removed(self, first: int, last: int) -> GrowingSegment:
        """Without the rows [first, last], which an index serves now."""
        chunks: list[Chunk] = []
        for chunk in self.chunks:
            if chunk.last < first or chunk.first > last:
                chunks.append(chunk)
                continue
            start, stop = chunk.span(first, last)
            if start > 0:
                chunks.append(chunk.slice(0, start))
            if stop < chunk.rows:
                chunks.append(chunk.slice(stop, chunk.rows))
        return GrowingSegment(self._form, tuple(chunks))

    def closed(self) -> GrowingSegment:
        """With no room left in the last chunk: the next rows start a chunk of their own, so that no chunk spans the
        range of a segment that is served from a file."""
        if not self.chunks:
            return self
        tail = self.chunks[-1]
        tail = replace(tail, vectors=tail.vectors[: tail.rows], grows=False)
        return GrowingSegment(self._form, (*self.chunks[:-1], tail))

    def inserted(self, other: GrowingSegment) -> GrowingSegment:
        """With the chunks of `other`, whose ordinal range lies between two chunks of this one (rows that come back
        because a segment's file was lost)."""
        chunks = sorted((*self.chunks, *other.chunks), key=lambda chunk: chunk.first)
        for left, right in pairwise(chunks):
            if left.last >= right.first:
                raise Internal(f"growing chunks overlap at ordinal {right.first}")
        return GrowingSegment(self._form, tuple(chunks))

    def blocks(self, first: int, last: int) -> Iterator[tuple[Ints, StoredRows]]:
        """Live rows of [first, last] in order, a chunk at a time."""
        for chunk in self.chunks:
            if chunk.last >= first and chunk.first <= last:
                yield chunk.rows_of(first, last)

    def ordinal_of(self, row: int, first: int) -> int:
        """Of the live row with this number, from 0 on, among those with ordinals from `first` on. There are so many."""
        for chunk in self.chunks:
            here = chunk.live_between(first, chunk.last)
            if row < here:
                return int(chunk.rows_of(first, chunk.last)[0][row])
            row -= here
        raise Internal("fewer rows than were counted")

    def scan(self, scan: Scan, allowed: Ints | None) -> None:
        """Score every live row (of the sorted ordinals `allowed`)."""
        for chunk in self.chunks:
            ordinals = chunk.ordinals[: chunk.rows]
            mask = chunk.live
            if allowed is not None:
                start, stop = np.searchsorted(allowed, chunk.first), np.searchsorted(allowed, chunk.last, side="right")
                if start == stop:
                    continue
                inside = _member(ordinals, allowed[start:stop])
                mask = inside if mask is None else mask & inside
            rows = chunk.vectors[: chunk.rows]
            if self._form.bits:
                scan.add_bits(self._form, rows, ordinals, mask)
            elif self._form.divides:
                scan.add_stored(self._form, rows, ordinals, mask, np.sqrt(chunk.norms[: chunk.rows]))
            else:
                scan.add(self._form.scored(rows), ordinals, mask, chunk.norms[: chunk.rows])


def _room(rows: int, form: VectorForm) -> StoredRows:
    """(rows, numbers) to be filled. Large ones are pages of their own, which go back to the system the
    moment an index serves the rows; the C library would keep them, in pieces, for as long as the process lives."""
    size = rows * form.row_bytes
    if size < PAGES_BYTES:
        return np.empty((rows, form.numbers), form.array)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return form.rows(pages)


def _fill(form: VectorForm, chunk: Chunk, ordinals: Ints, vectors: StoredRows) -> Chunk:
    rows = chunk.rows + len(ordinals)
    chunk.vectors[chunk.rows : rows] = vectors
    chunk.ordinals[chunk.rows : rows] = ordinals
    # Where what is scored would be divided by its length, that is what a scan needs to know.
    norms = square_norms(form.widened(vectors) if form.divides else form.scored(vectors))
    chunk.norms[chunk.rows : rows] = norms
    live = chunk.live
    if live is not None:
        live = np.concatenate((live, np.ones(len(ordinals), np.bool_)))
    # Kept a little high: it bounds a rounding error.
    longest = 1.0 if form.divides else float(np.sqrt(norms.max()))
    norm_max = max(chunk.norm_max, longest * 1.001)
    return Chunk(chunk.vectors, chunk.ordinals, chunk.norms, rows, live, norm_max, chunk.grows)


def _mostly_dead(chunk: Chunk, first: int) -> bool:
    full = chunk.rows == len(chunk.vectors)
    return full and chunk.live is not None and chunk.first >= first and 2 * chunk.live_rows() < chunk.rows


def _copied(*chunks: Chunk) -> Chunk:
    """The live rows of neighbouring chunks as one."""
    live = [slice(0, chunk.rows) if chunk.live is None else np.flatnonzero(chunk.live) for chunk in chunks]
    parts = list(zip(chunks, live, strict=True))
    ordinals = np.concatenate([chunk.ordinals[rows] for chunk, rows in parts])
    return Chunk(
        np.concatenate([chunk.vectors[rows] for chunk, rows in parts]),
        ordinals,
        np.concatenate([chunk.norms[rows] for chunk, rows in parts]),
        len(ordinals),
        None,
        max(chunk.norm_max for chunk in chunks),
    )


def positions(ordinals: Ints, wanted: Ints) -> Ints:
    """Where the sorted `ordinals` hold members of the sorted `wanted`: ascending indexes into `ordinals`."""
    at = np.searchsorted(ordinals, wanted)
    inside = at < len(ordinals)
    at = at[inside]
    found: Ints = at[ordinals[at] == wanted[inside]]
    return found


def _member(ordinals: Ints, allowed: Ints) -> Bools:
    mask = np.zeros(len(ordinals), np.bool_)
    mask[positions(ordinals, allowed)] = True
    return mask
