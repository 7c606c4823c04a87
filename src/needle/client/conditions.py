"""The alert conditions of one shard, decided from what its replicas say about themselves. Pure.

Invariant: a condition is reported if and only if it holds in the views given; thresholds are the alert table's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from needle.base.model import RaftStatus
from needle.client.alerts import LAG_CRITICAL_MS, LAG_WARNING_MS, WARNING, Condition, holds
from needle.client.divergence import differing

GOES_ON = "the cluster goes on with it when that is put right"
FETCHES = "it serves nothing and fetches its data from the other replicas; check its disk"
RESTORE = "no replica is left to fetch the data from: restore a backup; check the disk"
START = "start nodes until a majority runs; writes and strong reads wait for it"
LEADERLESS = "a majority answers; if it stays, read 'Election failures' in docs/troubleshooting.md"
DIVERGED = "a bug, or memory that is broken: change no replicas; copy the directories away, then read the runbook"
COPIED = "plan to copy it; read 'Collections that are written forever' in docs/operations.md"
WIDER = "search with a larger ef_search, or give the collection one: `needle collections alter --ef-search`"
ELECTING = ("Candidate", "PreCandidate")


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """One replica as seen from here. status is None when its node did not answer; then error says why, and lost why no
    replica there may go on, if that was its answer."""

    node: str
    address: str
    status: RaftStatus | None = None
    error: str = ""
    lost: str = ""


def leader_of(views: Sequence[NodeView]) -> RaftStatus | None:
    """The status of the node that leads in the highest term, if one does. An older leader that has not yet noticed
    its successor does not count: it can commit nothing."""
    statuses = [view.status for view in views if view.status is not None]
    newest = max((status.current_term for status in statuses), default=0)
    leaders = [status for status in statuses if status.state == "Leader" and status.current_term == newest]
    return leaders[0] if leaders else None


def lag_of(node: str, views: Sequence[NodeView]) -> tuple[int, float] | None:
    """(entries, milliseconds) that `node` lags behind the leader, by what the leader knows of its log or by what it
    says itself to have applied, whichever is more; None when no leader is known to say."""
    applied = next((view.status.last_applied for view in views if view.node == node and view.status is not None), None)
    leader = leader_of(views)
    if leader is None:
        return None
    if leader.node_id == node:
        return 0, 0.0
    for peer in leader.peers:
        if peer.id == node:
            behind = 0 if applied is None else leader.commit_index - applied
            return max(peer.lag_entries, behind), peer.lag_ms
    return None


def conditions(
    views: Sequence[NodeView],
    *,
    shard: int | None = None,
    leaving: Collection[str] = (),
    maintenance: Collection[str] = (),
) -> list[Condition]:
    """Every condition of one shard that holds, critical ones first. shard: named in what concerns it as a whole, if the
    cluster has several. leaving: nodes that hold it only until others do. maintenance: nodes that are in it, so that it
    is no wonder if they do not run."""
    named = "" if shard is None else f"shard {shard}: "
    damaged = {view.node: view.status.damage for view in views if view.status is not None and view.status.damage}
    whole = len(damaged) < len(views)
    found = [
        holds("NeedleReplicaDamaged", f"{named}{node}: {damage}", FETCHES if whole else RESTORE)
        for node, damage in damaged.items()
    ]
    answered = sum(view.status is not None for view in views)
    found += _election(views, named)
    if leader_of(views) is None:
        action = START if 2 * answered <= len(views) else LEADERLESS if whole else RESTORE
        found.append(holds("NeedleShardNoLeader", f"{named}{answered} of {len(views)} nodes answer", action))
    found += [
        holds(
            "NeedleNodeUnreachable",
            f"{view.node} at {view.address}{', in maintenance' if view.node in maintenance else ''}",
            f"check the process and the network: {view.error}",
            severity=WARNING if view.node in maintenance else "",
        )
        for view in views
        if view.status is None and not view.lost and view.node not in leaving
    ]
    found += _lost_conditions(views)
    found += _lag_conditions(views, named, maintenance=maintenance)
    found += _held_conditions(views, named)
    found += [
        holds("NeedleRecallLow", f"{named}{name}: {share:.0%} of what is nearest, by {view.node}", WIDER)
        for view in views
        for name, share in (view.status.recall if view.status is not None else {}).items()
    ]
    found += [
        holds("NeedleCollectionWorn", f"{named}{name}: {share:.0%} of its versions", COPIED)
        for name, share in _worn(views)
    ]
    return sorted(found, key=lambda condition: condition.severity != "critical")


def catalog_conditions(views: Sequence[NodeView], lost: Collection[str] = ()) -> list[Condition]:
    """Of the catalog's replicas: those that are damaged, must not go on, ask for votes, or answer and are behind. Who
    does not answer, and who leads, has conditions of its own. lost: nodes of which the conditions of shards tell that
    they are."""
    answering = [view.node for view in views if view.status is not None]
    damaged = {view.node: view.status.damage for view in views if view.status is not None and view.status.damage}
    action = FETCHES if len(damaged) < len(views) else RESTORE
    found = [holds("NeedleReplicaDamaged", f"catalog: {node}: {damage}", action) for node, damage in damaged.items()]
    found += _diverged(leader_of(views), "catalog: ")
    named = "catalog: "
    return found + _election(views, named) + _lost_conditions(views, lost) + _lag_conditions(views, named, answering)


def _election(views: Sequence[NodeView], named: str) -> list[Condition]:
    answered = sum(view.status is not None for view in views)
    electing = [view.node for view in views if view.status is not None and view.status.state in ELECTING]
    if not electing or 2 * answered <= len(views):  # with fewer nobody can be elected: what helps is in "no leader"
        return []
    action = "wait a second; if it stays, read 'Election failures' in docs/troubleshooting.md"
    return [holds("NeedleElection", f"{named}{', '.join(electing)}", action)]


def _worn(views: Sequence[NodeView]) -> list[tuple[str, float]]:
    """Collections that have taken much of what they may, and how much of it, by the replica that is the furthest."""
    most: dict[str, float] = {}
    for view in views:
        for name, share in (view.status.worn if view.status is not None else {}).items():
            most[name] = max(share, most.get(name, 0.0))
    return sorted(most.items())


def _lost_conditions(views: Sequence[NodeView], but: Collection[str] = ()) -> list[Condition]:
    """Replicas that must not go on, as they say themselves or as others say that do not hear them; but those of some
    nodes."""
    found: dict[str, str] = {}
    for view in views:
        for node, why in (view.status.refused if view.status is not None else {}).items():
            found.setdefault(node, f"refused by {view.node}: {why}")
    found |= {view.node: view.status.lost for view in views if view.status is not None and view.status.lost}
    found |= {view.node: view.lost for view in views if view.lost}
    action = "read 'A replica does not go on' in docs/troubleshooting.md before anything else"
    return [
        holds("NeedleReplicaLost", f"{node}: {why}", action) for node, why in sorted(found.items()) if node not in but
    ]


def _lag_conditions(
    views: Sequence[NodeView], named: str, only: Collection[str] | None = None, maintenance: Collection[str] = ()
) -> list[Condition]:
    """only: those nodes, all if None. A node that is stopped in maintenance is no wonder, and told of as one."""
    leader = leader_of(views)
    found: list[Condition] = []
    for peer in leader.peers if leader is not None else []:
        if (only is not None and peer.id not in only) or (peer.id in maintenance and not peer.recently_active):
            continue
        subject = f"{named}{peer.id} is {peer.lag_entries} entries, {peer.lag_ms / 1000:.1f} s behind"
        if leader is not None and not peer.match_index and not peer.recently_active:
            subject = (
                f"{named}{peer.id} has not answered since {leader.node_id} leads, and is behind by an unknown number: "
                f"at most {peer.lag_entries} entries, {peer.lag_ms / 1000:.1f} s"
            )
        if peer.lag_ms > LAG_CRITICAL_MS:
            action = "its disk or network does not keep up, or it is down; do not stop another node"
            found.append(holds("NeedleReplicationLagLong", subject, action))
        elif peer.lag_ms > LAG_WARNING_MS:
            action = "check the network and the disk of that node"
            found.append(holds("NeedleReplicationLag", subject, action))
    return found


def _held_conditions(views: Sequence[NodeView], named: str) -> list[Condition]:
    """What the leader says that it cannot go on with, or does not understand."""
    leader = leader_of(views)
    if leader is None:
        return []
    found = [("NeedleMoveWaits", held, "it goes on when that is put right") for held in leader.held_moves]
    if leader.waits_for:
        found.append(("NeedleReplicasNotInPlace", leader.waits_for, GOES_ON))
    if leader.unknown_collections:
        names = ", ".join(leader.unknown_collections)
        action = "they are kept, and not served: was the catalog restored from an older copy?"
        found.append(("NeedleUnknownCollections", names, action))
    told = [holds(alert, f"{named}{subject}", action) for alert, subject, action in found]
    return _diverged(leader, named) + told


def _diverged(leader: RaftStatus | None, named: str) -> list[Condition]:
    """What the leader found when it compared replicas."""
    if leader is None or not leader.diverged:
        return []
    subject = f"{named}{differing(leader.diverged, leader.compared)}"
    return [holds("NeedleReplicaDivergence", subject, DIVERGED)]
