"""What a plan leaves as it should not be, in words: what its wish is about, and what stays besides that. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name
from needle.catalog.planning.placement import PlacementNode
from needle.catalog.planning.schedule import Replicas
from needle.routing.plans import Wish
from needle.routing.topology import NodeState, Topology

Said = tuple[list[str], list[str]]
"""Of the wish, and besides."""


def not_wished(topology: Topology, wish: Wish, named: bool = False) -> frozenset[NodeId]:
    """Nodes that should hold nothing, and that this wish is not about: of weight 0, where it names something else. One
    that names nothing is about all that the catalog says. Who is to be emptied by the catalog is what every wish is
    about, until that is taken back. named: it named something before the nodes that it named were removed."""
    if wish.balance and not (named or wish.names):
        return frozenset()
    its_own = {*wish.drain, *wish.lost, *wish.weights}
    nodes = (info for info in topology.nodes if info.state is NodeState.ACTIVE and info.weight <= 0)
    return frozenset(info.id for info in nodes if info.id not in its_own)


def left(
    replicas: Mapping[GroupId, Replicas],
    nodes: Mapping[NodeId, PlacementNode],
    factor: int,
    apart: frozenset[NodeId],
) -> Said:
    """Replicas that stay where they should not, because no other node can take them, or are missing. replicas: of each
    group in the end. factor: of each shard. apart: see `not_wished`."""
    said, besides = list[str](), list[str]()
    for group, held in sorted(replicas.items()):
        name = group_name(group)
        for node in held:
            if nodes[node].usable:
                continue
            why = f"{node} keeps its replica of {name}: no other node can take it"
            (besides if node in apart else said).append(why)
        if group != CATALOG_GROUP and len(held) < factor:
            said.append(f"{name} gets {len(held)} of {factor} replicas: no more nodes can take one")
    return said, besides
