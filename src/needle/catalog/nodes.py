"""Nodes of the catalog: registered, removed, drained, in maintenance, with weights, zones, and what they know. Pure.

Invariants: ids of nodes are never used again; a node that forgot its votes does not come back under its name.
"""

from __future__ import annotations

import msgspec

from needle.base.config import check_node_id, check_range, parse_address
from needle.base.errors import ClusterTooOld, InvalidArgument, invalid
from needle.base.ids import NodeId
from needle.base.versions import FIRST
from needle.catalog.changed import Changed, done, need_cluster
from needle.protocol.catalog_commands import (
    DrainNode,
    MaintainNode,
    RaiseVersion,
    RegisterNode,
    RemoveNode,
    WeighNode,
    ZoneNode,
)
from needle.routing.leadable import check_led
from needle.routing.plans import ZONE_CHARS_MAX
from needle.routing.topology import NodeInfo, NodeState, Topology

NODES_MAX = 4096

_replace = msgspec.structs.replace
_STATE = {True: NodeState.DRAINING, False: NodeState.ACTIVE}


def check_node(node: NodeInfo) -> None:
    """Raises ConfigError or InvalidArgument for what no node can be."""
    check_node_id("node", node.id)
    parse_address(f"address of {node.id}", node.address)
    check_range(f"weight of {node.id}", node.weight, 0, 1000)
    if len(node.zone) > ZONE_CHARS_MAX:
        raise invalid(f"zone of {node.id}", node.zone, f"at most {ZONE_CHARS_MAX} characters")


def register(now: Topology, index: int, command: RegisterNode) -> Changed:
    node = command.node
    check_node(node)
    need_cluster(now)
    known = now.node(node.id)
    if known is None and len(now.nodes) >= NODES_MAX:
        raise invalid("node", node.id, f"one of at most {NODES_MAX} nodes, removed ones included")
    if known is not None and known.state is NodeState.REMOVED:
        raise invalid("node", node.id, "an id that was never removed from this cluster: ids are not used again")
    if known is not None and known.incarnation not in (0, node.incarnation):
        raise InvalidArgument(
            f"node {node.id} of this cluster has another data directory. If that is lost, remove {node.id} and start "
            f"this node under a new id: a node that forgot its votes must not come back under its name. If this node "
            f"is meant for another cluster, its addresses lead to this one: correct them, and give each a `cluster_id`",
            field="node",
        )
    if node.knows < now.cluster_version:
        raise invalid(
            "node",
            node.id,
            f"one of a release that knows version {now.cluster_version} of commands and formats, which this cluster is "
            f"at; {node.id} knows up to {node.knows}: start it with the release that the other nodes run",
        )
    wanted = node if known is None else known.registered_as(node)
    if wanted == known:
        return done(now, index, now.version, existed=True)
    others = [info for info in now.nodes if info.id != node.id]
    nodes = tuple(sorted([*others, wanted], key=lambda info: info.id))
    return done(_replace(now, nodes=nodes), index, existed=known is not None)


def raise_version(now: Topology, index: int, command: RaiseVersion) -> Changed:
    need_cluster(now)
    if command.version <= now.cluster_version:
        return done(now, index, now.version, existed=True)
    said = dict(command.said)
    nodes = tuple(_replace(info, knows=max(info.knows, said.get(info.id, FIRST))) for info in now.nodes)
    made = _replace(now, nodes=nodes)
    if older := made.older_than(command.version):
        names = ", ".join(f"{info.id} ({info.knows})" for info in older)
        raise ClusterTooOld(
            f"the cluster cannot be at version {command.version} of commands and formats yet: not known to {names}",
            nodes=", ".join(info.id for info in older),
        )
    return done(_replace(made, cluster_version=command.version), index)


def remove(now: Topology, index: int, command: RemoveNode) -> Changed:
    known = now.node(command.node)
    if known is None:
        raise invalid("node", command.node, "a node of this cluster")
    if known.state is NodeState.REMOVED:
        return done(now, index, now.version, existed=False)
    held = [info.shard for info in now.hosted_by(command.node)]
    if held or command.node in now.catalog:
        what = f"replicas of shards {held}" if held else "the catalog"
        raise InvalidArgument(
            f"node {command.node} still holds {what}: `needle node remove` moves that first", field="node"
        )
    gone = _replace(known, state=NodeState.REMOVED, maintenance=0)
    nodes = tuple(gone if info.id == command.node else info for info in now.nodes)
    return done(_replace(now, nodes=nodes), index, existed=True)


def drain(now: Topology, index: int, command: DrainNode) -> Changed:
    known = _known(now, command.node)
    return _with_node(now, index, known, _replace(known, state=_STATE[command.draining]))


def maintain(now: Topology, index: int, command: MaintainNode) -> Changed:
    known = _known(now, command.node)
    if command.on == bool(known.maintenance):
        return done(now, index, now.version, existed=True)
    if command.on:
        check_led(now, command.node)
    return _with_node(now, index, known, _replace(known, maintenance=index if command.on else 0))


def weigh(now: Topology, index: int, command: WeighNode) -> Changed:
    known, weight = _known(now, command.node), command.weight
    changed = _replace(known, weight=known.weight if weight is None else weight, weighed=weight is not None)
    check_node(changed)
    return _with_node(now, index, known, changed)


def zone(now: Topology, index: int, command: ZoneNode) -> Changed:
    known, zone = _known(now, command.node), command.zone
    changed = _replace(known, zone=known.zone if zone is None else zone, zoned=zone is not None)
    check_node(changed)
    return _with_node(now, index, known, changed)


def _known(now: Topology, node: NodeId) -> NodeInfo:
    known = now.node(node)
    if known is None or known.state is NodeState.REMOVED:
        raise invalid("node", node, f"a node of this cluster: {', '.join(now.addresses())}")
    return known


def _with_node(now: Topology, index: int, known: NodeInfo, changed: NodeInfo) -> Changed:
    if changed == known:
        return done(now, index, now.version, existed=True)
    nodes = tuple(changed if info is known else info for info in now.nodes)
    return done(_replace(now, nodes=nodes), index, existed=True)
