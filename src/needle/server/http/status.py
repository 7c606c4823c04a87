"""What a dashboard asks: the whole cluster at one look, and what it did in the last hour."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from needle.client.alerts import Condition
from needle.client.cluster_conditions import look, views
from needle.client.conditions import NodeView, lag_of, leader_of
from needle.client.health import ReplicaStatus, by_shard
from needle.protocol.peer_calls import WhoAnswer
from needle.protocol.probe_calls import LoadAnswer
from needle.routing.plans import CATALOG
from needle.routing.topology import NodeInfo, NodeState, Topology
from needle.server.history import EVERY_SECONDS, Moment
from needle.server.http.bodies import Body
from needle.server.http.call import Call
from needle.server.http.cluster import node_of
from needle.server.http.cluster_bodies import Node

STATUS_SECONDS = 2.0


class AskStatus(Body, frozen=True, kw_only=True):
    """timeout: seconds that each node may take; one that takes longer is told as one that does not answer."""

    timeout: Annotated[float, Meta(gt=0, le=60)] = STATUS_SECONDS


class AskHistory(Body, frozen=True, kw_only=True):
    """since: only what came after this instant, in seconds since 1970."""

    since: Annotated[float, Meta(ge=0)] = 0.0


class NodeStatus(Node, frozen=True, kw_only=True):
    """answers: whether it does; if not, what it says of itself is null. catalog: whether it
    holds the catalog. memory_used: bytes of its process in RAM; memory_total: of its machine, or what it may have of
    that. cpu_seconds: that its process has used. disk_free, disk_total: bytes of its disk; disk_used: by its own files;
    disk_kept_free: below that much room it refuses data. certificate_seconds: until its certificate or an
    authority expires; null without TLS."""

    answers: bool
    catalog: bool
    memory_used: int | None
    memory_total: int | None
    cpu_seconds: float | None
    disk_free: int | None
    disk_total: int | None
    disk_used: int | None
    disk_kept_free: int | None
    log_bytes: int | None
    log_bytes_max: int | None
    certificate_seconds: float | None


class ReplicaView(msgspec.Struct, frozen=True, kw_only=True):
    """One replica as its own node sees it. state: Leader, Follower, Candidate, PreCandidate, Learner, Lost, or silent:
    then `error` says why. lag_entries, lag_seconds: behind the leader; null while nobody can say. leaving: it holds its
    part until others do. writes, searches: a second, lately, that it took."""

    node: str
    state: str
    leaving: bool
    term: int
    commit_index: int
    applied_index: int
    lag_entries: int | None
    lag_seconds: float | None
    lease_seconds: float
    documents: int
    bytes: int
    writes: float
    searches: float
    error: str


class ShardStatus(msgspec.Struct, frozen=True, kw_only=True):
    """share: of all keys, 0 to 1. state: healthy, degraded or unavailable. replicas: the preferred leader's first."""

    shard: int
    share: float
    state: str
    leader: str | None
    term: int
    documents: int
    problems: list[str]
    replicas: list[ReplicaView]


class CatalogStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Which shards, nodes and collections there are is kept by a Raft group of its own. leader: null while there is
    none that its replicas know of."""

    leader: str | None
    replicas: list[ReplicaView]


class MoveStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A move of key ranges from one shard to another. copied: documents so far."""

    id: int
    source: int
    target: int
    state: str
    ranges: int
    copied: int


class StatusView(msgspec.Struct, frozen=True, kw_only=True):
    """What `needle status` says, and what nodes say of themselves. conditions: alerts that hold now, critical ones
    first; `runbook` is their section of the documents. version: of the catalog; epoch: of the map of shards."""

    version: int
    epoch: int
    cluster_version: int
    strategy: str
    replication_factor: int
    healthy: bool
    conditions: list[Condition]
    warnings: list[str]
    waiting: list[str]
    nodes: list[NodeStatus]
    shards: list[ShardStatus]
    catalog: CatalogStatus
    moves: list[MoveStatus]


class HistoryView(msgspec.Struct, frozen=True, kw_only=True):
    """Of the last hour at most, as this node saw it, ascending. every: seconds between two moments. now: by the node's
    clock."""

    every: float
    now: float
    moments: list[Moment]


