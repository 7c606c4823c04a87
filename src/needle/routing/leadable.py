"""Whether each group has a node that may lead it. Pure: the catalog refuses by it, and a client can ask before.

Invariant: a node in maintenance leads nothing, so no group is left with such nodes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from needle.base.errors import InvalidArgument
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name, shard_group
from needle.routing.topology import Topology

LEADABLE: Final = 2
"""The cluster's version from which on replicas are not given to nodes in maintenance alone."""


def check_led(now: Topology, node: NodeId) -> None:
    """Raises InvalidArgument if all other nodes that hold a group with this one are in maintenance: nobody could lead
    it. A group on this node alone it keeps leading."""
    resting = _resting(now)
    for group in (CATALOG_GROUP, *(shard_group(info.shard) for info in now.serving)):
        held = now.holders(group)
        others = set(held.all) - {node} if held is not None and node in held.all else set()
        if others and others <= resting:
            raise InvalidArgument(
                f"{', '.join(sorted(others))} are in maintenance: with {node} nobody could lead {group_name(group)}; "
                "`needle maintenance exit` brings them back first",
                field="node",
            )


def check_leadable(now: Topology, nodes: Sequence[NodeId], group: GroupId) -> None:
    """Raises InvalidArgument if all nodes that are to hold a group are in maintenance: nobody could lead it. Nodes of
    the release before take such commands, so all do until the cluster has risen above it."""
    if now.cluster_version >= LEADABLE and set(nodes) <= _resting(now):
        raise InvalidArgument(
            f"{', '.join(nodes)} {'is' if len(nodes) == 1 else 'are'} in maintenance, so nobody could lead "
            f"{group_name(group)}: name a node that is not, or bring one back first (`needle maintenance exit`)",
            field="nodes",
        )


def _resting(now: Topology) -> set[NodeId]:
    return {info.id for info in now.nodes if info.maintenance}
