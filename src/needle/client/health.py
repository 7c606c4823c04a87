"""Whether a cluster is healthy, judged from what its replicas say. Pure.

Invariant: healthy means that every shard has a leader that its replicas agree on, and every replica answers and keeps
up; what a replication factor of 1 or a missing replica costs is said in words (`warnings`).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from needle.base.ids import CATALOG_GROUP, NodeId
from needle.base.model import RaftStatus
from needle.client.alerts import Condition
from needle.client.divergence import differing
from needle.routing.replication import taking
from needle.routing.stats import key_shares
from needle.routing.topology import NodeState, ShardInfo, Topology

LAG_ENTRIES_MAX = 10_000


class ReplicaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One replica as its node sees it; status None: it did not answer, for the reason in `error`. lost: it answered
    that no replica on its node may go on, and why; "" otherwise. shard: -1 of the catalog's."""

    shard: int
    node: NodeId
    address: str
    status: RaftStatus | None
    error: str = ""
    lost: str = ""


class ShardHealth(msgspec.Struct, frozen=True, kw_only=True):
    """state: "healthy"; "degraded": it serves, but a replica is down or behind; "unavailable": it has no leader, so
    strong and leased reads and writes wait. documents: as the leader counts them, all collections. missing_replicas: of
    those that the catalog wants, how many are down, behind, damaged or not built yet, and how many fewer these are than
    the cluster's replication factor: so many fewer may fail."""

    state: str
    leader: NodeId | None
    term: int
    healthy_followers: int
    total_followers: int
    documents: int
    share: float
    problems: list[str]
    missing_replicas: int = 0


class ClusterHealth(msgspec.Struct, frozen=True, kw_only=True):
    """healthy: all shards are. warnings: what would be lost with one node, and other things to know. waiting: what was
    decided and does not go on now, and why: rebalances, replicas, key ranges. answering: by node that holds replicas,
    whether it answered for any of them. conditions: rows of the alert table that hold now, critical ones first
    (docs/alerts.md); of `health_check` only."""

    healthy: bool
    shards: dict[int, ShardHealth]
    warnings: list[str]
    waiting: list[str] = []
    answering: dict[NodeId, bool] = {}
    conditions: list[Condition] = []

    @property
    def under_replicated(self) -> list[int]:
        """The shards that lack a replica."""
        return [number for number, shard in self.shards.items() if shard.missing_replicas]


def by_shard(replicas: Sequence[ReplicaStatus]) -> dict[int, list[ReplicaStatus]]:
    """The replicas of each shard. A node looks every two seconds: to go through all of them for each shard would take
    its loop most of a second with a thousand."""
    found: dict[int, list[ReplicaStatus]] = {}
    for one in replicas:
        found.setdefault(one.shard, []).append(one)
    return found


def judge(topology: Topology, replicas: Sequence[ReplicaStatus]) -> ClusterHealth:
    """The health of all shards."""
    shares, held = key_shares(topology), by_shard(replicas)
    factor = topology.replication_factor
    shards = {
        info.shard: _judge_shard(info, held.get(info.shard, []), shares.get(info.shard, 0.0), factor)
        for info in topology.serving
    }
    return ClusterHealth(
        healthy=bool(shards) and all(shard.state == "healthy" for shard in shards.values()),
        shards=shards,
        warnings=_warnings(topology),
        waiting=_waiting(topology, replicas),
        answering=_answering(replicas),
    )


def _waiting(topology: Topology, replicas: Sequence[ReplicaStatus]) -> list[str]:
    job = topology.rebalance
    found = [f"rebalance {job.id}: {job.why}"] if job is not None and not job.over and job.why else []
    for one in replicas:
        if one.status is not None and one.status.state == "Leader":
            whys = [*one.status.held_moves, *([one.status.waits_for] if one.status.waits_for else [])]
            found += [f"shard {one.shard}: {why}" for why in whys]
    return found


def _answering(replicas: Sequence[ReplicaStatus]) -> dict[NodeId, bool]:
    found = dict.fromkeys((one.node for one in replicas), False)
    found.update((one.node, True) for one in replicas if one.status is not None or one.lost)
    return found


def lost_nodes(replicas: Sequence[ReplicaStatus]) -> set[NodeId]:
    """Nodes with replicas that must not go on, as they say themselves or as others say that do not hear them."""
    found = {r.node for r in replicas if r.lost or (r.status is not None and r.status.lost)}
    return found.union(*(r.status.refused for r in replicas if r.status is not None))


def _judge_shard(info: ShardInfo, replicas: Sequence[ReplicaStatus], share: float, factor: int) -> ShardHealth:
    answered = {r.node: r.status for r in replicas if r.status is not None}
    leader, missing = leading(replicas), len(missing_of(info, replicas))
    replicas = [r for r in replicas if r.node not in info.leaving]  # one that leaves may still lead, and need no more
    answered = {node: status for node, status in answered.items() if node not in info.leaving}
    problems = [r.lost or f"{r.node} does not answer: {r.error}" for r in replicas if r.status is None]
    if leader is not None:
        unheard = {r.node for r in replicas if r.status is None} & leader.refused.keys()
        problems += [f"{leader.node_id} refuses {node}: {leader.refused[node]}" for node in sorted(unheard)]
    healthy = 0
    for node, status in sorted(answered.items()):
        if status.damage:
            problems.append(f"{node} is damaged and waits for its data from another replica: {status.damage}")
            continue
        if status.lost:
            problems.append(f"{node} does not go on: {status.lost}")
            continue
        if leader is None or node == leader.node_id:
            continue
        behind = leader.commit_index - status.last_applied
        if node in leader.refused:
            problems.append(f"{leader.node_id} refuses {node}: {leader.refused[node]}")
        elif status.leader != leader.node_id:
            problems.append(f"{node} follows {status.leader or 'nobody'}, not {leader.node_id}")
        elif behind > LAG_ENTRIES_MAX:
            problems.append(f"{node} is {behind} entries behind")
        else:
            healthy += 1
    if leader is None:
        problems.insert(0, "no replica leads")
    else:
        problems += _told_by(leader)
    followers = max(0, len(info.wanted) - (leader is None or leader.node_id in info.wanted))
    state = "unavailable" if leader is None else "healthy" if healthy == followers and not problems else "degraded"
    return ShardHealth(
        state=state,
        leader=leader.node_id if leader else None,
        term=max((status.current_term for status in answered.values()), default=0),
        healthy_followers=healthy,
        total_followers=followers,
        documents=leader.documents if leader else 0,
        share=share,
        problems=problems,
        missing_replicas=missing + not_wanted(info, factor),
    )


