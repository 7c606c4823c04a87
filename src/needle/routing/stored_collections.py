"""Collections by their names inside the shards, remembered while the catalog says the same of all of them.

Each call asks for one, and a look through the topology takes a microsecond. Invariant: what is found is what the
topology at hand says; memory is bounded by its collections. Pure.
"""

from __future__ import annotations

from collections.abc import KeysView

from needle.base.model import CollectionSpec
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


class StoredNames:
    """Every name that shards have of a catalog's collections, with the collection. Those of a collection that stays as
    it is are not made again: the catalog changes one at a time, and every shard's leader looks at each change."""

    def __init__(self) -> None:
        self._of: tuple[CollectionInfo, ...] = ()
        self._each: list[list[str]] = []
        self._known: dict[str, CollectionInfo] = {}

    def keys(self, topology: Topology) -> KeysView[str]:
        """All of them."""
        return self._all(topology).keys()

    def spec(self, topology: Topology, stored: str) -> CollectionSpec:
        """What shards make by one of these names."""
        return self._all(topology)[stored].stored_specs()[stored]

    def _all(self, topology: Topology) -> dict[str, CollectionInfo]:
        if topology.collections is not self._of:
            before = {id(info): names for info, names in zip(self._of, self._each, strict=True)}  # `_of` keeps them
            self._each = [before.get(id(info)) or info.stored_names for info in topology.collections]
            self._of = topology.collections
            self._known = {name: info for info, names in zip(self._of, self._each, strict=True) for name in names}
        return self._known
