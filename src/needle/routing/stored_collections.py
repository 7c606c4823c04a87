"""Collections by their names inside the shards, remembered while the catalog says the same of all of them.

Each call asks for one, and a look through the topology takes a microsecond. Invariant: what is found is what the
topology at hand says; memory is bounded by its collections. Pure.
"""

from __future__ import annotations

from needle.routing.topology import CollectionInfo, Topology, public_name


class StoredCollections:
    """See the module."""

    def __init__(self) -> None:
        self._of: tuple[CollectionInfo, ...] = ()
        self._known: dict[str, CollectionInfo] = {}

    def find(self, topology: Topology, stored: str) -> CollectionInfo | None:
        """None if there is none of that name."""
        if topology.collections is not self._of:
            self._of, self._known = topology.collections, {}
        found = self._known.get(stored)
        if found is None:
            found = topology.named(public_name(stored))
            if found is None or found.stored_name != stored:
                return None
            self._known[stored] = found
        return found
