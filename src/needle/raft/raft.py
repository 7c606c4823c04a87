"""One replica's consensus as a state machine without I/O: inputs in, `Ready` out (after etcd's RawNode).

The host's loop: feed `step`, `tick` and the requests; while `has_ready()`, take `ready()`, do what it says in the
order that `messages.Ready` states, then `advance()` and `applied_to()`. At most one write and one page of committed
entries are under way at a time. The host reads the clock fresh for every call (lease rule 3). This class keeps
no clock, starts no thread and draws no random number.
"""

from __future__ import annotations

from collections.abc import Callable

from needle.base.errors import CorruptLog, Internal, NotLeader, Overloaded
from needle.base.ids import NodeId
from needle.raft import conf_changes, election, follower, leadership, lease, output, plausible, replication, transfer
from needle.raft.causes import Cause, Causes
from needle.raft.config import CoreConfig
from needle.raft.log import LogStorage, RaftLog
from needle.raft.messages import (
    NO_LEADER,
    NUMBER_MAX,
    ConfChange,
    ConfState,
    Doubt,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    Ready,
    SnapshotMeta,
)
from needle.raft.progress import Progress
from needle.raft.state import FAR, LEADER, Role, State

__all__ = ["Raft", "Role"]

_FROM_LEADER = frozenset((MessageType.APPEND, MessageType.HEARTBEAT, MessageType.SNAPSHOT))
_PRE_VOTE, _PRE_VOTE_RESP = int(MessageType.PRE_VOTE), int(MessageType.PRE_VOTE_RESP)
_APPEND_RESP, _NORMAL = int(MessageType.APPEND_RESP), int(EntryKind.NORMAL)
_VOTE_REQUESTS = frozenset((MessageType.VOTE, MessageType.PRE_VOTE))
_HANDLERS: dict[int, Callable[[State, Message], None]] = {
    MessageType.PRE_VOTE: election.on_vote_request,
    MessageType.PRE_VOTE_RESP: election.on_vote_answer,
    MessageType.VOTE: election.on_vote_request,
    MessageType.VOTE_RESP: election.on_vote_answer,
    MessageType.APPEND: follower.on_append,
    MessageType.HEARTBEAT: follower.on_heartbeat,
    MessageType.SNAPSHOT: follower.on_snapshot,
    MessageType.TIMEOUT_NOW: election.on_timeout_now,
}
_LEADER_HANDLERS: dict[int, Callable[[State, Message], None]] = {
    MessageType.APPEND_RESP: replication.on_append_answer,
    MessageType.HEARTBEAT_RESP: replication.on_heartbeat_answer,
}


