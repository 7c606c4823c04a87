"""How many replicas each shard of a cluster may be said to have, and how many nodes hold its catalog. Pure."""

from __future__ import annotations

from needle.base.config import check_range
from needle.base.errors import invalid
from needle.base.ids import NodeId
from needle.routing.plans import REPLICAS_MAX
from needle.routing.topology import NodeState, Topology

THREE_UP_TO, FIVE_UP_TO = 8, 24
"""Nodes of which so many hold the catalog; of more it is 7 (adr/0108)."""


def catalog_size(nodes: int, replicas: int) -> int:
    """How many of so many nodes hold the catalog, where shards have so many replicas: 3, 5 or 7, and never fewer that
    may fail than of a shard; what there are nodes for."""
    usual = 3 if nodes <= THREE_UP_TO else 5 if nodes <= FIVE_UP_TO else REPLICAS_MAX
    size = odd(min(max(usual, replicas), nodes, REPLICAS_MAX))
    return 1 if size == 2 and replicas < 2 else size


def odd(count: int) -> int:
    """So many or one less; two stay two."""
    return count if count % 2 or count <= 2 else count - 1


def taking(now: Topology) -> list[NodeId]:
    """The nodes that take replicas: neither removed, nor to be emptied, nor of weight 0."""
    return [info.id for info in now.nodes if info.state is NodeState.ACTIVE and info.weight > 0]


def check_replication(now: Topology, replicas: int, field: str = "replication_factor") -> None:
    """Raises InvalidArgument for a number that the cluster cannot reach, as it is. field: what the caller calls it; the
    catalog keeps what it answers, so there its name is the same in all releases."""
    check_range(field, replicas, 1, REPLICAS_MAX)
    if replicas > len(nodes := taking(now)):
        allowed = f"at most {len(nodes)}, one on each node that takes replicas: {', '.join(nodes) or 'none'}"
        raise invalid(field, replicas, allowed)


def told_of(replicas: int) -> str:
    """What follows from such a number, for people; "" if nothing is to be told."""
    if replicas == 1:
        return "with one replica each shard is gone with its node's disk, and does not serve while that node is down"
    if replicas == 2:
        return "with two replicas both nodes must run for writes; three let one fail"
    if replicas % 2 == 0:
        return f"{replicas} replicas let no more nodes fail than {replicas - 1} do"
    return ""
