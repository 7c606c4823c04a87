"""Work on what a replica has stored that needs no log: deletes rows that nothing points at any more, gives their space
back, and keeps such work apart from an installation.

Invariant: a row goes only after every search on a view that may read it has left. It must not know commands or Raft.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, TypeVar

from needle.base.errors import StorageError
from needle.shard.documents.store import DocumentStore
from needle.shard.in_flight import InFlight
from needle.shard.live_collection import ReplicaView

T = TypeVar("T")

PURGE_ROWS: Final = 1000
"""So many are deleted in one transaction."""


class Upkeep:
    """Of one replica (state_machine.Replica)."""

    def __init__(
        self,
        store: Callable[[], DocumentStore],
        view: Callable[[], ReplicaView],
        applying: threading.Lock,
        in_flight: InFlight,
        purge_rows_min: int,
    ) -> None:
        """store, view: the current ones. applying: held by whoever applies or installs."""
        self._store = store
        self._view = view
        self._applying = applying
        self._in_flight = in_flight
        self._purge_rows_min = purge_rows_min
        self._tidied = True
        """Whether `tidy` did something that is not checkpointed; an earlier process may have."""

    def tidy(self, *, all_of_it: bool) -> bool:
        """See Replica.tidy."""

        def step(store: DocumentStore) -> bool:
            if self.purge(all_of_it=all_of_it) or store.writer.give_back(all_of_it=all_of_it):
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

    def purge(self, *, all_of_it: bool = False) -> bool:
        """Whether there was anything."""
        # Each page holds several rows: deleting few of many rows would rewrite nearly every page for little.
        enough = 0 if all_of_it else max(self._purge_rows_min, self._view().visible // 8)
        with self._applying:
            # Everything named here is dead in the current view; only searches on older views may still read it.
            doomed = self._store().writer.doomed(enough)
            fence = self._view().fence
            moving = fence is not None and fence.copies
        if moving:  # who copies a range to another shard learns from dead rows what was deleted since
            doomed.rows.clear()
        if not doomed:
            return False
        self._in_flight.drain()
        while self._store().writer.purge(doomed, PURGE_ROWS):
            pass
        return True
