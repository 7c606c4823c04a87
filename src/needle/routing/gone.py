"""Which nodes that do not answer the cluster misses, and when they are too many to be replaced. Pure."""

from __future__ import annotations

from collections.abc import Collection

from needle.base.ids import NodeId
from needle.routing.topology import Topology


def missed(topology: Topology, gone: Collection[NodeId]) -> list[NodeId]:
    """Those of `gone` that hold a shard or the catalog, in order."""
    return [node for node in sorted(gone) if topology.hosted_by(node) or node in topology.catalog]


def too_many(topology: Topology, gone: Collection[NodeId]) -> bool:
    """Whether half of the nodes or more are missed: then it may be who looks that is cut off. A node that is gone and
    holds nothing, because it was replaced, counts neither way."""
    known = set(gone) & topology.addresses().keys()
    held = missed(topology, known)
    return 2 * len(held) >= len(topology.addresses()) - (len(known) - len(held))
