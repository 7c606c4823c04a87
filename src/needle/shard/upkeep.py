"""Work on what a replica has stored that needs no log: deletes rows that nothing points at any more, gives their space
back, and keeps such work apart from an installation.

Invariant: a row goes only after every search on a view that may read it has left. It must not know commands or Raft.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, TypeVar

from needle.base.errors import StorageError
from needle.base.file_errors import SHORTAGES
from needle.shard.documents.store import DocumentStore
from needle.shard.effects import EffectLog
from needle.shard.in_flight import InFlight
from needle.shard.live_collection import ReplicaView

T = TypeVar("T")

PURGE_ROWS: Final = 1000
"""So many are deleted in one transaction."""
DOOMED_ROWS: Final = 32_768
"""And so many are named at once, which takes some 20 ms, in which nothing is applied."""
FEED_ROWS_MAX: Final = DOOMED_ROWS // 2
"""Dead rows that stay for change feeds: fewer than are looked at in one go, which so finds others."""
ROW_BYTES: Final = 256
"""A row takes so many at least, with its places in the indexes of the file."""
UNKNOWN_BYTES: Final = 4096
"""What a dead row is taken for where there are no others to tell by."""
WAL_BYTES: Final = 16 << 20
"""When SQLite's write-ahead log is longer than this it is emptied before more is deleted. Deleting writes every page of
what is deleted to it: all at once that is as much again, on a disk that may be full."""


class Upkeep:
    """Of one replica (state_machine.Replica)."""

    def __init__(
        self,
        store: Callable[[], DocumentStore],
        view: Callable[[], ReplicaView],
        applying: threading.Lock,
        in_flight: InFlight,
        effects: EffectLog,
        purge_rows_min: int,
        feed_rows_bytes: int,
    ) -> None:
        """store, view: the current ones. applying: held by whoever applies or installs. feed_rows_bytes: of rows that
        are dead, about, that stay for change feeds."""
        self._store = store
        self._view = view
        self._applying = applying
        self._in_flight = in_flight
        self._purge_rows_min = purge_rows_min
        self._effects = effects
        self._feed_rows_bytes = feed_rows_bytes
        self._wal_kept = 0
        """So long the write-ahead log was after it was last emptied: more than nothing if somebody read for long."""
        self._tidied = True
        """Whether `tidy` did something that is not checkpointed; an earlier process may have."""

    def tidy(self, *, all_of_it: bool, short: bool = False) -> bool:
        """See Replica.tidy."""

        def step(store: DocumentStore) -> bool:
            purged = self.purge(all_of_it=all_of_it, short=short)
            if purged or self._piece(lambda: store.writer.give_back(all_of_it=all_of_it)):
                self._tidied = True
                return True
            if self._tidied:
                store.checkpoint()
                self._tidied = False
            return False

        return self.unless_replaced(step, True)

    def unless_replaced(self, work: Callable[[DocumentStore], T], otherwise: T) -> T:
        """For work that no lock keeps apart from an installation, which closes and deletes the store that it had."""
        store = self._store()
        try:
            return work(store)
        except StorageError:
            if store is self._store():
                raise
            return otherwise

    def purge(self, *, all_of_it: bool = False, short: bool = False) -> bool:
        """Whether there was anything. short: nothing stays for change feeds."""
        # Each page holds several rows: deleting few of many rows would rewrite nearly every page for little.
        enough = 0 if all_of_it else max(self._purge_rows_min, self._view().visible // 8)
        while self._piece(lambda: self._store().writer.release(self._view().pins.oldest, PURGE_ROWS)):
            pass
        with self._applying:
            # Everything named here is dead in the current view; only searches on older views may still read it.
            fence = self._view().fence
            # Who copies a range to another shard learns from dead rows what was deleted since.
            most = 0 if fence is not None and fence.copies else DOOMED_ROWS
            at_least = enough
            if most:  # else no row goes, and feeds would begin again for nothing
                # For change feeds half as many again may stay as do for being few, or those of so many bytes.
                at_least += self._effects.hold(0 if short else max(enough // 2, self._feed_rows()))
            doomed = self._with_room(lambda: self._store().writer.doomed(at_least, most, self._effects.held))
        if not doomed:
            return False
        self._in_flight.drain()
        while self._piece(lambda: self._store().writer.purge(doomed, PURGE_ROWS)):
            pass
        return True

    def _feed_rows(self) -> int:
        """How many dead rows may stay for change feeds, however long the shard is idle: by what a document of this
        shard weighs."""
        view = self._view()
        weight = view.live_bytes // view.visible if view.visible else UNKNOWN_BYTES
        return min(FEED_ROWS_MAX, self._feed_rows_bytes // max(weight, ROW_BYTES))

    def _piece(self, work: Callable[[], bool]) -> bool:
        more = self._with_room(work)
        self._empty_wal(WAL_BYTES)
        return more

    def _with_room(self, work: Callable[[], T]) -> T:
        """Work that writes to the write-ahead log, which is emptied when the disk is full: it may be what fills it.
        Raises DiskFull and the like if there is no room even so."""
        try:
            return work()
        except SHORTAGES:
            if not self._empty_wal(0):
                raise
        return work()

    def _empty_wal(self, above: int) -> bool:
        """Empty it if it got that much longer since the last time. Whether it is shorter now."""
        store = self._store()
        before = store.writer.wal_bytes()
        if before <= self._wal_kept + above:
            self._wal_kept = min(before, self._wal_kept)
            return False
        store.checkpoint(save=False)
        self._wal_kept = store.writer.wal_bytes()
        return self._wal_kept < before
