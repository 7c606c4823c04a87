"""How many nodes hold the catalog, and which. Pure.

Invariants: the number is odd, for one more voter that makes it even must answer, and lets no more fail; but of two
nodes both hold it where shards have two replicas, so that no disk has the only copy. It is a function of the nodes that
stay and of the replicas that shards have; a plan that only empties or heals takes no more away than it must.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from needle.base.ids import NodeId
from needle.catalog.planning.placement import Need, PlacementNode, arrange
from needle.routing.plans import REPLICAS_MAX
from needle.routing.replication import catalog_size, odd
from needle.routing.topology import NodeInfo


def catalog_count(now: int, *, staying: int, able: int, replicas: int, balance: bool) -> int:
    """How many nodes a plan has hold the catalog that `now` do. staying: nodes that are neither to be emptied nor lost;
    able: those of them that may get something now. balance: False for a plan that only empties and heals."""
    size = catalog_size(staying, replicas)
    if now < size:  # as far as it can grow now
        return max(odd(now), catalog_size(able, replicas))
    return size if balance else max(size, odd(min(now, staying, REPLICAS_MAX)))


def catalog_voters(infos: Sequence[NodeInfo], replicas: int, silent: Collection[NodeId] = ()) -> list[NodeId]:
    """The nodes that hold the catalog of a new cluster: spread over zones, else the first of them. silent: nodes that
    do not answer; others are taken first."""
    nodes = [PlacementNode(id=one.id, zone=one.zone) for one in infos if one.weight > 0]
    nodes = nodes or [PlacementNode(id=one.id, zone=one.zone) for one in infos]
    count = catalog_size(len(nodes), replicas)
    answering = [node for node in nodes if node.id not in silent]
    chosen = arrange({0: Need(replicas=count)}, answering, {})[0] if answering else ()
    if len(chosen) < count:
        chosen = arrange({0: Need(replicas=count)}, nodes, {0: chosen})[0]
    return [node.id for node in nodes if node.id in chosen]


def settled_catalog(
    before: Sequence[NodeId], count: int, usable: Sequence[PlacementNode], settled: bool, alive: Collection[NodeId]
) -> tuple[NodeId, ...]:
    """The nodes that are to hold the catalog that `before` do. Where not enough can take it now, those that are to be
    emptied keep theirs. settled: nothing moves but what is on unusable nodes."""
    nodes = [msgspec.structs.replace(node, weight=1.0) for node in usable]
    after = arrange({0: Need(replicas=count, settled=settled)}, nodes, {0: before}).get(0, ())
    rest = sorted((node for node in before if node not in after), key=lambda node: node not in alive)
    return (*after, *rest[: max(0, min(len(before), count) - len(after))])
