"""What a cluster does now, from two looks at it: rates, latencies, lags, moves, and what its nodes use. Pure.

Invariant: a rate is of the time between the two looks by the node's own clock, and of one life of its process; where
one of the two is missing it is None, not 0. Figures are those that metrics and statistics are made of.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from needle.base.ids import NodeId
from needle.client.alerts import Condition
from needle.client.cluster_conditions import Seen, views
from needle.client.conditions import NodeView, lag_of, leader_of
from needle.protocol.probe_calls import LoadAnswer
from needle.routing.jobs import Progress
from needle.routing.stats import HotRange, RebalanceStats
from needle.routing.topology import MoveInfo, Topology

KINDS: Final = {
    "shard_write": "write",
    "shard_search": "search",
    "shard_search_many": "search_many",
    "shard_get": "get",
    "shard_count": "count",
    "shard_facet": "facet",
    "shard_scan": "scan",
}
"""Of calls that replicas answer; one that goes to several shards counts in each."""
Buckets = Mapping[float, float]
"""Calls that took up to so many seconds."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked at one moment. progress: of the last rebalance; None if there is none, or nobody says."""

    topology: Topology
    seen: Seen
    stats: RebalanceStats
    loads: Mapping[NodeId, LoadAnswer]
    progress: Progress | None


