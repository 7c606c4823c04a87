"""Sorted columns of one field's values: which ordinals have a value, or one within bounds, as slices of arrays.

A column holds the different keys of one type ascending, and for each key the ordinals that have it. It is immutable;
columns of consecutive ordinals are merged into one. All heavy work is numpy's, which lets go of the GIL.

Keys are exact but for texts: one longer than TEXT_BYTES becomes its first bytes, a mark that no UTF-8 has, and a
digest. Such keys tell equality, but not the order among texts that begin alike: those a column reports as undecided.

It must not know operators, documents, or who asks.
"""

from __future__ import annotations

import array
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from needle.base.filters.ordering import HEAD_BYTES
from needle.base.instants import InstantKey

Ordinals = npt.NDArray[np.uint32]

TEXT_BYTES: Final = 64
MARK: Final = b"\xff"
DENSE: Final = 1024
FEW: Final = 32
_CHUNK: Final = 1 << 18


class Match(NamedTuple):
    """sure: ordinals that match. maybe: those that the documents themselves have to decide."""

    sure: BitMap
    maybe: BitMap


class Bounds(NamedTuple):
    """low and high, None for none; whether each is itself inside."""

    low: Any
    low_in: bool
    high: Any
    high_in: bool


class Zone(NamedTuple):
    """Where a bound lies among keys: [lo, hi) equal it, before are smaller ones, from hi on greater ones; except that
    [dim, end), which is empty or comes later, is undecided."""

    lo: int
    hi: int
    dim: int
    end: int


def bitmap(ordinals: Ordinals, *, ascending: bool = False) -> BitMap:
    """A bitmap of ordinals. Holds the GIL for no more than about a millisecond at a time."""
    if not ascending and len(ordinals) > 1:
        first = int(ordinals.min())
        span = int(ordinals.max()) - first + 1
        if span <= 8 * len(ordinals):
            mask = np.zeros(span, np.bool_)
            mask[ordinals - np.uint32(first)] = True
            ordinals = (np.flatnonzero(mask) + first).astype(np.uint32)
        else:
            ordinals = np.sort(ordinals)
    parts = []
    for start in range(0, len(ordinals), _CHUNK):
        words = array.array("I")
        words.frombytes(ordinals[start : start + _CHUNK].tobytes())
        parts.append(BitMap(words))
    return parts[0] if len(parts) == 1 else BitMap.union(BitMap(), *parts)


