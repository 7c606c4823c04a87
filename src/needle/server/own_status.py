"""What a node says of itself: whether it should get traffic, and how its replicas are.

Looks only; it must not change anything, nor know the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name, shard_group
from needle.base.model import RaftStatus
from needle.client.alerts import RECALL_MIN
from needle.multiraft.host import Host
from needle.routing.topology import Topology, called
from needle.server.address_book import AddressBook
from needle.server.catalog.collections import Reconciler
from needle.server.chores.comparing import Comparing
from needle.server.replica import HostedReplica
from needle.server.upkeep.mover import Mover
from needle.server.upkeep.replicas import Replicas
from needle.shard.state_machine import Replica

WORN_MAX = 16


class Shown(Protocol):
    """The node that is looked at."""

    node_id: NodeId
    host: Host
    book: AddressBook
    topology: Topology
    reconciler: Reconciler
    comparing: Comparing

    @property
    def groups(self) -> Mapping[GroupId, HostedReplica]: ...
    def hosted(self, group: GroupId) -> HostedReplica: ...
    def now(self) -> float: ...


def why_not_ready(node: Shown) -> str:
    """Why a node that is alive should get no traffic now; "" when it should."""
    if node.host.lost:
        return f"node {node.node_id} does not go on: {node.host.lost}"
    if node.topology.settings is None:
        return "belongs to no cluster yet"
    if node.topology.node(node.node_id) is None:
        return "the catalog does not know this node yet"
    for info in node.topology.hosted_by(node.node_id):
        if shard_group(info.shard) not in node.groups:
            return f"shard {info.shard} is not open here yet"
    if node.host.maintenance:
        return "in maintenance"
    for group, hosted in node.groups.items():
        if lost := node.host.lost_replica(group):
            return f"{group_name(group)} does not go on: {lost}"
        if hosted.replica.damage is not None:
            return f"the replica of {group_name(group)} is damaged and waits for its data from another one"
        if node.host.leader(group) is None:
            return f"{group_name(group)} has no leader"
        if not hosted.caught_up:
            return f"{group_name(group)} has not caught up since the start"
    return ""


def status_of(node: Shown, group: GroupId, mover: Mover, replicas: Replicas, *, digest: bool) -> RaftStatus:
    """See Node.status."""
    status = node.host.status(group)
    peers = [msgspec.structs.replace(peer, address=node.book.get(peer.id) or "") for peer in status.peers]
    status = msgspec.structs.replace(status, peers=peers, waits_for=replicas.why(group))
    if group == CATALOG_GROUP:
        return msgspec.structs.replace(status, compared=node.comparing.index, diverged=node.comparing.diverged)
    hosted, now = node.hosted(group), node.now()
    replica = hosted.replica
    return msgspec.structs.replace(
        status,
        writes=hosted.calls.writes(now),
        searches=hosted.calls.searches(now),
        documents=replica.count(),
        live_bytes=replica.live_bytes,
        digest=replica.stored_digest()[1] if digest else "",
        unknown_collections=node.reconciler.unknown.get(group, []),
        held_moves=mover.held(group),
        copied=mover.copied(group),
        compared=hosted.comparing.index,
        diverged=hosted.comparing.diverged,
        recall={called(name): share for name, share in hosted.recall.told().items() if share < RECALL_MIN},
        worn=_worn(replica),
    )


def _worn(replica: Replica) -> dict[str, float]:
    """See RaftStatus."""
    most = sorted(replica.held.worn(), key=lambda one: one[1], reverse=True)[:WORN_MAX]
    return {called(name): share for name, share in most}
