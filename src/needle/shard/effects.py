"""What the last entries of a shard's log did to its documents, for change feeds (docs/adr/0098).

An effect names rows, not documents: what was written and what died is read from the file when a feed asks. So a feed
that nobody reads costs a write some bytes, and a slow reader costs the node nothing. The rows are still there because
what `held` names is not purged.

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

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from pyroaring import BitMap

MEMORY_MAX: Final = 8 << 20
"""Bytes of a shard's effects, about."""
EFFECT_BYTES: Final = 200
DOCUMENT_BYTES: Final = 16
ABSENT: Final = -1
WRITTEN, DELETED, RELEASED, OWNED = 0, 1, 2, 3


class Effect(NamedTuple):
    """Of one entry of the log. WRITTEN: rows with consecutive ordinals from `first` on; olds: the ordinals of what each
    took the place of, or ABSENT. DELETED: olds. version: of these documents, or of their deletion. vectors: ordinals of
    vectors that died with them and are not in olds. RELEASED, OWNED: a move of ranges left, or came; first: its id;
    version: how many other moves were coming then."""

    entry: int
    kind: int
    collection_id: int = 0
    version: int = 0
    first: int = 0
    olds: tuple[int, ...] = ()
    vectors: tuple[int, ...] = ()

    @property
    def weight(self) -> int:
        return EFFECT_BYTES + DOCUMENT_BYTES * (len(self.olds) + len(self.vectors))

    @property
    def dead(self) -> int:
        """How many rows it keeps from being purged, at most."""
        return len(self.olds) - self.olds.count(ABSENT) + len(self.vectors)


class Position(NamedTuple):
    """Up to where a feed has told a shard's changes: all of the entries before `entry`, and `offset` of that one's."""

    entry: int
    offset: int = 0


class EffectLog:
    """Of one replica. Written by whoever applies; read from any thread."""

    def __init__(self, memory_max: int = MEMORY_MAX) -> None:
        self._memory_max = memory_max
        self._lock = threading.Lock()
        self._effects: list[Effect] = []
        self._gone = 0
        """So many of them, at the front, are cut."""
        self._bytes = self._dead = 0
        self._start = 1
        self._doubtful = False
        self._told: dict[int, dict[object, Callable[[], None]]] = {}

    @property
    def start(self) -> int:
        """From this entry's effects on none is missing."""
        return self._start

    def begin(self, applied: int, *, doubtful: bool) -> None:
        """A state was opened. applied: its last entry. doubtful: see `doubt`."""
        with self._lock:
            self._effects, self._gone, self._bytes, self._dead = [], 0, 0, 0
            self._start, self._doubtful = applied + 1, doubtful

    def doubt(self) -> None:
        """What the next OWNED brings may have lost documents of which nobody tells."""
        self._doubtful = True

    def add(self, effects: Sequence[Effect]) -> None:
        """What entries behind all those before did; it is written."""
        if not effects:
            return
        with self._lock:
            for effect in effects:
                self._effects.append(effect)
                self._bytes += effect.weight
                self._dead += effect.dead
                if effect.kind == OWNED and self._doubtful:
                    self._cut(len(self._effects))
                    # Which of those that come has lost it is not known: each of them cuts.
                    self._doubtful = effect.version > 0
            while self._bytes > self._memory_max:
                self._cut(self._gone + 1)
            told = self._hearing(effects)
        for tell in told:
            tell()

    def _hearing(self, effects: Sequence[Effect]) -> list[Callable[[], None]]:
        """Who hears of these: of a collection's, those who read that; of a move's, everybody."""
        if not self._told:
            return []
        all_of_them = any(effect.kind in (RELEASED, OWNED) for effect in effects)
        about = self._told.keys() if all_of_them else {effect.collection_id for effect in effects} & self._told.keys()
        return [tell for collection_id in about for tell in self._told[collection_id].values()]

    def _cut(self, end: int) -> None:
        """Forget the effects before `end`, and the others of the last one's entry."""
        effects = self._effects
        last = effects[end - 1].entry
        while end < len(effects) and effects[end].entry == last:
            end += 1
        for effect in effects[self._gone : end]:
            self._bytes -= effect.weight
            self._dead -= effect.dead
        self._gone, self._start = end, last + 1
        if end > len(effects) // 2:  # so that cutting costs each effect a constant
            del effects[:end]
            self._gone = 0

    def hold(self, rows_max: int) -> int:
        """How many dead rows and vectors feeds may still read: `rows_max` at most, for which older effects are cut."""
        with self._lock:
            end = self._gone
            over = self._dead - rows_max
            while over > 0:
                over -= self._effects[end].dead
                end += 1
            if end > self._gone:
                self._cut(end)
            return self._dead

    def held(self) -> dict[int, BitMap]:
        """Which those are: by collection, their ordinals."""
        with self._lock:
            effects = self._effects[self._gone :]
        rows: dict[int, BitMap] = {}
        for effect in effects:
            if effect.dead:
                there = rows.setdefault(effect.collection_id, BitMap())
                there.update([*effect.vectors, *(old for old in effect.olds if old != ABSENT)])
        return rows

    def after(self, position: Position, effects_max: int) -> list[Effect] | None:
        """The next effects, that entry's included; None if some of them are not known any more."""
        with self._lock:
            if position.entry < self._start:
                return None
            first = bisect_left(self._effects, position.entry, self._gone, key=lambda effect: effect.entry)
            return self._effects[first : first + effects_max]

    def released(self, move: int, position: Position) -> int | None:
        """The entry, not before the position, by which a move of ranges left this shard; 0 if there is none; None if
        that is not known."""
        found = self.after(position, len(self._effects) + 1)
        if found is None:
            return None
        return next((one.entry for one in found if one.kind == RELEASED and one.first == move), 0)

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
