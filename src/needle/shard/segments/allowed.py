"""Which ordinals count for a search, and what searches made of them, so that the next one need not make it again.

It must not know filters or documents.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
from pyroaring import BitMap

from needle.shard.arrays import Bools, Ints
from needle.shard.segments.sealed import SealedSegment


class Allowed:
    """Never changes, so it may be kept and shared by threads; each of two that ask at once makes what it needs."""

    __slots__ = ("_locals", "_masks", "_ordinals", "bitmap")

    def __init__(self, bitmap: BitMap) -> None:
        """bitmap: must not be changed any more."""
        self.bitmap = bitmap
        self._ordinals: Ints | None = None
        self._locals: WeakKeyDictionary[SealedSegment, Ints] = WeakKeyDictionary()
        self._masks: WeakKeyDictionary[SealedSegment, tuple[Bools | None, Bools]] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self.bitmap)

    def ordinals(self) -> Ints:
        """Ascending."""
        if self._ordinals is None:
            self._ordinals = np.array(self.bitmap.to_array(), np.int64) if self.bitmap else np.empty(0, np.int64)
        return self._ordinals

    def locals_of(self, sealed: SealedSegment) -> Ints:
        """The rows of a file that are allowed, ascending."""
        found = self._locals.get(sealed)
        if found is None:
            ordinals, segment = self.ordinals(), sealed.segment
            first, end = np.searchsorted(ordinals, (segment.first, segment.last + 1))
            found = self._locals[sealed] = sealed.locals_of(ordinals[first:end])
        return found

    def mask(self, sealed: SealedSegment, live: Bools | None) -> Bools:
        """(rows,) True for those that are allowed and live (None: all are)."""
        held = self._masks.get(sealed)
        if held is None or held[0] is not live:
            mask = np.zeros(sealed.rows, np.bool_)
            mask[self.locals_of(sealed)] = True
            held = self._masks[sealed] = live, mask if live is None else mask & live
        return held[1]

    @property
    def nbytes(self) -> int:
        """What it takes at most once searches have used it: 16 bytes for each ordinal, one for each row of a file."""
        return 18 * len(self.bitmap) + (self.bitmap.max() if self.bitmap else 0) + 1024
