"""Measures a cluster: asks all replicas what they hold, and all nodes what their disks take.

Invariant: a shard counts as what its leader holds; one whose leader does not answer counts as unknown, not as empty.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from needle.base.errors import NeedleError
from needle.base.model import RaftStatus
from needle.client.directory import Caller
from needle.client.health import ReplicaStatus
from needle.client.replicas import ask_replicas
from needle.protocol import calls
from needle.protocol.peer_calls import WHO, WhoAnswer, WhoCall
from needle.routing.stats import ClusterStats, NodeStats, RangeStats, ShardStats
from needle.routing.topology import NodeInfo, NodeState, Topology


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """leaders: by shard, the status of the replica that leads it; those without one are the stats' `unknown`."""

    stats: ClusterStats
    leaders: dict[int, RaftStatus]


CALLS_FREE = 64
CALLS_A_SECOND = 200


class Measuring:
    """Measures again and again at a cost that follows what changes: a large cluster is asked whole only so often that
    the calls are CALLS_A_SECOND at most; in between only shards that the catalog says something new of. A small one is
    asked whole each time."""

    def __init__(self) -> None:
        self._last: tuple[Topology, float, Measured] | None = None

    async def measure(self, caller: Caller, topology: Topology, timeout: float, now: float) -> Measured:
        """now: seconds."""
        nodes = [one for one in topology.nodes if one.state is not NodeState.REMOVED]
        calls = len(nodes) + sum(len(info.replicas) for info in topology.serving)
        last, lasts = self._last, max(0, calls - CALLS_FREE) / CALLS_A_SECOND
        if last is None or now - last[1] >= lasts or last[0].nodes != topology.nodes:
            found = await measure(caller, topology, timeout)
            self._last = topology, now, found
            return found
        before, at, known = last
        was = {info.shard: info for info in before.shards}
        again = {info.shard for info in topology.serving if info.leaving or was.get(info.shard) != info}
        again |= _moving(before) | _moving(topology) | set(known.stats.unknown)
        leaders = {shard: one for shard, one in known.leaders.items() if shard not in again}
        leaders |= _leaders(await ask_replicas(caller, topology, timeout, again, parts=True))
        found = _measured(topology, leaders, known.stats.nodes)
        self._last = topology, at, found
        return found


async def measure(
    caller: Caller, topology: Topology, timeout: float, *, hot: bool = False, for_client: bool = False
) -> Measured:
    """All at once, none for longer than `timeout`. hot: with the calls a second of shards and of ranges; else with what
    is known of where ids lie, for who plans. for_client: raises Forbidden for one that may not ask."""
    replicas, nodes = await asyncio.gather(
        ask_replicas(caller, topology, timeout, hot=hot, parts=not hot, for_client=for_client),
        ask_nodes(caller, topology, timeout),
    )
    found = _measured(topology, _leaders(replicas), tuple(nodes))
    return _with_calls(found, replicas) if hot else found


def _with_calls(found: Measured, replicas: Sequence[ReplicaStatus]) -> Measured:
    """Writes, and the ranges, as the leaders say; searches of all replicas."""
    searches: defaultdict[int, float] = defaultdict(float)
    for one in replicas:
        searches[one.shard] += one.status.searches if one.status is not None else 0.0
    shards = tuple(
        msgspec.structs.replace(
            one,
            writes=found.leaders[one.shard].writes,
            searches=searches[one.shard],
            ranges=tuple(
                RangeStats(span=(start, end), documents=0, bytes=0, writes=writes, searches=read)
                for start, end, writes, read in found.leaders[one.shard].hot
            ),
        )
        for one in found.stats.shards
    )
    return msgspec.structs.replace(found, stats=msgspec.structs.replace(found.stats, shards=shards))


def _moving(topology: Topology) -> set[int]:
    """Shards that something is moved of."""
    job = topology.rebalance
    running = {group - 1 for one in job.running for group in one.move.groups if group} if job is not None else set()
    return running | {shard for info in topology.moves for shard in (info.source, info.target)}


def _leaders(replicas: Sequence[ReplicaStatus]) -> dict[int, RaftStatus]:
    leaders: dict[int, RaftStatus] = {}
    for one in replicas:
        status, known = one.status, leaders.get(one.shard)
        if status is None or status.state != "Leader":
            continue
        if known is None or known.current_term < status.current_term:
            leaders[one.shard] = status
    return leaders


def _measured(topology: Topology, leaders: Mapping[int, RaftStatus], nodes: tuple[NodeStats, ...]) -> Measured:
    unknown = tuple(info.shard for info in topology.serving if info.shard not in leaders)
    shards = tuple(_sizes(info.shard, leaders[info.shard]) for info in topology.serving if info.shard in leaders)
    there = {info.shard: leaders[info.shard] for info in topology.serving if info.shard in leaders}
    return Measured(stats=ClusterStats(shards=shards, nodes=nodes, unknown=unknown), leaders=there)


def _sizes(shard: int, status: RaftStatus) -> ShardStats:
    """Where parts are known, they share the documents and bytes of now: they may be of some seconds ago. Those of a
    shard that was empty then say nothing of what it has now."""
    total, ranges, before = sum(count for _, _, count in status.parts), [], 0
    for start, end, count in status.parts if total else ():
        documents, size = (
            amount * (before + count) // total - amount * before // total
            for amount in (status.documents, status.live_bytes)
        )
        ranges.append(RangeStats(span=(start, end), documents=documents, bytes=size))
        before += count
    return ShardStats(shard=shard, documents=status.documents, bytes=status.live_bytes, ranges=tuple(ranges))


async def ask_nodes(caller: Caller, topology: Topology, timeout: float) -> list[NodeStats]:
    """Whether each node answers, with the directory that the cluster counts on, and what its disk takes; all at once,
    none for longer than `timeout`."""
    there = (info for info in topology.nodes if info.state is not NodeState.REMOVED)
    return list(await asyncio.gather(*(_node(caller, info, timeout) for info in there)))


async def _node(caller: Caller, info: NodeInfo, timeout: float) -> NodeStats:
    node = info.id
    try:
        told = calls.decode(await caller.call(info.address, WHO, calls.encode(WhoCall()), timeout), WhoAnswer)
    except NeedleError:
        return NodeStats(node=node, alive=False)
    if told.node_id != node or told.lost or info.incarnation not in (0, told.incarnation):
        return NodeStats(node=node, alive=False)  # not the directory that the cluster counts on
    disk, memory = told.disk, told.levels.memory if told.levels is not None else None
    tight = memory is not None and memory.tight
    if disk is None:
        return NodeStats(node=node, tight=tight)
    free = max(0, disk.free - disk.kept_free)
    return NodeStats(node=node, free=free, total=disk.total, used=disk.used, tight=tight)
