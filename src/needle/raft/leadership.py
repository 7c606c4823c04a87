"""What a leader does as time passes: heartbeats, check-quorum, transfers and snapshots that take too long.

Invariant: a leader that hears no quorum for an election timeout, or whose disk stalls, leaves office (thesis, 6.2).
"""

from __future__ import annotations

from needle.base.ids import NodeId
from needle.raft import election, replication, transfer
from needle.raft.causes import Cause
from needle.raft.messages import NO_LEADER
from needle.raft.quorum import quorum_value
from needle.raft.state import NEVER, State


def tick(s: State, beat: bool = False) -> None:
    """Let time pass on a leader; afterwards it may be one no longer. beat: other groups of this node send heartbeats
    now: these go along if half of their interval has passed. Then both are due together from now on, in one frame."""
    stalled = election.is_disk_stalled(s)
    if not stalled and hears_quorum(s):
        s.listens_until = NEVER
    elif not election.was_away(s, s.heartbeat_due):
        s.become_follower(s.term, NO_LEADER, Cause.DISK_STALLED if stalled else Cause.NO_QUORUM)
        return
    transfer.on_tick(s)
    replication.retry_snapshots(s)
    early = s.config.heartbeat_interval / 2 if beat else 0.0
    if s.now >= s.heartbeat_due - early:
        s.heartbeat_wanted = True
        s.heartbeat_due = s.now + s.config.heartbeat_interval
        if transfer.is_under_way(s):
            transfer.on_progress(s, s.transfer_target, s.progress[s.transfer_target])
    if s.now >= s.commit_notice_at:
        s.heartbeat_wanted = True


def hears_quorum(s: State) -> bool:
    """Whether a quorum answered within the last election timeout. This node hears itself."""
    own = s.progress.get(s.id)
    if own is not None:
        own.contact = s.now
    progress = s.progress

    def contact(node: NodeId) -> float:
        return progress[node].contact

    return s.now - quorum_value(s.conf, contact) <= s.config.election_timeout