class Raft:
    """See the module. Every method that takes `now` wants the node's monotonic clock in seconds, never going back."""

    def __init__(
        self,
        config: CoreConfig,
        storage: LogStorage,
        *,
        hard_state: HardState,
        conf: ConfState,
        applied: int,
        now: float,
        random_timeout: Callable[[], float],
        disk_waits_since: Callable[[], float] = lambda: FAR,
    ) -> None:
        """Continue from the disk. `conf`: in force at `applied`. `random_timeout`: in [0, 1). `disk_waits_since`:
        when the write began that the disk still owes any group, or FAR. Raises CorruptLog if the parts do not fit."""
        first, last = storage.first_index(), storage.last_index()
        if not first - 1 <= applied <= last:
            raise CorruptLog(f"applied index {applied} lies outside the log, which covers {first - 1} to {last}")
        if hard_state.commit > last:
            raise CorruptLog(f"the log ends at {last}, but entries up to {hard_state.commit} were committed")
        if not 0 <= max(hard_state.term, last) < NUMBER_MAX:
            raise CorruptLog(f"term {hard_state.term} or last index {last} is not below {NUMBER_MAX}")
        self._s = State(config, RaftLog(storage), hard_state, conf, applied, now, random_timeout, disk_waits_since)
        if conf.voters != (config.node_id,) or conf.voters_outgoing:
            self._s.reset_election_deadline()
            self._s.retry_soon()

    # --- inputs -------------------------------------------------------------------------------------------------
    def step(self, message: Message, now: float) -> str:
        """Take one message of a peer, whatever it says. Returns why it was refused, "" if it was taken."""
        s = self._s
        s.now = now
        s.note_disk()
        if s.retired:
            return "this replica is retired"
        refusal = plausible.why_not(s, message)
        if not refusal:
            self._step(s, message)
        return refusal

    def refuses(self, message: Message) -> str:
        """Why `step` would refuse the message; "" if it would take it. Changes nothing."""
        return plausible.why_not(self._s, message)

    def _step(self, s: State, message: Message) -> None:
        kind, term = message.type, message.term
        if term < s.term:
            if kind in _FROM_LEADER:
                follower.answer_stale_leader(s, message)
            elif kind == _PRE_VOTE:
                election.refuse_stale_pre_vote(s, message)
            return
        if kind in _VOTE_REQUESTS and not message.force and election.is_promised(s, message.frm):
            return
        # A pre-vote asks about a term that has not begun, and so does a granted one.
        hypothetical = kind == _PRE_VOTE or (kind == _PRE_VOTE_RESP and not message.reject)
        if term > s.term and not hypothetical:
            cause = Cause.HANDED_OVER if transfer.is_under_way(s) else Cause.NEWER_TERM
            # The newer term of a learner is of its own past (multiraft/repair.py): nobody campaigns in it, so this node
            # need not wait for that. The others' promise does not bind them against the leader that they gave it.
            answered = s.role is LEADER and kind == _APPEND_RESP
            goes_on = answered and message.frm in s.conf.learners and not transfer.is_under_way(s)
            s.become_follower(term, message.frm if kind in _FROM_LEADER else NO_LEADER, cause)
            if goes_on:
                election.campaign(s, cause)
        if s.role is LEADER and (on_answer := _LEADER_HANDLERS.get(kind)) is not None:
            on_answer(s, message)
            conf_changes.maybe_leave_joint(s)
            return
        if (handler := _HANDLERS.get(kind)) is not None:
            handler(s, message)

    def tick(self, now: float, beat: bool = False) -> None:
        """Let time pass: elections, heartbeats (leadership.tick), check-quorum, transfers, snapshots, stalled disk."""
        s = self._s
        s.now = now
        s.note_disk()
        if s.retired:
            return
        if s.role is LEADER:
            leadership.tick(s, beat)
            conf_changes.maybe_leave_joint(s)
        elif now >= s.election_deadline:
            election.on_timeout(s)

    @property
    def is_restoring(self) -> bool:
        """Whether a snapshot that was taken waits to be installed."""
        return self._s.log.snapshot is not None

    def next_deadline(self) -> float:
        """When `tick` must be called next, at the latest."""
        s = self._s
        if s.role is LEADER and not s.retired:
            return min(s.heartbeat_due, s.commit_notice_at, s.transfer_deadline)
        return FAR if s.retired else s.election_deadline

    def propose(self, data: bytes, now: float) -> tuple[int, int]:
        """Append a command to the leader's log; returns its (index, term). Sent and written by the next Ready.

        Raises NotLeader, TransferFailed while leadership moves, Overloaded beyond uncommitted_bytes_max.
        """
        s = self._s
        s.now = now
        if s.role is not LEADER:
            raise self._not_leader()
        transfer.check_none(s)
        limit = s.config.uncommitted_bytes_max
        if s.uncommitted_bytes and s.uncommitted_bytes + len(data) > limit:
            raise Overloaded(f"more than {limit} bytes of writes wait for a quorum", bytes_max=limit)
        return s.append_entry(_NORMAL, data), s.term

    def propose_conf_change(self, change: ConfChange, now: float) -> tuple[int, int]:
        """Begin a membership change; returns the (index, term) of its first half. The leader adds the second itself.

        Raises NotLeader, InvalidArgument, TransferFailed, MembershipChangePending (also until the lease of the last
        change's quorum covers the one before: lease rule 5).
        """
        s = self._s
        s.now = now
        if s.role is not LEADER:
            raise self._not_leader()
        return conf_changes.propose(s, change), s.term

    def read_index(self, context: int, now: float) -> None:
        """Ask for a linearizable read; answered by Ready.reads or Ready.dropped_reads. Raises NotLeader."""
        s = self._s
        s.now = now
        if s.role is not LEADER:
            raise self._not_leader()
        s.reads_new.append(context)

    def read_lease(self, now: float) -> int | None:
        """The index to wait for if this node leads within its lease, else None: then use `read_index`."""
        self._s.now = now
        return self._s.commit if lease.remaining(self._s) > 0 else None

    def lease_remaining(self, now: float) -> float:
        """Seconds for which `read_lease` would still answer; 0 without a lease."""
        self._s.now = now
        return lease.remaining(self._s)

    def transfer_leadership(self, to: NodeId | None, now: float) -> NodeId:
        """Hand leadership to `to`, or to the most caught-up voter; returns the target. Ends by a change of leader,
        or after two election timeouts. Raises NotLeader, InvalidArgument, TransferFailed."""
        s = self._s
        s.now = now
        if s.role is not LEADER:
            raise self._not_leader()
        return transfer.start(s, to)

    def campaign(self, now: float) -> None:
        """Force an election as soon as this node's own promise to a leader allows. No effect on a leader."""
        s = self._s
        s.now = now
        s.note_disk()
        if s.role is not LEADER and not s.retired:
            election.campaign(s, Cause.FORCED)

    def set_quiesced(self, on: bool, resting: bool = False) -> None:
        """Never campaigns and takes no TIMEOUT_NOW; still votes and follows. resting: unless nobody else can win."""
        self._s.quiesced, self._s.resting = on, resting

    def retire(self, now: float) -> None:
        """This replica lost what others count on, or cannot tell: it never votes, leads, acknowledges or applies more.
        What it was asked and did not answer is dropped."""
        s = self._s
        s.now = now
        s.become_follower(s.term, NO_LEADER, Cause.RETIRED)
        s.messages_after_persist.clear()
        s.retired = True

    def take_doubt(self) -> Doubt | None:
        """A contradiction met since the last call; the host finds out what it means."""
        doubt, self._s.doubt = self._s.doubt, None
        return doubt

    # --- outputs ------------------------------------------------------------------------------------------------
    def has_ready(self, *, persist: bool = True, apply: bool = True) -> bool:
        """Whether `ready(persist=persist, apply=apply)` would carry something. Cheap."""
        return output.has_ready(self._s, persist, apply)

    def ready(self, *, persist: bool = True, apply: bool = True) -> Ready:
        """What is to be done now. persist=False leaves everything that goes to disk, or waits for it, to a later
        Ready (so does a write under way); apply=False leaves the committed entries (so does a page under way)."""
        return output.take(self._s, persist, apply)

    def advance(self, ready: Ready) -> None:
        """`ready`'s snapshot, entries and hard_state are durable. A Ready that wrote nothing needs no call; one that
        is not the write under way is ignored. Entries that were replaced meanwhile are not counted."""
        s = self._s
        if not output.written(s, ready):
            return
        if s.role is LEADER:
            replication.on_durable(s)
        else:
            election.on_durable(s)

    def applied_to(self, index: int) -> None:
        """The committed entries up to `index` are applied. Raises Internal for an index that was not handed out."""
        s = self._s
        if index <= s.applied:
            return
        if index > s.applying:
            raise Internal(f"applied {index}, but only {s.applying} was handed out")
        s.applied = index
        election.on_applied(s)
        conf_changes.maybe_leave_joint(s)

    def suspend_apply(self) -> None:
        """What is being applied cannot be; it stays with the host, which takes nothing more to apply until
        `resume_apply`, or until a snapshot is installed."""
        self._s.applying = self._s.applied

    def resume_apply(self, index: int) -> None:
        """What was suspended, up to `index`, is applied after all."""
        self._s.applying = index

    def state_replaced(self, index: int, conf: ConfState) -> None:
        """The host has put a state of `index`, with this configuration, in the place of one of which it knew nothing
        but that it was not behind `applied`. All of it is in the log, durably, and committed."""
        s = self._s
        if not s.applied <= index <= min(s.commit, s.log.durable_index) or s.applying != s.applied:
            raise Internal(f"a state of {index} cannot replace one of {s.applied} (commit {s.commit})")
        s.applied = s.applying = index
        s.conf = conf

    def apply_conf_change(self, entry: Entry) -> ConfState:
        """Put the change that a committed CONF_CHANGE entry carries into force; returns the configuration after it."""
        conf_changes.apply(self._s, entry)
        return self._s.conf

    def send_snapshot(self, to: NodeId, meta: SnapshotMeta, now: float) -> None:
        """Answer Ready.snapshot_requests: the files that `meta.descriptor` names can be fetched."""
        self._s.now = now
        if self._s.role is LEADER:
            replication.send_snapshot(self._s, to, meta)

    def report_snapshot_failed(self, to: NodeId, now: float) -> None:
        """The snapshot for `to` could not be made or fetched; it is asked for again after snapshot_retry."""
        self._s.now = now
        replication.snapshot_failed(self._s, to)

    def report_unreachable(self, to: NodeId, now: float) -> None:
        """Messages to `to` were lost on this side."""
        self._s.now = now
        replication.unreachable(self._s, to)

    def report_disconnected(self, node: NodeId, now: float) -> None:
        """`node` ended its connection to this one. A hint only: it may be dead, it may connect again."""
        self._s.now = now
        election.on_disconnect(self._s, node)

    # --- state --------------------------------------------------------------------------------------------------
    def _not_leader(self) -> NotLeader:
        s = self._s
        known = f"{s.leader} does" if s.leader else "no leader is known"
        return NotLeader(f"{s.id} does not lead this group; {known}", leader=s.leader or None)

    @property
    def term(self) -> int:
        return self._s.term

    @property
    def vote(self) -> NodeId:
        return self._s.vote

    @property
    def leader(self) -> NodeId:
        """The leader of this term, "" if unknown."""
        return self._s.leader

    @property
    def role(self) -> Role:
        return self._s.role

    def is_still(self, role: Role, leader: NodeId, conf: ConfState) -> bool:
        """Whether `role`, `leader` and `conf` are these. Each turn asks."""
        return self._s.role is role and self._s.leader == leader and self._s.conf is conf

    @property
    def heartbeat_due(self) -> float:
        """When a leader sends a heartbeat in any case; FAR elsewhere."""
        return self._s.heartbeat_due

    @property
    def follows_more(self) -> bool:
        """Whether this replica, which does not lead, knows of committed entries that are not applied."""
        s = self._s
        return s.applied < s.commit and s.role is not LEADER

    @property
    def commit(self) -> int:
        return self._s.commit

    @property
    def applied(self) -> int:
        return self._s.applied

    @property
    def last_index(self) -> int:
        return self._s.log.last_index()

    @property
    def conf(self) -> ConfState:
        """The configuration in force here."""
        return self._s.conf

    @property
    def pending_conf_index(self) -> int:
        """Leader: no change of the configuration that it knows of is beyond this entry. One that is not applied yet is
        under way."""
        return self._s.pending_conf_index

    @property
    def is_transferring(self) -> bool:
        """Whether this leader hands leadership over at the moment."""
        return transfer.is_under_way(self._s)

    def term_at(self, index: int) -> int | None:
        """The term of an entry of the log; None if it is compacted away or beyond the end."""
        return self._s.log.term(index)

    def holds(self, node: NodeId, index: int) -> bool:
        """Leader: whether this node counts another one's log as equal to its own up to `index`."""
        return (progress := self._s.progress.get(node)) is not None and index <= progress.match

    @property
    def leader_changes(self) -> int:
        """How often this replica learned of a new leader since it started."""
        return self._s.leader_changes

    @property
    def causes(self) -> Causes:
        """Why this replica asked for votes, or gave up leadership, and how often since it started."""
        return self._s.causes

    def progress(self) -> dict[NodeId, Progress]:
        """Leader: how far every member is, itself included. Empty elsewhere."""
        return dict(self._s.progress)