class Column(ABC):
    """keys: (n,) ascending, different. starts: (n + 1,) int64; key i is had by ordinals[starts[i]:starts[i + 1]]."""

    dtype: ClassVar[Any]
    once: ClassVar[bool] = True
    """Whether an ordinal stands once for a key that it has several times."""

    def __init__(self, keys: npt.NDArray[Any], starts: npt.NDArray[np.int64], ordinals: Ordinals) -> None:
        self.keys, self.starts, self.ordinals = keys, starts, ordinals
        self._dense: dict[int, BitMap] = {}

    @classmethod
    def made(cls, keys: Sequence[Any] | npt.NDArray[Any], ordinals: Sequence[int] | Ordinals) -> Column:
        """From keys and the ordinal of each, in any order."""
        plain, owners = np.asarray(keys, cls.dtype), np.asarray(ordinals, np.uint32)
        order = np.argsort(plain, kind="stable")
        plain, owners = plain[order], owners[order]
        fresh = _fresh(plain)
        if cls.once and len(owners) > 1:  # an array may have one value twice
            keep = fresh | np.concatenate(([True], owners[1:] != owners[:-1]))
            plain, owners, fresh = plain[keep], owners[keep], fresh[keep]
        starts = np.append(np.flatnonzero(fresh), len(plain))
        return cls(plain[fresh], starts, owners)

    @classmethod
    def merged(cls, columns: Sequence[Column]) -> Column:
        """One column of the same; ordinals of an earlier one are smaller than those of a later one."""
        if len(columns) == 1:
            return columns[0]
        keys, starts, where = cls.in_order(columns)
        return cls(keys, starts, np.concatenate([column.ordinals for column in columns])[where])

    @staticmethod
    def in_order(
        columns: Sequence[Column],
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Keys and starts of several in one, and where among theirs, behind each other, each of its ordinals stands."""
        keys = np.concatenate([column.keys for column in columns])
        counts = np.concatenate([np.diff(column.starts) for column in columns])
        order = np.argsort(keys, kind="stable")
        first = (np.cumsum(counts) - counts)[order]
        keys, counts = keys[order], counts[order]
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        fresh = _fresh(keys)
        starts = np.append((ends - counts)[fresh], total)
        return keys[fresh], starts, np.repeat(first - (ends - counts), counts) + np.arange(total)

    @property
    def nbytes(self) -> int:
        """Bytes held, with what bitmaps of frequent keys may come to."""
        return self.keys.nbytes + self.starts.nbytes + self.ordinals.nbytes * 3 // 2 + 500

    def position(self, key: Any, side: Any) -> int:
        """How many keys are smaller (side "left"), or not greater ("right")."""
        return int(np.searchsorted(self.keys, self.keys.dtype.type(key), side))

    @abstractmethod
    def zone(self, value: Any) -> Zone:
        """Where a bound lies."""

    @abstractmethod
    def exact(self, value: Any) -> Any:
        """The key that a value would have in this column; None if it cannot be in it."""

    def first(self, head: Any) -> int:
        """The first key that is not smaller than a value, or a text of HEAD_BYTES at most."""
        return self.zone(head).lo

    def behind(self, head: Any) -> int:
        """The first key that is greater, and does not begin with a text of HEAD_BYTES."""
        return self.zone(head).hi

    def head(self, at: int) -> Any:
        """A key as `first` takes it."""
        return self.keys[at].item()

    def equal(self, values: Sequence[Any]) -> BitMap:
        """The ordinals with any of the values: exactly."""
        wanted = [key for key in map(self.exact, values) if key is not None]
        if not wanted:
            return BitMap()
        needles = np.array(wanted, self.keys.dtype)
        at = np.minimum(np.searchsorted(self.keys, needles), len(self.keys) - 1)
        found = np.unique(at[self.keys[at] == needles]).tolist()
        if len(found) <= FEW:
            return BitMap.union(BitMap(), *map(self._of, found))
        return self.of_slices([(one, one + 1) for one in found])

    def places(self, values: Sequence[Any]) -> list[int]:
        """Of each value the place of its key, -1 if no ordinal has it: exactly."""
        keys = [self.exact(value) for value in values]
        there = [place for place, key in enumerate(keys) if key is not None]
        found = np.full(len(values), -1, np.int64)
        needles = np.array([keys[place] for place in there], self.keys.dtype)
        at = np.minimum(np.searchsorted(self.keys, needles), len(self.keys) - 1)
        found[there] = np.where(self.keys[at] == needles, at, -1)
        return found.tolist()

    def owners(self, place: int) -> BitMap:
        """The ordinals that have the key at a place. Not to be changed."""
        return self._of(place)

    def between(self, bounds: Bounds) -> Match:
        """The ordinals with a value within bounds."""
        start, end = 0, len(self.keys)
        undecided: list[tuple[int, int]] = []
        for bound, inside, is_low in ((bounds.low, bounds.low_in, True), (bounds.high, bounds.high_in, False)):
            if bound is None:
                continue
            zone = self.zone(bound)
            undecided.append((zone.dim, zone.end))
            if is_low:
                start = zone.lo if inside else zone.hi
            else:
                end = zone.hi if inside else zone.lo
        sure, at = [], start
        for dim, stop in sorted(undecided):
            sure.append((at, min(dim, end)))
            at = max(at, stop)
        return Match(self.of_slices([*sure, (at, end)]), self.of_slices(undecided))

    def of_slices(self, slices: Iterable[tuple[int, int]]) -> BitMap:
        """The ordinals of ranges of keys."""
        wanted = [(first, end) for first, end in slices if first < end]
        if wanted == [(0, len(self.keys))]:
            return self._everything()
        parts = [self.ordinals[self.starts[first] : self.starts[end]] for first, end in wanted]
        return bitmap(np.concatenate(parts) if len(parts) != 1 else parts[0]) if parts else BitMap()

    def _everything(self) -> BitMap:
        """The ordinals of all keys, which searches by groups and counts by value ask for each time: kept."""
        held = self._dense.get(-1)
        if held is None:
            held = self._dense[-1] = bitmap(self.ordinals)
        return held

    def _of(self, at: int) -> BitMap:
        """The ordinals of one key; bitmaps of frequent ones are kept."""
        held = self._dense.get(at)
        if held is None:
            held = bitmap(self.ordinals[self.starts[at] : self.starts[at + 1]], ascending=True)
            if len(held) >= DENSE:
                self._dense[at] = held
        return held


def _fresh(keys: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where a sorted array has another key than before."""
    fresh = np.ones(len(keys), np.bool_)
    if len(keys) > 1:
        np.not_equal(keys[1:], keys[:-1], out=fresh[1:])
    return fresh


class Integers(Column):
    """Whole numbers of [-2^63, 2^63), be they written with a fraction or not."""

    dtype: ClassVar[Any] = np.int64
    low: ClassVar[int] = -(2**63)
    high: ClassVar[int] = 2**63

    def exact(self, value: Any) -> Any:
        whole = int(value)
        return whole if whole == value and self.low <= whole < self.high else None

    def zone(self, value: Any) -> Zone:
        if math.isinf(value):
            all_or_none = len(self.keys) if value > 0 else 0
            return Zone(all_or_none, all_or_none, 0, 0)
        whole = math.ceil(value)
        if whole < self.low:
            return Zone(0, 0, 0, 0)
        if whole >= self.high:
            return Zone(len(self.keys), len(self.keys), 0, 0)
        lo = self.position(whole, "left")
        return Zone(lo, self.position(whole, "right") if whole == value else lo, 0, 0)


class LargeIntegers(Integers):
    """Whole numbers of [2^63, 2^64)."""

    dtype = np.uint64
    low = 2**63
    high = 2**64


class Floats(Column):
    """The other numbers that a float is."""

    dtype = np.float64

    def exact(self, value: Any) -> Any:
        return float(value) if float(value) == value else None

    def zone(self, value: Any) -> Zone:
        near = float(value)
        left, right = self.position(near, "left"), self.position(near, "right")
        if near == value:
            return Zone(left, right, 0, 0)
        return Zone(right, right, 0, 0) if near < value else Zone(left, left, 0, 0)


class Times(Column):
    """Instants, as microseconds since 1970; finer ones are not in here."""

    dtype = np.int64

    @staticmethod
    def key(value: InstantKey) -> tuple[int, bool]:
        """Microseconds, rounded down, and whether that is exact."""
        seconds, digits = value
        return seconds * 1_000_000 + int(digits[:6].ljust(6, "0")), len(digits) <= 6

    def exact(self, value: Any) -> Any:
        micros, exact = self.key(value)
        return micros if exact else None

    def zone(self, value: Any) -> Zone:
        micros, exact = self.key(value)
        right = self.position(micros, "right")
        return Zone(self.position(micros, "left") if exact else right, right, 0, 0)


class Texts(Column):
    """Strings without NUL, as UTF-8; see the module docstring."""

    dtype = np.bytes_

    @staticmethod
    def key(text: bytes) -> bytes:
        if len(text) <= TEXT_BYTES:
            return text
        return text[:HEAD_BYTES] + MARK + hashlib.blake2b(text, digest_size=16).digest()

    @staticmethod
    def is_digest(key: bytes) -> bool:
        """Whether a key stands for a longer text."""
        return key[HEAD_BYTES : HEAD_BYTES + 1] == MARK

    def position(self, key: Any, side: Any) -> int:
        width = self.keys.dtype.itemsize
        if len(key) > width:  # no key is as long: those that it begins with are smaller
            key, side = key[:width], "right"
        return int(np.searchsorted(self.keys, np.array(key, self.keys.dtype), side))

    def exact(self, value: Any) -> Any:
        key = self.key(value)
        return key if b"\0" not in value and len(key) <= self.keys.dtype.itemsize else None

    def zone(self, value: Any) -> Zone:
        text, nul, _ = value.partition(b"\0")
        if nul or len(text) > TEXT_BYTES:  # no key equals it; one that it begins with is smaller
            lo = hi = self.position(text[:TEXT_BYTES], "right")
        else:
            lo, hi = self.position(text, "left"), self.position(text, "right")
        return Zone(lo, hi, *self._marked(text))

    def first(self, head: Any) -> int:
        return self.position(head, "left")

    def behind(self, head: Any) -> int:
        return self.position(head, "right") if len(head) < HEAD_BYTES else self.position(head + MARK * 18, "left")

    def head(self, at: int) -> Any:
        return bytes(self.keys[at])[:HEAD_BYTES]

    def _marked(self, text: bytes) -> tuple[int, int]:
        """The keys of long texts that begin as this one does, if it is long enough for them to be undecided."""
        if len(text) < HEAD_BYTES:
            return 0, 0
        head = text[:HEAD_BYTES] + MARK
        return self.position(head, "left"), self.position(head + MARK * 16, "right")

    def starting(self, prefix: bytes) -> Match:
        """The ordinals with a text that starts so."""
        if b"\0" in prefix:
            return Match(BitMap(), BitMap())
        after = prefix + MARK * (TEXT_BYTES + 1)
        first, end = self.position(prefix, "left"), self.position(after, "left")
        dim = self._marked(prefix) if len(prefix) > HEAD_BYTES else (0, 0)
        return Match(self.of_slices([(first, end)]), self.of_slices([dim]))

    def containing(self, part: bytes) -> Match:
        """The ordinals with a text that has `part` in it."""
        if b"\0" in part:
            return Match(BitMap(), BitMap())
        marked = np.zeros(len(self.keys), np.bool_)
        if self.keys.dtype.itemsize > HEAD_BYTES:
            width = self.keys.dtype.itemsize
            marked = self.keys.view(np.uint8).reshape(len(self.keys), width)[:, HEAD_BYTES] == MARK[0]
        there = (np.char.find(self.keys, part) >= 0) & ~marked
        return Match(self._where(there), self._where(marked))

    def _where(self, keys: npt.NDArray[np.bool_]) -> BitMap:
        return bitmap(self.ordinals[np.repeat(keys, np.diff(self.starts))])


class Words(Texts):
    """The words of texts: an ordinal stands as often for a word as its document has it."""

    once = False
