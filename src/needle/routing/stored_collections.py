"""Collections by their names, those of callers and those inside the shards, remembered while the catalog says the same
of all of them.

Each call asks for one, and a look through the topology takes a microsecond. Invariant: what is found is what the
topology at hand says; memory is bounded by its collections. Pure.
"""

from __future__ import annotations

from collections.abc import KeysView

from needle.base.model import CollectionSpec
from needle.routing.topology import CollectionInfo, Topology, public_name
from needle.routing.topology_changes import differing


class StoredCollections:
    """See the module."""

    def __init__(self) -> None:
        self._of: tuple[CollectionInfo, ...] = ()
        self._known: dict[str, CollectionInfo] = {}
        self._named_of: Topology | None = None
        self._named: dict[str, CollectionInfo] = {}

    def named(self, topology: Topology, name: str) -> CollectionInfo | None:
        """By the name that callers give, or an alias; None if there is none."""
        if topology is not self._named_of:
            self._named_of, self._named = topology, {}
        found = self._named.get(name)
        if found is None and (found := topology.collection(name)) is not None:
            self._named[name] = found
        return found

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
        self._each: dict[str, list[str]] = {}
        """By the name that users know."""
        self._known: dict[str, CollectionInfo] = {}

    def keys(self, topology: Topology) -> KeysView[str]:
        """All of them, until another topology is asked about."""
        return self._all(topology).keys()

    def spec(self, topology: Topology, stored: str) -> CollectionSpec:
        """What shards make by one of these names."""
        return self._all(topology)[stored].stored_specs()[stored]

    def _all(self, topology: Topology) -> dict[str, CollectionInfo]:
        if topology.collections is not self._of:
            gone, came = differing(self._of, topology.collections)
            for info in gone:
                for name in self._each.pop(info.spec.name):
                    del self._known[name]
            for info in came:
                names = self._each[info.spec.name] = info.stored_names
                self._known.update(dict.fromkeys(names, info))
            self._of = topology.collections
        return self._known
