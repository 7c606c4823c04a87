"""What the last entries of a shard's log did to its documents, for change feeds (docs/adr/0098).

An effect names rows, not documents: what was written and what died is read from the file when a feed asks. So a feed
that nobody reads costs a write some bytes, and a slow reader costs the node nothing. The rows are still there because
what `held` names is not purged: what effects name as dead, and some of what left with a range (moved_rows.py).

Invariants:
- Effects are derived from what applying an entry did, so they are equal on all replicas, whatever the command was: a
  repeated request, or one that was refused, has none. What moves of ranges bring or take away has none either.
- From `start` on nothing is missing. What is before was cut, for want of room or because it is not known: the memory of
  a replica that was opened, or got a snapshot, begins behind what it has applied.
- A move that may have lost a document on the way cuts everything before it: the target deletes copies that have
  expired, also while it does not own them, and then nobody told of it (docs/adr/0044).

It must not know SQLite, commands or feeds.
"""

from __future__ import annotations

import struct
import threading
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from pyroaring import BitMap

from needle.shard.moved_rows import MovedRows

MEMORY_MAX: Final = 8 << 20
"""Bytes of a shard's effects, unless another bound is given (limits.feed_bytes_max)."""
ABSENT: Final = -1
_ONE_NEW: Final = (ABSENT,)
WRITTEN, DELETED, RELEASED, OWNED, LEFT = range(5)
_HEAD: Final = struct.Struct("<qqqqIIB")
"""Entry, collection, version, first, how many olds, how many vectors, and what it is."""
_ROW: Final = struct.Struct("=q")
_NO_OLDS: Final = 0x80
"""Beside what it is: all of `olds` are ABSENT, and left out."""
_RUN: Final = 0x40
"""Beside it: this one and all before it in its entry are WRITTEN, of one collection, with consecutive ordinals."""
_OBJECT_BYTES: Final = 33 + 8 + 16
"""What CPython takes for a `bytes`, its place in a list, and for rounding both up."""
_ROW_BYTES: Final = 4
"""Of a row in a bitmap, in the worst case that is usual."""
_MOVED_SHARE: Final = 512
"""Of so many bytes of memory one row may be held that moved away: a sixteenth, with a vector of its own a quarter."""


class Effect(NamedTuple):
    """Of one entry of the log. WRITTEN: rows with consecutive ordinals from `first` on; olds: the ordinals of what each
    took the place of, or ABSENT. DELETED: olds. version: of these documents, or of their deletion. vectors: ordinals of
    vectors that died with them and are not in olds. RELEASED, OWNED: a move of ranges left, or came; first: its id;
    version: how many other moves were coming then. LEFT: olds, and the vector of each, went with a range: nobody is
    told, and it is not kept among the others (moved_rows.py)."""

    entry: int
    kind: int
    collection_id: int = 0
    version: int = 0
    first: int = 0
    olds: tuple[int, ...] = ()
    vectors: tuple[int, ...] = ()


class Position(NamedTuple):
    """Up to where a feed has told a shard's changes: all of the entries before `entry`, and `offset` of that one's."""

    entry: int
    offset: int = 0


def _packed(effect: Effect, run: bool) -> bytes:
    """As it is kept: a hundredth to a fifth of what the objects take."""
    entry, kind, collection_id, version, first, olds, vectors = effect
    kind, count = kind | _RUN if run else kind, len(olds)
    if count == 1 and not vectors:  # as most are
        if olds == _ONE_NEW:
            return _HEAD.pack(entry, collection_id, version, first, 1, 0, kind | _NO_OLDS)
        return _HEAD.pack(entry, collection_id, version, first, 1, 0, kind) + _ROW.pack(*olds)
    if olds.count(ABSENT) == count:
        olds, kind = (), kind | _NO_OLDS
    head = _HEAD.pack(entry, collection_id, version, first, count, len(vectors), kind)
    return head + array("q", (*olds, *vectors)).tobytes() if olds or vectors else head


