"""How many bytes the entries of one group's log take, by index: where to cut it for a bound in bytes.

Invariant: covers the consecutive entries after `start`; 8 bytes of memory an entry. It must not know what they hold.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable

ENTRY_OVERHEAD = 64
"""Bytes that an entry takes beside its data: key, checksums, header."""


class LogSizes:
    """Sums of bytes up to each entry."""

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self._before = 0  # the sum up to `start`
        self._sums = array("Q")

    @property
    def last(self) -> int:
        """The last entry that is covered; `start` if there is none."""
        return self.start + len(self._sums)

    @property
    def total(self) -> int:
        """Bytes of all entries."""
        return (self._sums[-1] if self._sums else self._before) - self._before

    def append(self, sizes: Iterable[int]) -> None:
        """The next entries hold so many bytes of data each."""
        at = self._sums[-1] if self._sums else self._before
        self._sums.extend([at := at + size + ENTRY_OVERHEAD for size in sizes])

    def cut(self, first: int) -> None:
        """Entries from `first` on are gone."""
        del self._sums[max(0, first - self.start - 1) :]

    def drop(self, start: int) -> None:
        """The log starts after `start` now."""
        gone = start - self.start
        if gone > 0:
            if gone <= len(self._sums):
                self._before = self._sums[gone - 1]
            elif self._sums:
                self._before = self._sums[-1]
            del self._sums[:gone]
            self.start = start

    def after(self, index: int) -> int:
        """Bytes of the entries after `index` that it has: while a snapshot is installed it may start behind that."""
        if index <= self.start:
            return self.total
        return self._sums[-1] - self._sums[index - self.start - 1] if index < self.last else 0

    def within(self, bytes_max: int) -> int:
        """The lowest index after which the entries take at most bytes_max."""
        if self.total <= bytes_max:
            return self.start
        return self.start + 1 + bisect_left(self._sums, self._sums[-1] - bytes_max)
