"""Changes of the membership, on the leader and where they are applied (paper, section 6: joint consensus).

Invariant: one change at a time; its second half is appended by the leader once the first is applied and the lease of
the configuration before is covered (lease rule 5); a leader that was removed leaves office. membership.py has what a
configuration is.
"""

from __future__ import annotations

from needle.base.errors import MembershipChangePending
from needle.raft import lease, membership, replication, rounds, transfer
from needle.raft.causes import Cause
from needle.raft.messages import NO_LEADER, ConfChange, Entry, EntryKind
from needle.raft.state import LEADER, State


def propose(s: State, change: ConfChange) -> int:
    """Leader: append the first half of a change; its index. Raises as `Raft.propose_conf_change`."""
    membership.check_change(change)
    transfer.check_none(s)
    if membership.is_joint(s.conf) or s.applied < s.pending_conf_index or not lease.covers_old(s):
        raise MembershipChangePending("another membership change is under way")
    return _append(s, change)


def _append(s: State, change: ConfChange) -> int:
    target = membership.apply_change(s.conf, change)
    s.pending_conf_index = s.append_entry(EntryKind.CONF_CHANGE, membership.encode_conf(target))
    return s.pending_conf_index


def maybe_leave_joint(s: State) -> None:
    """The second half of a membership change, once the first is applied and the lease allows it."""
    if (
        s.role is LEADER
        and membership.is_joint(s.conf)
        and s.applied >= s.pending_conf_index
        and not transfer.is_under_way(s)
        and lease.covers_old(s)
    ):
        _append(s, ConfChange(leave=True))


def apply(s: State, entry: Entry) -> None:
    """Put a committed change into force."""
    before = s.conf
    s.conf = membership.decode_conf(entry)
    if s.role is not LEADER or s.conf == before:
        return
    lease.on_conf_change(s)
    if not membership.is_voter(s.conf, s.id):
        _leave_office(s)
        return
    s.track_members()
    transfer.on_conf_change(s)
    s.append_wanted = s.heartbeat_wanted = True
    replication.maybe_commit(s)
    rounds.confirm(s)


def _leave_office(s: State) -> None:
    """This leader was removed: tell the others what is committed, name a successor, and step down."""
    s.heartbeat_wanted = True
    replication.emit(s)
    transfer.hand_over_on_removal(s)
    farewell = list(s.messages)
    s.become_follower(s.term, NO_LEADER, Cause.REMOVED)
    s.messages.extend(farewell)
