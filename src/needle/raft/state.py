"""All state of one replica, and the transitions between its roles (paper, figure 2 and 4).

Invariant: term and vote change only here and in `election`; every role is entered through one function of this
module, which resets what belongs to the role before. It must not know how messages are handled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final

from needle.base.ids import NodeId
from needle.raft import membership
from needle.raft.causes import Cause, Causes
from needle.raft.config import CoreConfig
from needle.raft.log import RaftLog
from needle.raft.messages import (
    NO_LEADER,
    NUMBER_MAX,
    ConfState,
    Doubt,
    Entry,
    EntryKind,
    HardState,
    Message,
    ReadState,
    Ready,
    SnapshotMeta,
)
from needle.raft.progress import REPLICATE, Progress

NEVER = float("-inf")
FAR = float("inf")


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


LEADER: Final = Role.LEADER
"""By a name of its own: to look up a member of an Enum takes seven times as long in Python 3.11, and each message, turn
and call asks for this one."""


class State:
    """Plain fields, grouped by the module that rules them. Times are the node's monotonic clock in seconds."""

    def __init__(
        self,
        config: CoreConfig,
        log: RaftLog,
        hard_state: HardState,
        conf: ConfState,
        applied: int,
        now: float,
        random_timeout: Callable[[], float],
        disk_waits_since: Callable[[], float],
    ) -> None:
        self.config = config
        self.binding = config.binding  # each message of a leader asks
        self.id: NodeId = config.node_id
        self.log = log
        self.random_timeout = random_timeout
        self.now = now

        self.role = Role.FOLLOWER
        self.term = hard_state.term
        self.vote: NodeId = hard_state.vote
        self.leader: NodeId = NO_LEADER
        self.leader_changes = 0
        self.causes = Causes()
        self.commit = max(hard_state.commit, applied)
        self.applied = applied
        self.applying = applied  # last index handed out for applying
        self.conf = conf

        # what the disk knows, or was told
        self.handed_hard_state = hard_state
        self.durable_hard_state = hard_state
        self.writing: Ready | None = None  # with the host, which has something of it to write
        self.disk_waits_since = disk_waits_since  # never kept: a follower is hardly ever ticked
        self.disk_idle_at = now  # when the last write finished, or nothing waited for one

        # outputs that wait for the next Ready
        self.messages: list[Message] = []
        self.messages_after_persist: list[Message] = []
        self.reads: list[ReadState] = []
        self.dropped_reads: list[int] = []
        self.snapshot_requests: list[NodeId] = []
        self.doubt: Doubt | None = None

        # election
        self.retired = False
        self.quiesced = False
        self.resting = False
        self.needed_since = self.needed_until = NEVER  # while resting: see election.is_needed
        self.votes: dict[NodeId, bool] = {}
        self.promise_until = now + self.binding  # refuses votes until then (lease rule 1)
        self.bound_until = self.promise_until  # the part of the promise that leases count on
        if self.is_fresh():
            # Nobody can hold a lease that counts on this node: it never acknowledged anything in any term.
            self.promise_until = self.bound_until = NEVER
        self.leader_is_gone = False  # its connection ended, and it was not heard since
        self.timeout_factor = 1.0
        self.election_deadline = now
        self.listens_until = NEVER  # after a tick that came late: see election.was_away
        self.deferred_timeout_now = 0  # term in which a TIMEOUT_NOW waits for a configuration to be applied

        # leader
        self.progress: dict[NodeId, Progress] = {}
        self.term_start = 0  # index of this term's no-op
        self.pending_conf_index = 0
        self.uncommitted_bytes = 0
        self.heartbeat_due = FAR
        self.commit_notice_at = FAR
        self.append_wanted = False
        self.heartbeat_wanted = False

        # confirmation rounds, reads, lease
        self.round = 0
        self.round_started_at = NEVER
        self.round_times: deque[tuple[int, float]] = deque()
        self.confirmed_round = 0
        self.reads_new: list[int] = []
        self.reads_waiting: deque[tuple[int, int, list[int]]] = deque()  # (round, index, contexts)
        self.lease_start = NEVER
        self.lease_suspended = False
        self.lease_floor = NEVER  # end of the lease under the configuration before the last change (rule 5)

        # leadership transfer
        self.transfer_target: NodeId = NO_LEADER
        self.transfer_deadline = FAR

    # --- small questions ----------------------------------------------------------------------------------------
    def is_fresh(self) -> bool:
        """Whether this replica has never seen a term, a log or a snapshot."""
        return self.term == 0 and self.log.last_index() == 0

    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote, self.commit)

    def has_committed_in_term(self) -> bool:
        """Leader: whether an entry of its own term is committed, so that its commit index is current (paper, 8)."""
        return self.commit >= self.term_start

    def is_promotable(self) -> bool:
        return membership.is_voter(self.conf, self.id) and self.log.snapshot is None and self.term < NUMBER_MAX

    def has_unapplied_conf_change(self) -> bool:
        """Whether a committed configuration change still waits to be applied here: then the configuration in force
        is not known, and this node must not campaign."""
        return self.applied < self.commit and self.log.has_conf_change(self.applied + 1, self.commit + 1)

    def needs_disk(self) -> bool:
        """Whether anything waits to be written that needs an fsync. A new commit index alone does not: it is
        written along with the next thing that does."""
        handed, log = self.handed_hard_state, self.log
        unwritten = log.handed < log.offset + len(log.entries)  # log.has_unwritten(): each message and turn asks
        return unwritten or log.snapshot is not None or self.term != handed.term or self.vote != handed.vote

    def note_disk(self) -> None:
        """Keep `disk_idle_at` fresh while nothing is written, here or by other groups on the same disk."""
        if self.writing is None and not self.needs_disk():
            idle = min(self.now, self.disk_waits_since())
            if idle > self.disk_idle_at:
                self.disk_idle_at = idle

    # --- outputs ------------------------------------------------------------------------------------------------
    def send(self, message: Message) -> None:
        """At once, in parallel with the disk."""
        self.messages.append(message)

    def send_after_persist(self, message: Message) -> None:
        """Only when everything decided up to now is durable."""
        self.messages_after_persist.append(message)

    # --- roles --------------------------------------------------------------------------------------------------
    def reset_election_deadline(self) -> None:
        """Draw a new random timeout, so that candidates do not stay in step (paper, 5.2)."""
        self.timeout_factor = 1 + self.random_timeout()
        self.extend_election_deadline()

    def extend_election_deadline(self) -> None:
        self.election_deadline = self.now + self.config.election_timeout * self.timeout_factor
        self.listens_until = NEVER
        self.leader_is_gone = False

    def retry_soon(self) -> None:
        """Ask for votes again before an election timeout is over: it costs little, or voters answer quickly."""
        soon = self.now + self.binding * self.timeout_factor
        self.election_deadline = min(self.election_deadline, soon)

    def promise(self) -> None:
        """A leader was heard: refuse votes to others for an election timeout."""
        self.promise_until = self.now + self.config.election_timeout
        self.bound_until = self.now + self.binding

    def set_leader(self, leader: NodeId) -> None:
        if leader != self.leader:
            self.leader = leader
            if leader != NO_LEADER:
                self.leader_changes += 1

    def _enter_term(self, term: int) -> None:
        """Forget everything that belongs to a role; and the vote, if the term is new."""
        if term != self.term:
            self.term = term
            self.vote = NO_LEADER
            # Answers given in an older term help nobody any more; to send none keeps "durable before sent" simple.
            self.messages_after_persist.clear()
        self.messages.clear()
        self.votes.clear()
        self.snapshot_requests.clear()
        self.progress.clear()
        self.heartbeat_due = self.commit_notice_at = self.transfer_deadline = FAR
        self.append_wanted = self.heartbeat_wanted = False
        self.dropped_reads.extend(self.reads_new)
        for _, _, contexts in self.reads_waiting:
            self.dropped_reads.extend(contexts)
        self.reads_new.clear()
        self.reads_waiting.clear()
        self.round_times.clear()
        self.lease_start = self.lease_floor = NEVER
        self.lease_suspended = False
        self.transfer_target = NO_LEADER
        self.reset_election_deadline()

    def become_follower(self, term: int, leader: NodeId, cause: Cause = Cause.NEWER_TERM) -> None:
        """cause: why a leader gives up, if this is one."""
        if self.role is LEADER:
            self.causes.gave_up(cause)
        self._enter_term(term)
        self.role = Role.FOLLOWER
        self.set_leader(leader)

    def become_pre_candidate(self) -> None:
        """Asks for votes without raising the term (thesis, 9.6)."""
        self._enter_term(self.term)
        self.role = Role.PRE_CANDIDATE
        self.set_leader(NO_LEADER)

    def become_candidate(self) -> None:
        self._enter_term(self.term + 1)
        self.causes.asked()
        self.role = Role.CANDIDATE
        self.vote = self.id
        self.set_leader(NO_LEADER)

    def become_leader(self) -> None:
        """Starts the term with a no-op: without it neither commits nor reads of this term are possible."""
        self._enter_term(self.term)
        self.role = LEADER
        self.set_leader(self.id)
        last = self.log.last_index()
        # The tail may hold a configuration change that this node has not applied.
        self.pending_conf_index = last
        self.uncommitted_bytes = 0
        self.confirmed_round = self.round
        self.round_started_at = NEVER
        self.track_members()
        self.term_start = last + 1
        self.append_entry(EntryKind.NORMAL, b"")
        self.heartbeat_due = self.now + self.config.heartbeat_interval
        self.heartbeat_wanted = True

    # --- the leader's own log -----------------------------------------------------------------------------------
    def append_entry(self, kind: int, data: bytes) -> int:
        """Append one entry of this term; returns its index. Sending and writing wait for the next Ready."""
        log = self.log
        if not log.entries:
            self.disk_idle_at = self.now
        index = log.last_index() + 1
        log.append(Entry(index, self.term, int(kind), data))
        self.uncommitted_bytes += len(data)
        self.append_wanted = True
        return index

    def track_members(self) -> None:
        """Make `progress` follow the configuration: in sorted order, new members probed from the end of the log."""
        known = self.progress
        self.progress = {}
        learners = {*self.conf.learners, *self.conf.learners_next}
        for node in membership.members(self.conf):
            progress = known.get(node)
            if progress is None:
                progress = Progress(self.log.last_index() + 1, self.now, is_learner=False)
                if node == self.id:
                    progress.match = self.log.durable_index
                    progress.state = REPLICATE
            progress.is_learner = node in learners and not membership.is_voter(self.conf, node)
            self.progress[node] = progress

    # --- snapshots ----------------------------------------------------------------------------------------------
    def restore(self, snapshot: SnapshotMeta) -> None:
        """Take over the snapshot's log. Its configuration comes into force when it is installed: entries of before
        may be under application now, and they change the configuration of before."""
        self.log.restore(snapshot)
        self.commit = snapshot.index

    def installed(self, snapshot: SnapshotMeta) -> None:
        """The host has installed the snapshot; maybe a newer one waits already."""
        self.log.snapshot_installed(snapshot)
        self.applied = self.applying = snapshot.index
        self.conf = snapshot.conf