class CallsNow(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of one kind. rate: a second. p50, p99: seconds, to a bucket's width; None without calls."""

    kind: str
    rate: float
    p50: float | None
    p99: float | None


class NodeNow(msgspec.Struct, frozen=True, kw_only=True):
    """answers: whether it does. calls: a second. cpu: cores that its process keeps busy. resident, memory: bytes of
    its process, and of its machine. disk_used, disk_free: bytes. None for what is not known."""

    node: NodeId
    answers: bool
    leads: int
    replicas: int
    calls: float | None = None
    cpu: float | None = None
    cpus: int = 0
    resident: int | None = None
    memory: int | None = None
    disk_used: int | None = None
    disk_free: int | None = None


class ShardNow(msgspec.Struct, frozen=True, kw_only=True):
    """behind: entries that its slowest replica has not applied; lag_ms: age of the oldest entry that one lacks; None
    without a leader. writes, searches: a second, of the last half minute."""

    shard: int
    leader: NodeId | None
    healthy: int
    replicas: int
    documents: int
    behind: int | None
    lag_ms: float | None
    writes: float
    searches: float


class MoveNow(msgspec.Struct, frozen=True, kw_only=True):
    """A move of key ranges. copied: documents so far."""

    id: int
    source: int
    target: int
    state: str
    copied: int


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """looked: what it was made of; the next one begins there. rebalance: in words, "" if none is under way."""

    nodes: list[NodeNow]
    shards: list[ShardNow]
    calls: list[CallsNow]
    errors: float | None
    hot: list[HotRange]
    moves: list[MoveNow]
    rebalance: str
    conditions: list[Condition]
    looked: Look


def activity(now: Look, before: Look | None) -> Activity:
    """See the module. before: without it there are no rates of calls."""
    pairs = pairs_of(now.loads, before.loads if before is not None else {})
    held = views(now.seen.replicas)
    return Activity(
        nodes=[_node(node, now, pairs.get(node)) for node in now.topology.addresses()],
        shards=[_shard(number, now, held.get(number, [])) for number in now.seen.health.shards],
        calls=_calls(list(pairs.values())),
        errors=sum(max(0.0, b.errors - a.errors) / _elapsed((a, b)) for a, b in pairs.values()) if pairs else None,
        hot=list(now.stats.hot_ranges),
        moves=[_move(info, held.get(info.source, [])) for info in now.topology.moves],
        rebalance=_rebalance(now.progress),
        conditions=now.seen.health.conditions,
        looked=now,
    )


Pair = tuple[LoadAnswer, LoadAnswer]


def pairs_of(now: Mapping[NodeId, LoadAnswer], before: Mapping[NodeId, LoadAnswer]) -> dict[NodeId, Pair]:
    """Of nodes of which rates are known."""
    found = {node: (before[node], load) for node, load in now.items() if node in before}
    return {node: pair for node, pair in found.items() if pair[0].life == pair[1].life and pair[1].at > pair[0].at}


def _elapsed(pair: Pair) -> float:
    return pair[1].at - pair[0].at


def _between(pair: Pair, method: str) -> dict[float, float]:
    """Calls of a method between two looks, by the seconds up to which they took."""
    first = dict(pair[0].calls.get(method, ()))
    return {bound: count - first.get(bound, 0.0) for bound, count in pair[1].calls.get(method, ())}


def between(pairs: Collection[Pair], method: str) -> dict[float, float]:
    """The same of all of them together."""
    total: dict[float, float] = {}
    for pair in pairs:
        for bound, count in _between(pair, method).items():
            total[bound] = total.get(bound, 0.0) + count
    return total


def _calls(pairs: Sequence[Pair]) -> list[CallsNow]:
    found = []
    for method, kind in KINDS.items():
        total = between(pairs, method)
        rate = sum(_between(pair, method).get(float("inf"), 0.0) / _elapsed(pair) for pair in pairs)
        if any(method in pair[1].calls for pair in pairs):
            found.append(CallsNow(kind=kind, rate=rate, p50=quantile(total, 0.5), p99=quantile(total, 0.99)))
    return found


def quantile(buckets: Buckets, share: float) -> float | None:
    """The time within which a share of the calls was done, evenly within a bucket; the last bound for those beyond it.
    None of no calls."""
    rows = sorted(buckets.items())
    wanted = share * rows[-1][1] if rows else 0.0
    if wanted <= 0:
        return None
    low, below = 0.0, 0.0
    for bound, count in rows:
        if count >= wanted:
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return low


def _node(node: NodeId, now: Look, pair: Pair | None) -> NodeNow:
    load, who, held = now.loads.get(node), now.seen.told.get(node), now.stats.nodes.get(node)
    leads = sum(shard.leader == node for shard in now.seen.health.shards.values())
    facts, disk = load.facts if load is not None else None, who.disk if who is not None else None
    calls = cpu = None
    if pair is not None:
        calls = sum(_between(pair, method).get(float("inf"), 0.0) for method in KINDS) / _elapsed(pair)
        cpu = (pair[1].facts.cpu_seconds - pair[0].facts.cpu_seconds) / _elapsed(pair)
    return NodeNow(
        node=node,
        answers=load is not None or who is not None,
        leads=leads,
        replicas=held.replicas if held is not None else 0,
        calls=calls,
        cpu=cpu,
        cpus=facts.cpus if facts is not None else 0,
        resident=facts.resident if facts is not None else None,
        memory=facts.memory or None if facts is not None else None,
        disk_used=disk.used if disk is not None else None,
        disk_free=disk.free if disk is not None else None,
    )


def _shard(number: int, now: Look, replicas: Sequence[NodeView]) -> ShardNow:
    health, size = now.seen.health.shards[number], now.stats.shard_sizes.get(number)
    led = leader_of(replicas)
    lags = [lag for one in replicas if (lag := lag_of(one.node, replicas)) is not None]
    return ShardNow(
        shard=number,
        leader=health.leader,
        healthy=health.healthy_followers + (health.leader is not None),
        replicas=len(now.topology.shards[number].wanted),
        documents=health.documents,
        behind=max((entries for entries, _ in lags), default=0) if led is not None else None,
        lag_ms=max((ms for _, ms in lags), default=0.0) if led is not None else None,
        writes=size.writes if size is not None else 0.0,
        searches=size.searches if size is not None else 0.0,
    )


def _move(info: MoveInfo, replicas: Sequence[NodeView]) -> MoveNow:
    """replicas: of the shard that it leaves."""
    led = leader_of(replicas)
    copied = led.copied.get(info.id, 0) if led is not None else 0
    return MoveNow(id=info.id, source=info.source, target=info.target, state=str(info.state), copied=copied)


def _rebalance(progress: Progress | None) -> str:
    if progress is None or progress.is_complete:
        return ""
    left = f", {progress.eta:.0f} s left" if progress.eta is not None else ""
    why = f"; {progress.why}" if progress.why else ""
    return f"rebalance {progress.id} is {progress.state}: {progress.percent_complete:.0f} %{left}{why}"
