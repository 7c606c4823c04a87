"""How many replicas each shard of a cluster may be said to have. Pure."""

from __future__ import annotations

from needle.base.config import check_range
from needle.base.errors import invalid
from needle.routing.plans import REPLICAS_MAX
from needle.routing.topology import Topology


def check_replication(now: Topology, replicas: int) -> None:
    """Raises InvalidArgument for a number that the cluster cannot reach, as it is."""
    check_range("replication_factor", replicas, 1, REPLICAS_MAX)
    if replicas > len(now.taking):
        allowed = f"at most {len(now.taking)}, one on each node that takes replicas: {', '.join(now.taking) or 'none'}"
        raise invalid("replication_factor", replicas, allowed)


def told_of(replicas: int) -> str:
    """What follows from such a number, for people; "" if nothing is to be told."""
    if replicas == 1:
        return "with one replica each shard is gone with its node's disk, and does not serve while that node is down"
    if replicas == 2:
        return "with two replicas both nodes must run for writes; three let one fail"
    if replicas % 2 == 0:
        return f"{replicas} replicas let no more nodes fail than {replicas - 1} do"
    return ""