def _unpacked(data: bytes) -> Effect:
    entry, collection_id, version, first, count, vectors, kind = _HEAD.unpack_from(data)
    rows = array("q", data[_HEAD.size :]).tolist()
    olds = tuple(rows[: len(rows) - vectors]) if not kind & _NO_OLDS else (ABSENT,) * count
    dead = tuple(rows[len(rows) - vectors :])
    return Effect(entry, kind & ~(_NO_OLDS | _RUN), collection_id, version, first, olds, dead)


def _rows_at_most(data: bytes) -> int:
    """How many dead rows it names: so many, or fewer."""
    return (len(data) - _HEAD.size) >> 3


def _weight(data: bytes) -> int:
    """The bytes that it is counted with, at most."""
    return _OBJECT_BYTES + len(data) + _ROW_BYTES * _rows_at_most(data)


def _entry(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")


def _kind(data: bytes) -> int:
    return data[_HEAD.size - 1] & ~(_NO_OLDS | _RUN)


def _runs(data: bytes) -> bool:
    return data[_HEAD.size - 1] & _RUN != 0


def _collection(data: bytes) -> int:
    return int.from_bytes(data[8:16], "little")


def _first(data: bytes) -> int:
    return int.from_bytes(data[24:32], "little")


def _documents(data: bytes, collection_id: int = 0) -> int:
    """How many of the collection's; 0: of any."""
    return int.from_bytes(data[32:36], "little") if collection_id in (0, _collection(data)) else 0


class _Rows:
    """The dead rows of a collection that effects name: as what was replaced, and as a vector. Each is named at most
    once in either way."""

    def __init__(self) -> None:
        self.olds, self.vectors = BitMap(), BitMap()


class Page(NamedTuple):
    """Effects. more: there are others behind; within: of the last one's entry. skipped: so many documents of the
    collection come before them in the first one's entry, if that is the position's."""

    effects: list[Effect]
    more: bool
    within: bool = False
    skipped: int = 0


class EffectLog:
    """Of one replica. Written by whoever applies; read from any thread."""

    def __init__(self, memory_max: int = MEMORY_MAX) -> None:
        self._memory_max = memory_max
        self._lock = threading.Lock()
        self._effects: list[bytes] = []
        self._gone = 0
        """So many of them, at the front, are cut."""
        self._bytes = self._dead = 0
        self._newest = -1
        """The entry of the last of them."""
        self._rows: dict[int, _Rows] = {}
        self._moved = MovedRows(memory_max // _MOVED_SHARE)
        self._released: list[tuple[int, int]] = []
        """(entry, move) of those that left."""
        self._start = 1
        self._doubtful = False
        self._told: dict[int, dict[object, Callable[[], None]]] = {}

    @property
    def start(self) -> int:
        """From this entry's effects on none is missing."""
        return self._start

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return self._bytes

    def begin(self, applied: int, *, doubtful: bool) -> None:
        """A state was opened. applied: its last entry. doubtful: see `doubt`."""
        with self._lock:
            self._clear(applied + 1)
            self._doubtful = doubtful

    def doubt(self) -> None:
        """What the next OWNED brings may have lost documents of which nobody tells."""
        self._doubtful = True

    def add(self, effects: Sequence[Effect]) -> None:
        """What entries behind all those before did; it is written."""
        if not effects:
            return
        with self._lock:
            for effect in effects:
                self._keep(effect)
                if effect.kind == OWNED and self._doubtful:
                    self._clear(effect.entry + 1)
                    # Which of those that come has lost it is not known: each of them cuts.
                    self._doubtful = effect.version > 0
            while self._bytes > self._memory_max:
                self._cut(self._before(self._bytes - self._memory_max, _weight))
            told = self._hearing(effects) if self._told else ()
        for tell in told:
            tell()

    def _hearing(self, effects: Sequence[Effect]) -> list[Callable[[], None]]:
        """Who hears of these: of a collection's, those who read that; of a move's, everybody; of what left, nobody."""
        all_of_them = any(effect.kind in (RELEASED, OWNED) for effect in effects)
        theirs = {effect.collection_id for effect in effects if effect.kind != LEFT}
        about = self._told.keys() if all_of_them else theirs & self._told.keys()
        return [tell for collection_id in about for tell in self._told[collection_id].values()]

    def _keep(self, effect: Effect) -> None:
        entry, kind, olds = effect.entry, effect.kind, effect.olds
        if entry < self._start:
            return  # its entry was cut as a whole
        if kind == LEFT:
            self._moved.left(effect.collection_id, olds, effect.vectors)
            return
        # See _RUN; most entries have one effect.
        data = _packed(effect, kind == WRITTEN and (entry != self._newest or self._runs_on(effect)))
        self._effects.append(data)
        self._newest = entry
        self._bytes += _OBJECT_BYTES + len(data)
        if kind == WRITTEN:
            self._moved.wrote(effect.collection_id, effect.first)
        if kind == RELEASED:
            self._released.append((entry, effect.first))
        elif len(data) > _HEAD.size:
            rows = self._rows.get(effect.collection_id)
            if rows is None:
                rows = self._rows[effect.collection_id] = _Rows()
            if len(olds) == 1 and not effect.vectors:  # which is not ABSENT, or the data were shorter
                rows.olds.add(olds[0])
                self._weigh(1)
                return
            there = _there(olds)
            rows.olds.update(there)
            rows.vectors.update(effect.vectors)
            self._weigh(len(there) + len(effect.vectors))

    def _runs_on(self, effect: Effect) -> bool:
        """Whether a WRITTEN one goes on where the last one ended, which is of the same entry: none of that was cut, or
        the rest would have been, too."""
        last = self._effects[-1]
        goes_on = _collection(last) == effect.collection_id and _first(last) + _documents(last) == effect.first
        return goes_on and _runs(last)

    def _weigh(self, rows: int) -> None:
        """So many more are named."""
        self._dead += rows
        self._bytes += _ROW_BYTES * rows

    def _clear(self, start: int) -> None:
        """Forget all."""
        self._effects, self._gone, self._bytes, self._dead, self._newest = [], 0, 0, 0, -1
        self._rows, self._released, self._start = {}, [], start
        self._moved.clear()

    def _before(self, too_much: int, weight: Callable[[bytes], int]) -> int:
        """The end of the oldest effects that weigh no more than that together, or of the first one: cut together, they
        cost a third of what they cost one by one."""
        at, effects = self._gone, self._effects
        while at < len(effects) and 0 < too_much >= (heavy := weight(effects[at])):
            too_much -= heavy
            at += 1
        return max(at, self._gone + 1)

    def _cut(self, end: int) -> None:
        """Forget the effects before `end`, and the others of the last one's entry."""
        effects = self._effects
        last = _entry(effects[end - 1])
        while end < len(effects) and _entry(effects[end]) == last:
            end += 1
        dead: dict[int, tuple[list[int], list[int]]] = {}
        for data in effects[self._gone : end]:
            self._bytes -= _OBJECT_BYTES + len(data)
            if _kind(data) == WRITTEN:
                self._moved.cut(_collection(data), _first(data) + _documents(data))
            if len(data) > _HEAD.size:
                effect = _unpacked(data)
                olds, vectors = dead.setdefault(effect.collection_id, ([], []))
                olds += _there(effect.olds)
                vectors += effect.vectors
        for collection_id, (olds, vectors) in dead.items():
            rows = self._rows[collection_id]
            rows.olds -= BitMap(olds)
            rows.vectors -= BitMap(vectors)
            self._weigh(-len(olds) - len(vectors))
            if not rows.olds and not rows.vectors:
                del self._rows[collection_id]
        self._gone, self._start = end, last + 1
        while self._released and self._released[0][0] < self._start:
            del self._released[0]
        if end > len(effects) // 2:  # so that cutting costs each effect a constant
            del effects[:end]
            self._gone = 0

    def hold(self, rows_max: int) -> int:
        """How many dead rows and vectors feeds may still read: `rows_max` at most, for which older effects are cut.
        What moved away has the room that is left."""
        with self._lock:
            while self._dead > rows_max:
                self._cut(self._before(self._dead - rows_max, _rows_at_most))
            self._moved.limit(rows_max - self._dead)
            return self._dead + self._moved.count

    def held(self) -> dict[int, BitMap]:
        """Which those are: by collection, their ordinals."""
        with self._lock:
            found = {collection_id: rows.olds | rows.vectors for collection_id, rows in self._rows.items()}
            for collection_id, moved in self._moved.held().items():
                found[collection_id] = moved | found.get(collection_id, BitMap())
            return found

    def after(
        self, position: Position, effects_max: int, documents_max: int = 1 << 62, collection_id: int = 0
    ) -> Page | None:
        """The next effects, from the position's entry on, up to so many, or about so many documents of a collection;
        None if some of them are not known any more. Those are left out that are behind the position as a whole: what
        is read of an entry of many documents costs what is read, not what the entry has."""
        with self._lock:
            if position.entry < self._start:
                return None
            effects = self._effects
            at = bisect_left(effects, position.entry, self._gone, key=_entry)
            at, skipped = self._skipped(at, position, collection_id) if collection_id else (at, 0)
            first, documents = at, 0
            while at < len(effects) and at - first < effects_max and documents < documents_max:
                documents += _documents(effects[at], collection_id)
                at += 1
            found, more = effects[first:at], at < len(effects)
            within = more and at > first and _entry(effects[at]) == _entry(effects[at - 1])
        return Page([_unpacked(data) for data in found], more, within, skipped)

    def _skipped(self, at: int, position: Position, collection_id: int) -> tuple[int, int]:
        """The first effect that is not behind the position as a whole, or of another collection, and how many documents
        of this one those before it in its entry have. A bulk load has one for each 1,024 documents: it is found by
        bisection."""
        effects, skipped = self._effects, 0
        if at < len(effects) and _entry(effects[at]) == position.entry and _runs(effects[at]):
            mine, start = _collection(effects[at]) == collection_id, _first(effects[at])

            def is_later(data: bytes) -> bool:
                same = _entry(data) == position.entry and _runs(data)
                return not same or (mine and _first(data) - start > position.offset)

            at = bisect_left(effects, True, at, key=is_later) - 1
            skipped = _first(effects[at]) - start if mine else 0
        while at < len(effects) and _entry(effects[at]) == position.entry:
            documents = _documents(effects[at], collection_id)
            if skipped + documents > position.offset or _kind(effects[at]) not in (WRITTEN, DELETED):
                break
            at, skipped = at + 1, skipped + documents
        return at, skipped

    def wrote(self, entry: int, collection_id: int, ordinals: Sequence[int]) -> bool | None:
        """Whether the entry wrote one of these rows, which ascend; None if that is not known any more. It costs what
        the entry's effects are."""
        with self._lock:
            if entry < self._start:
                return None
            for at in range(bisect_left(self._effects, entry, self._gone, key=_entry), len(self._effects)):
                data = self._effects[at]
                if _entry(data) != entry:
                    break
                if _kind(data) == WRITTEN and _collection(data) == collection_id:
                    next_ = bisect_left(ordinals, _first(data))
                    if next_ < len(ordinals) and ordinals[next_] < _first(data) + _documents(data):
                        return True
        return False

    def released(self, move: int, position: Position) -> int | None:
        """The entry, not before the position, by which a move of ranges left this shard; 0 if there is none; None if
        that is not known."""
        with self._lock:
            if position.entry < self._start:
                return None
            return next((entry for entry, one in self._released if one == move and entry >= position.entry), 0)

    def listen(self, collection_id: int, tell: Callable[[], None]) -> Callable[[], None]:
        """Call it, from any thread, whenever effects of the collection were added, or of a move. Returns what ends
        that."""
        key = object()
        with self._lock:
            self._told.setdefault(collection_id, {})[key] = tell

        def end() -> None:
            with self._lock:
                here = self._told[collection_id]
                del here[key]
                if not here:
                    del self._told[collection_id]

        return end


def _there(olds: Iterable[int]) -> list[int]:
    return [old for old in olds if old != ABSENT]
