"""What to do about missing replicas, and whether the cluster does it by itself (server.upkeep.healing). Pure."""

from __future__ import annotations

from collections.abc import Collection

from needle.base.ids import NodeId
from needle.routing.gone import too_many
from needle.routing.replication import taking
from needle.routing.topology import Topology


def who_replaces(
    topology: Topology, told: Collection[NodeId], wanted: Collection[NodeId], lacking: Collection[NodeId]
) -> str:
    """What to do about missing replicas of a group. told: the nodes that answer. wanted: where it is to be, lacking:
    those of them whose replicas are missing."""
    resting = {info.id for info in topology.nodes if info.maintenance}
    at_work = sorted(resting.intersection(lacking))
    back = f"start {', '.join(at_work)} again and `needle maintenance exit` when the work is done: what is in "
    back += "maintenance is not replaced by the cluster"
    if at_work and resting.issuperset(lacking):
        return back
    return f"{_who_replaces_gone(topology, told, wanted, resting)}{f'; {back}' if at_work else ''}"


def _who_replaces_gone(
    topology: Topology, told: Collection[NodeId], wanted: Collection[NodeId], resting: Collection[NodeId]
) -> str:
    if too_many(topology, topology.addresses().keys() - set(resting) - set(told)):
        return (
            "bring its nodes back, or `needle node replace` them: half of the nodes or more do not answer, so the "
            "cluster replaces none by itself"
        )
    if not any(node in told and node not in wanted for node in taking(topology)):
        return "bring its nodes back, or start another one that joins: no node that answers could take over for them"
    return "bring its nodes back, or `needle node replace` them; after replace_after the cluster does"
