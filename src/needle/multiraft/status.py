"""A replica's view of its group, for people and monitors. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from needle.base.ids import NodeId
from needle.base.model import PeerStatus, RaftStatus
from needle.multiraft.group import Group
from needle.raft import membership
from needle.raft.progress import SNAPSHOT
from needle.raft.state import Role

_STATES = {
    Role.LEADER: "Leader",
    Role.FOLLOWER: "Follower",
    Role.CANDIDATE: "Candidate",
    Role.PRE_CANDIDATE: "PreCandidate",
}


def group_status(
    group: Group,
    node_id: NodeId,
    maintenance: bool,
    now: float,
    active_seconds: float,
    refused: dict[NodeId, str],
    shares: Mapping[NodeId, float],
) -> RaftStatus:
    """The status of one replica; per-peer lag on a leader only. now: seconds of the node's monotonic clock.
    active_seconds: for how long a peer counts as active after it was heard from. refused: nodes that this one does not
    hear, of which the members of the group are told. shares: of the snapshot that is here, what each peer has read."""
    raft, log = group.raft, group.log
    conf = raft.conf
    voter = node_id in conf.voters or node_id in conf.voters_outgoing
    state = _STATES[raft.role]
    if raft.role is Role.FOLLOWER and not voter:
        state = "Learner"
    if group.lost:
        state = "Lost"
    return RaftStatus(
        node_id=node_id,
        group=group.id,
        state=state,
        current_term=raft.term,
        leader=raft.leader or None,
        commit_index=raft.commit,
        last_applied=raft.applied,
        first_index=log.first_index(),
        last_index=raft.last_index,
        peers=_peers(group, node_id, now, active_seconds) if raft.role is Role.LEADER else [],
        voters=sorted(conf.voters),
        learners=sorted(conf.learners),
        lease_remaining=max(0.0, raft.lease_remaining(now)),
        leader_changes=raft.leader_changes,
        elections={cause.value: times for cause, times in raft.causes.elections.items()},
        stepdowns={cause.value: times for cause, times in raft.causes.stepdowns.items()},
        maintenance=maintenance,
        lost=group.lost,
        refused={node: why for node, why in refused.items() if node in membership.members(conf)},
        fetched=_fetched(group, shares) if raft.role is Role.LEADER else {},
        damage="" if group.machine.damage is None else group.machine.damage.message,
    )


class GroupLoad(NamedTuple):
    """proposals: that wait here to be committed and applied. fetching: a snapshot is on its way, or not installed."""

    proposals: int
    fetching: bool


def group_load(group: Group) -> GroupLoad:
    """What is under way in one replica."""
    return GroupLoad(len(group.proposals), group.snapshots.fetching)


def _fetched(group: Group, shares: Mapping[NodeId, float]) -> dict[NodeId, float]:
    """By its learners, which are there only until they have everything."""
    raft = group.raft
    return {
        peer: shares.get(peer, 0.0) if progress.state is SNAPSHOT else min(1.0, progress.match / max(1, raft.commit))
        for peer, progress in raft.progress().items()
        if progress.is_learner
    }


def _peers(group: Group, node_id: NodeId, now: float, active_seconds: float) -> list[PeerStatus]:
    raft = group.raft
    return [
        PeerStatus(
            id=peer,
            address="",
            match_index=progress.match,
            state=progress.state.value,
            recently_active=progress.recent_active and now - progress.contact <= active_seconds,
            is_learner=progress.is_learner,
            lag_entries=max(0, raft.commit - progress.match),
            lag_ms=group.appended.lag_ms(progress.match, raft.last_index, now),
        )
        for peer, progress in sorted(raft.progress().items())
        if peer != node_id
    ]
