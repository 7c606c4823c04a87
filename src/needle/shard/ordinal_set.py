"""An immutable set of ordinals whose changed copy costs what changed, not what it holds.

A collection's live ordinals: every batch of log entries makes a new set, and views keep theirs. Blocks of 65,536
ordinals are bitmaps in a persistent map, so a change copies the blocks that it touches (at most 8 KiB each) and shares
the others; a block without members is dropped. So neither memory nor time grows with ordinals that were used up.

It must not know collections or documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import immutables
import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

BLOCK_BITS: Final = 16
BLOCK: Final = 1 << BLOCK_BITS

_Blocks = immutables.Map[int, BitMap]


class OrdinalSet:
    """Members are below 2^32. Never changes; every method may be called from any thread."""

    __slots__ = ("_bitmap", "_blocks")

    def __init__(self, blocks: _Blocks | None = None) -> None:
        """Use `of`, and `changed`."""
        self._blocks = immutables.Map() if blocks is None else blocks
        self._bitmap: BitMap | None = None

    @staticmethod
    def of(ordinals: npt.NDArray[np.uint32]) -> OrdinalSet:
        """A set of these, in any order."""
        whole = np.sort(ordinals)
        blocks = whole >> BLOCK_BITS
        starts = np.flatnonzero(np.diff(blocks, prepend=blocks[:1] + 1)) if len(whole) else np.empty(0, np.int64)
        parts = np.split(whole, starts[1:])
        return OrdinalSet(immutables.Map({int(part[0]) >> BLOCK_BITS: BitMap(part) for part in parts if len(part)}))

    def changed(self, first: int, end: int, without: Sequence[int]) -> OrdinalSet:
        """With the ordinals [first, end), then without those of `without`."""
        blocks: dict[int, BitMap] = {}
        for at in range(first >> BLOCK_BITS, -(-end >> BLOCK_BITS) if end > first else 0):
            block = blocks[at] = self._copy(at)
            block.add_range(max(first, at << BLOCK_BITS), min(end, (at + 1) << BLOCK_BITS))
        for ordinal in without:
            at = ordinal >> BLOCK_BITS
            if at not in blocks:
                blocks[at] = self._copy(at)
            blocks[at].discard(ordinal)
        if not blocks:
            return self
        edit = self._blocks.mutate()
        for at, block in blocks.items():
            if block:
                edit[at] = block
            elif at in edit:
                del edit[at]
        return OrdinalSet(edit.finish())

    def written(self, ordinals: Sequence[int], without: Sequence[int]) -> OrdinalSet:
        """With these, which ascend, then without those of `without`."""
        if isinstance(ordinals, range):
            return self.changed(ordinals.start, ordinals.stop, without)
        blocks: dict[int, BitMap] = {}
        for ordinal in ordinals:
            if (at := ordinal >> BLOCK_BITS) not in blocks:
                blocks[at] = self._copy(at)
            blocks[at].add(ordinal)
        both = OrdinalSet(self._blocks.update(blocks)) if blocks else self
        return both.changed(0, 0, without)

    def _copy(self, at: int) -> BitMap:
        held = self._blocks.get(at)
        return BitMap() if held is None else BitMap(held)

    def __len__(self) -> int:
        return sum(map(len, self._blocks.values()))

    def __contains__(self, ordinal: int) -> bool:
        held = self._blocks.get(ordinal >> BLOCK_BITS)
        return held is not None and ordinal in held

    def bitmap(self) -> BitMap:
        """All of them; made once, so it must not be changed."""
        if self._bitmap is None:
            self._bitmap = BitMap.union(BitMap(), *self._blocks.values())
        return self._bitmap

    def between(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """The members in [first, last], ascending."""
        parts = [
            np.array(self._blocks[at].to_array(), np.int64)
            for at in sorted(self._blocks)
            if first >> BLOCK_BITS <= at <= last >> BLOCK_BITS
        ]
        found = np.concatenate(parts) if parts else np.empty(0, np.int64)
        return found[np.searchsorted(found, first) : np.searchsorted(found, last, side="right")]

    def pages(self, first: int, last: int, size: int) -> Iterator[npt.NDArray[np.int64]]:
        """The members in [first, last], ascending, at most `size` at a time."""
        for at in sorted(at for at in self._blocks if first >> BLOCK_BITS <= at <= last >> BLOCK_BITS):
            members = self.between(max(first, at << BLOCK_BITS), min(last, ((at + 1) << BLOCK_BITS) - 1))
            for start in range(0, len(members), size):
                yield members[start : start + size]
