"""Measures a cluster: asks all replicas what they hold, and all nodes what their disks take.

Invariant: a shard counts as what its leader holds; one whose leader does not answer is left out, and named.
"""

from __future__ import annotations

import asyncio

import msgspec

from needle.base.errors import NeedleError, Unavailable
from needle.base.model import RaftStatus
from needle.client.directory import Caller
from needle.client.replicas import ask_replicas
from needle.protocol import calls
from needle.protocol.peer_calls import WHO, WhoAnswer, WhoCall
from needle.routing.stats import ClusterStats, NodeStats, ShardStats
from needle.routing.topology import NodeInfo, NodeState, Topology


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """leaders: by shard, the status of the replica that leads it. silent: shards without a leader that answers, which
    the stats leave out."""

    stats: ClusterStats
    leaders: dict[int, RaftStatus]
    silent: tuple[int, ...] = ()

    def check_whole(self) -> None:
        """Raises Unavailable that names the silent shards: what they hold is not known."""
        if self.silent:
            names = ", ".join(map(str, self.silent))
            raise Unavailable(f"what shard {names} holds is not known: no leader of it answers", shards=names)


async def measure(caller: Caller, topology: Topology, timeout: float) -> Measured:
    """All at once, none for longer than `timeout`."""
    replicas, nodes = await asyncio.gather(
        ask_replicas(caller, topology, timeout),
        asyncio.gather(*(_node(caller, one, timeout) for one in topology.nodes if one.state is not NodeState.REMOVED)),
    )
    leaders: dict[int, RaftStatus] = {}
    for one in replicas:
        status, known = one.status, leaders.get(one.shard)
        if status is None or status.state != "Leader":
            continue
        if known is None or known.current_term < status.current_term:
            leaders[one.shard] = status
    silent = tuple(info.shard for info in topology.serving if info.shard not in leaders)
    shards = tuple(
        ShardStats(shard=info.shard, documents=leaders[info.shard].documents, bytes=leaders[info.shard].live_bytes)
        for info in topology.serving
        if info.shard in leaders
    )
    return Measured(stats=ClusterStats(shards=shards, nodes=tuple(nodes)), leaders=leaders, silent=silent)


async def _node(caller: Caller, info: NodeInfo, timeout: float) -> NodeStats:
    node = info.id
    try:
        told = calls.decode(await caller.call(info.address, WHO, calls.encode(WhoCall()), timeout), WhoAnswer)
    except NeedleError:
        return NodeStats(node=node, alive=False)
    if told.node_id != node or told.lost or info.incarnation not in (0, told.incarnation):
        return NodeStats(node=node, alive=False)  # not the directory that the cluster counts on
    disk = told.disk
    if disk is None:
        return NodeStats(node=node)
    return NodeStats(node=node, free=max(0, disk.free - disk.kept_free), total=disk.total, used=disk.used)