def leading(replicas: Sequence[ReplicaStatus]) -> RaftStatus | None:
    """What the replica says that leads in the newest term."""
    leaders = [one.status for one in replicas if one.status is not None and one.status.state == "Leader"]
    return max(leaders, key=lambda status: status.current_term, default=None)


def lacking(wanted: Sequence[NodeId], replicas: Sequence[ReplicaStatus], leader: RaftStatus | None) -> set[NodeId]:
    """The nodes whose replicas, of those that the catalog wants of a group, are down, behind, damaged or not built
    yet."""
    answered = {one.node: one.status for one in replicas if one.status is not None}
    whole = [
        node
        for node, status in answered.items()
        if not status.damage
        and not status.lost
        and (leader is None or node in leader.voters)
        and (leader is None or node == leader.node_id or leader.commit_index - status.last_applied <= LAG_ENTRIES_MAX)
        and (leader is None or node not in leader.refused)
    ]
    return set(wanted) - set(whole)


def missing_of(info: ShardInfo, replicas: Sequence[ReplicaStatus]) -> set[NodeId]:
    """As `lacking`, of a shard. replicas: all of it, for one that leaves may still lead."""
    return lacking(info.wanted, [one for one in replicas if one.node not in info.leaving], leading(replicas))


def catalog_lacks(topology: Topology, replicas: Sequence[ReplicaStatus]) -> set[NodeId]:
    """The nodes whose replicas of the catalog are missing. replicas: of the catalog."""
    holders = topology.holders(CATALOG_GROUP)
    return lacking(holders.wanted, replicas, leading(replicas)) if holders is not None else set()


def not_wanted(info: ShardInfo, factor: int) -> int:
    """Replicas that a shard would have more of by the replication factor, and the catalog names no nodes for."""
    return max(0, factor - len(info.wanted))


def _told_by(leader: RaftStatus) -> list[str]:
    """What a leader says is wrong with its shard."""
    problems: list[str] = []
    if leader.unknown_collections:
        names = ", ".join(leader.unknown_collections)
        problems.append(f"holds collections of which the catalog knows nothing: {names}")
    if leader.diverged:
        problems.append(f"its replicas do not hold the same: {differing(leader.diverged, leader.compared)}")
    problems += leader.held_moves
    if leader.waits_for:
        problems.append(f"its replicas are not yet where the catalog wants them: {leader.waits_for}")
    return problems


def _warnings(topology: Topology) -> list[str]:
    told: list[str] = []
    if topology.settings is None:
        return ["the cluster was not created yet"]
    told += [recovery.in_words() for recovery in topology.recovered]
    job = topology.rebalance
    if job is not None and not job.over:
        waits = f", and waits: {job.why}" if job.why else ""
        for_whom = f", for {', '.join(job.wish.lost)} is gone" if job.healing else ""
        told.append(
            f"rebalance {job.id} is {job.state}{for_whom}{waits}; `needle rebalance --status` shows how far it is"
        )
    draining = [info.id for info in topology.nodes if info.state is NodeState.DRAINING]
    if draining:
        told.append(f"{', '.join(draining)} is to be emptied, and gets nothing new")
    resting = [info.id for info in topology.nodes if info.maintenance]
    if resting:
        until = "it leads nothing that others could, until `needle maintenance exit`"
        told.append(f"{', '.join(resting)} is in maintenance: {until}")
    alone = [info.shard for info in topology.serving if len(info.wanted) == 1]
    if alone:
        told.append(f"not redundant: shards {', '.join(map(str, alone))} have one replica each; a lost disk loses them")
    holders = topology.holders(CATALOG_GROUP)
    if holders is not None and len(holders.wanted) == 1 < len(topology.addresses()):
        told.append(f"not redundant: only {holders.wanted[0]} holds the catalog; a lost disk loses the cluster's shape")
    even = [info.shard for info in topology.serving if len(info.wanted) == 2]
    if even:
        told.append(f"shards {', '.join(map(str, even))} have two replicas: both must run to accept writes")
    factor = topology.replication_factor
    short = [info.shard for info in topology.serving if not_wanted(info, factor)]
    if short:
        nodes = len(taking(topology))
        more = ""
        if nodes < factor:
            fewer = f"`needle cluster replication-factor {nodes}` where these are all there shall be"
            more = f" once there are more than {nodes} nodes; {fewer}"
        told.append(
            f"shards {', '.join(map(str, short))} were given fewer than {factor} replicas: "
            f"`needle rebalance` gives them more{more}"
        )
    return told
