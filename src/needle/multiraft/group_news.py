"""Tells in the log what becomes of leadership and members, as one replica sees it.

Invariant: it is asked in every turn of the loop, so that nothing is missed that lasts for one, and while nothing has
changed it costs one call. It decides nothing.
"""

from __future__ import annotations

from needle.base.events import (
    ELECTION_BEGUN,
    LEADER_CHANGED,
    LEADER_ELECTED,
    LEADER_RESIGNED,
    MEMBERS_CHANGED,
    PREVOTE_BEGUN,
    REPLICA_OPENED,
    tell,
)
from needle.base.ids import GroupId, group_name
from needle.raft.messages import ConfState
from needle.raft.raft import Raft
from needle.raft.state import LEADER, Role


class GroupNews:
    """Of one replica, since it was opened."""

    __slots__ = ("_conf", "_followed", "_leader", "_members", "_name", "_raft", "_role")

    def __init__(self, group: GroupId, raft: Raft) -> None:
        self._name, self._raft = group_name(group), raft
        self._role, self._leader, self._conf = raft.role, raft.leader, raft.conf
        self._followed, self._members = raft.leader, _members(raft.conf)
        tell(REPLICA_OPENED, group=self._name, applied=raft.applied, last=raft.last_index, term=raft.term)

    def look(self) -> None:
        """Tell what is news."""
        raft = self._raft
        if raft.is_still(self._role, self._leader, self._conf):
            return
        if raft.role is not self._role:
            self._tell_role()
        if raft.leader != self._leader:
            self._tell_leader()
        if raft.conf is not self._conf:
            self._tell_members()

    def _tell_role(self) -> None:
        raft, before = self._raft, self._role
        self._role = raft.role
        why = raft.causes.last.words
        if raft.role is LEADER:
            event = LEADER_ELECTED
        elif before is LEADER:
            event = LEADER_RESIGNED
        elif raft.role is Role.CANDIDATE:
            event = ELECTION_BEGUN
        elif raft.role is Role.PRE_CANDIDATE:
            event = PREVOTE_BEGUN
        else:
            return
        tell(event, group=self._name, term=raft.term, why=why)

    def _tell_leader(self) -> None:
        """That no leader is known for a while is no news of its own: who asks for votes tells why."""
        raft = self._raft
        self._leader = raft.leader
        if raft.leader and raft.leader != self._followed:
            self._followed = raft.leader
            if raft.role is not LEADER:
                tell(LEADER_CHANGED, group=self._name, term=raft.term, leader=raft.leader)

    def _tell_members(self) -> None:
        conf = self._conf = self._raft.conf
        if conf.voters_outgoing:
            return  # two majorities are needed until the next configuration, which is told
        before, self._members = self._members, _members(conf)
        if before != self._members:
            voters, learners = self._members
            tell(MEMBERS_CHANGED, group=self._name, voters=voters, learners=learners)


def _members(conf: ConfState) -> tuple[str, str]:
    """Voters and learners, as they are told."""
    return ", ".join(sorted(conf.voters)) or "none", ", ".join(sorted(conf.learners)) or "none"
