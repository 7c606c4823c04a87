"""Looks now and then at what nodes and clients know of the catalog. Observing changes nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from needle.client.known_topology import AskedTopology
from needle.routing.topology import Topology
from proof.checkers import topologies
from proof.checkers.violation import Violation
from proof.sim.databases import ShardAware
from proof.sim.stage import Stage


@runtime_checkable
class Follower(Protocol):
    """A node: `proof.sim.nodes.SimNode`."""

    def topology(self) -> Topology: ...


class KnownTopologies:
    """See the module."""

    def __init__(self, stage: Stage, there_were: Callable[[], Sequence[Topology]]) -> None:
        self._stage = stage
        self._there_were = there_were
        self._clients: weakref.WeakKeyDictionary[AskedTopology, Topology] = weakref.WeakKeyDictionary()
        """What each client knows, for as long as it is there, whoever holds it; and had when it was looked at last."""
        self._nodes: dict[str, Topology] = {}
        stage.looks.append(self.look)

    def client(self, made: ShardAware) -> ShardAware:
        """One more to look at."""
        self._clients[made.known] = Topology()
        return made

    def look(self) -> None:
        """At all that is another one than when it was looked at last. Raises Violation."""
        there_were = self._there_were()
        for name, node in self._stage.fleet.nodes.items():
            if isinstance(node, Follower) and (known := node.topology()) is not self._nodes.get(name):
                topologies.check(f"node {name}", known, there_were)
                self._nodes[name] = known
        for client, seen in list(self._clients.items()):
            if (known := client.topology()) is not seen:
                topologies.check("a client", known, there_were)
                self._clients[client] = known
            if client.hearing.misfits:
                raise Violation("one catalog", "a client was told changes of another topology than it had")
