"""The vocabulary of the Raft core: entries, messages, configuration, and what a step hands to its host.

Structs are plain data (msgspec only makes them cheap to create and to encode); names are the Raft paper's and etcd's.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import msgspec

from needle.base.ids import NodeId

NO_LEADER: NodeId = ""
NUMBER_MAX = 1 << 62
"""The highest term, index and round there is. Every format that they are stored in holds more; what a peer or a disk
says beyond it is refused, so that the next one can always be encoded."""
Number = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]
"""A term, an index or a round. Checked when a message or a record is decoded."""


ENTRIES_MAX = 1 << 16
"""Of one message: however small they are, they are decoded, and handled, in one turn of the event loop."""


class EntryKind(IntEnum):
    NORMAL = 0  # data is a command of the state machine; empty data is the leader's no-op
    CONF_CHANGE = 1  # data is the encoded ConfState that it puts into force


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    index: Number
    term: Number
    kind: int
    data: bytes


class HardState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What must be durable before a node speaks for it (paper, figure 2)."""

    term: int = 0
    vote: NodeId = NO_LEADER
    commit: int = 0


class ConfState(msgspec.Struct, frozen=True, array_like=True):
    """The active configuration. voters_outgoing is non-empty only while joint (paper, section 6): then a decision
    needs a majority of both. learners_next: voters of the outgoing set that become learners on leaving."""

    voters: tuple[NodeId, ...] = ()
    learners: tuple[NodeId, ...] = ()
    voters_outgoing: tuple[NodeId, ...] = ()
    learners_next: tuple[NodeId, ...] = ()


class ConfChange(msgspec.Struct, frozen=True, array_like=True):
    """The target configuration. `leave=True` (voters and learners empty) is the second half: it leaves the joint
    configuration, and is proposed by the leader itself once the first half is applied."""

    voters: tuple[NodeId, ...] = ()
    learners: tuple[NodeId, ...] = ()
    leave: bool = False


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot replaces: the log up to (index, term), under `conf`. descriptor: opaque to the core; the host
    puts the manifest of the files to fetch there."""

    index: Number
    term: Number
    conf: ConfState
    descriptor: bytes = b""


class MessageType(IntEnum):
    PRE_VOTE = 0
    PRE_VOTE_RESP = 1
    VOTE = 2
    VOTE_RESP = 3
    APPEND = 4
    APPEND_RESP = 5
    HEARTBEAT = 6
    HEARTBEAT_RESP = 7
    SNAPSHOT = 8
    TIMEOUT_NOW = 9


class Message(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One message between two replicas of a group. Which fields count depends on the type:

    PRE_VOTE, VOTE: index/log_term = the candidate's last entry; force = campaign of a leadership transfer (lets
    voters disregard their leader's lease, never a lease the leader still serves from: it gave it up before).
    They and their answers carry hint/hint_term = index and term of the sender's commit index.
    APPEND, HEARTBEAT: hint = the last entry that the leader has on its own disk.
    APPEND: entries follow (index, log_term); commit. APPEND_RESP: index, log_term = the last entry that the sender
    vouches for, or the rejected index with reject=True, hint/hint_term = where to go on (etcd's findConflictByTerm).
    HEARTBEAT: commit <= min(match, commit); round = id of the confirmation round. HEARTBEAT_RESP echoes round.
    SNAPSHOT: snapshot. Every append, heartbeat and their answers echo `round` so that they too can confirm
    leadership; 0 when none is asked for.
    """

    type: int
    to: NodeId
    frm: NodeId
    term: Number
    log_term: Number = 0
    index: Number = 0
    commit: Number = 0
    entries: Annotated[tuple[Entry, ...], msgspec.Meta(max_length=ENTRIES_MAX)] = ()
    reject: bool = False
    hint: Number = 0
    hint_term: Number = 0
    round: Number = 0
    force: bool = False
    snapshot: SnapshotMeta | None = None


class DoubtKind(IntEnum):
    COMMITTED = 0  # the leader `peer` contradicts what is committed here at `index`, of `term`
    UNKNOWN_MATCH = 1  # this node leads, and `peer` acknowledges an entry (`index`, `term`) that is not in its log
    LOST_MATCH = 2  # this node leads, and `peer` no longer has `index`, which it acknowledged in this term
    LOST_OWN = 3  # the leader `peer` counts on `index`, which this node's log lacks


class Doubt(msgspec.Struct, frozen=True):
    """A message that cannot be, unless somebody lost entries or it is forged. The core does not act on it; the host
    asks `peer` itself before it believes it (multiraft/doubts.py)."""

    kind: DoubtKind
    peer: NodeId
    index: int
    term: int = 0


class ReadState(msgspec.Struct, frozen=True):
    """A confirmed ReadIndex request: serve once applied >= index."""

    context: int
    index: int


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """What the host must do now. Field by field, what must be durable before what is sent:

    1. snapshot (if any): install it, durably; it replaces the whole log.
    2. entries and hard_state: write both in one durable transaction (fsync). entries replace any suffix from
       entries[0].index on. `must_sync` is False when only the commit index changed: then no fsync is needed.
    3. messages: may be sent at once, in parallel with 1 and 2 (a leader's own appends and heartbeats).
    4. messages_after_persist: only after 1 and 2 are durable (votes, acks). The leader's own ack is inside the
       core: it counts itself when the host calls `advance`.
    5. committed: apply in order, after entries of this Ready are durable if they overlap it; then `applied_to`.
    6. reads: confirmed ReadIndex contexts. dropped_reads: contexts that will never be confirmed here.
    7. snapshot_requests: peers that need a snapshot; answer each with `send_snapshot` or `report_snapshot_failed`.
    """

    hard_state: HardState | None
    entries: tuple[Entry, ...]
    snapshot: SnapshotMeta | None
    messages: tuple[Message, ...]
    messages_after_persist: tuple[Message, ...]
    committed: tuple[Entry, ...]
    reads: tuple[ReadState, ...]
    dropped_reads: tuple[int, ...]
    snapshot_requests: tuple[NodeId, ...]
    must_sync: bool