async def status(call: Call) -> StatusView:
    timeout = call.body.timeout
    seen, loads = await asyncio.gather(look(call.client, timeout), call.client.node_loads(timeout=timeout))
    now, health, settings = call.client.topology(), seen.health, call.client.topology().settings
    replicas, held = by_shard(seen.replicas), views(seen.replicas)
    return StatusView(
        version=now.version,
        epoch=now.map.epoch if now.map is not None else 0,
        cluster_version=now.cluster_version,
        strategy=settings.strategy.text() if settings is not None else "",
        replication_factor=now.replication_factor,
        healthy=health.healthy,
        conditions=health.conditions,
        warnings=health.warnings,
        waiting=health.waiting,
        nodes=[
            _node(info, now, seen.told.get(info.id), loads.get(info.id))
            for info in now.nodes
            if info.state is not NodeState.REMOVED
        ],
        shards=[
            ShardStatus(
                shard=info.shard,
                share=found.share,
                state=found.state,
                leader=found.leader,
                term=found.term,
                documents=found.documents,
                problems=found.problems,
                replicas=[
                    _replica(one, held[info.shard], one.node in info.leaving) for one in replicas.get(info.shard, [])
                ],
            )
            for info in now.serving
            if (found := health.shards.get(info.shard)) is not None
        ],
        catalog=_catalog(seen.catalog),
        moves=_moves(now, seen.replicas),
    )


def _node(info: NodeInfo, now: Topology, who: WhoAnswer | None, load: LoadAnswer | None) -> NodeStatus:
    facts = load.facts if load is not None else None
    disk, levels = (who.disk, who.levels) if who is not None else (None, None)
    return NodeStatus(
        **msgspec.structs.asdict(node_of(info)),
        answers=who is not None,
        catalog=info.id in now.catalog,
        memory_used=facts.resident or None if facts is not None else None,
        memory_total=facts.memory or None if facts is not None else None,
        cpu_seconds=facts.cpu_seconds if facts is not None else None,
        disk_free=disk.free if disk is not None else None,
        disk_total=disk.total if disk is not None else None,
        disk_used=disk.used if disk is not None else None,
        disk_kept_free=disk.kept_free if disk is not None else None,
        log_bytes=levels.log_bytes if levels is not None else None,
        log_bytes_max=levels.log_bytes_max if levels is not None else None,
        certificate_seconds=levels.certificate_seconds if levels is not None else None,
    )


def _catalog(replicas: Sequence[ReplicaStatus]) -> CatalogStatus:
    beside = views(replicas).get(CATALOG, [])
    leader = leader_of(beside)
    return CatalogStatus(
        leader=leader.node_id if leader is not None else None,
        replicas=[_replica(one, beside, leaving=False) for one in replicas],
    )


def _replica(one: ReplicaStatus, beside: Sequence[NodeView], leaving: bool) -> ReplicaView:
    """beside: all of its shard."""
    said, lag = one.status, lag_of(one.node, beside)
    return ReplicaView(
        node=one.node,
        state=said.state if said is not None else "Lost" if one.lost else "silent",
        leaving=leaving,
        term=said.current_term if said is not None else 0,
        commit_index=said.commit_index if said is not None else 0,
        applied_index=said.last_applied if said is not None else 0,
        lag_entries=lag[0] if lag is not None else None,
        lag_seconds=lag[1] / 1000 if lag is not None else None,
        lease_seconds=said.lease_remaining if said is not None else 0.0,
        documents=said.documents if said is not None else 0,
        bytes=said.live_bytes if said is not None else 0,
        writes=said.writes if said is not None else 0.0,
        searches=said.searches if said is not None else 0.0,
        error=one.error,
    )


def _moves(now: Topology, replicas: Sequence[ReplicaStatus]) -> list[MoveStatus]:
    copied: dict[int, int] = {}
    for one in replicas:
        if one.status is not None and one.status.state == "Leader":
            copied.update(one.status.copied)
    return [
        MoveStatus(
            id=one.id,
            source=one.source,
            target=one.target,
            state=one.state.value,
            ranges=len(one.ranges),
            copied=copied.get(one.id, 0),
        )
        for one in now.moves
    ]


async def history(call: Call) -> HistoryView:
    kept = call.history
    return HistoryView(every=EVERY_SECONDS, now=kept.seen, moments=kept.since(call.body.since))
