"""How the names of a shard's collections differ from those that the catalog's would have there, followed at the cost of
what changes: a shard's leader looks at each change of the catalog, and there are thousands of collections.

Invariant: what is said is what a look at all names of the view and of the topology at hand would find. It must not know
what is done about it.
"""

from __future__ import annotations

from collections.abc import Iterable

from needle.routing.stored_collections import StoredNames
from needle.routing.topology import CollectionInfo, Topology
from needle.routing.topology_changes import differing
from needle.shard.live_collection import ReplicaView
from needle.shard.name_changes import NO_NAMES


class ShardNames:
    """Of one shard. surplus: names that are in the shard only; missing: in the catalog only; of the last comparison."""

    def __init__(self, names: StoredNames) -> None:
        """names: of the node."""
        self._names = names
        self._rows: tuple[CollectionInfo, ...] = ()
        self._seen = NO_NAMES
        self.surplus: set[str] = set()
        self.missing: set[str] = set()

    def compare(self, view: ReplicaView, topology: Topology) -> bool:
        """Whether there is no difference."""
        here, wanted = view.collections, self._names.keys(topology)
        came_and_went = view.names.since(self._seen)
        if came_and_went is None:
            self.surplus = {name for name in here if name not in wanted}
            self.missing = {name for name in wanted if name not in here}
        else:
            for name in (*came_and_went, *self._of_catalog(topology)):
                self._sort(name, name in here, name in wanted)
        self._seen, self._rows = view.names, topology.collections
        return not self.surplus and not self.missing

    def _of_catalog(self, topology: Topology) -> Iterable[str]:
        """Names of collections that are others than at the last comparison."""
        gone, came = differing(self._rows, topology.collections)
        return (name for info in (*gone, *came) for name in info.stored_names)

    def _sort(self, name: str, here: bool, wanted: bool) -> None:
        for names, belongs in ((self.surplus, here and not wanted), (self.missing, wanted and not here)):
            if belongs:
                names.add(name)
            else:
                names.discard(name)
