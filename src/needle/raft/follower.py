"""The follower's side of replication: appends, heartbeats and snapshots from the leader of this term (paper, 5.3, 7).

Invariant: the log is truncated only at a conflicting term and never at or below the commit index; an answer leaves
only when what it acknowledges is durable, and names the term of the last entry that it acknowledges.
"""

from __future__ import annotations

from needle.base.ids import NodeId
from needle.raft.messages import Doubt, DoubtKind, Message, MessageType
from needle.raft.state import NEVER, Role, State


def follow(s: State, leader: NodeId) -> None:
    """A message of this term's leader has arrived: no vote and no campaign for an election timeout (lease rule 1)."""
    if s.role is not Role.FOLLOWER or s.leader != leader:
        s.become_follower(s.term, leader)
    else:
        s.extend_election_deadline()
    s.needed_until = NEVER  # somebody can lead
    s.promise()


def answer_stale_leader(s: State, m: Message) -> None:
    """Free a leader of an older term, or a node stranded with a higher one: the answer's term makes it step down."""
    s.send_after_persist(Message(MessageType.APPEND_RESP, to=m.frm, frm=s.id, term=s.term))


def _acknowledge(s: State, m: Message, index: int) -> None:
    """Everything up to `index` is here (and durable when this leaves). Takes the place of an older one not yet sent."""
    round_id = m.round
    waiting = s.messages_after_persist
    if waiting:
        earlier = waiting[-1]
        if (
            earlier.type == MessageType.APPEND_RESP
            and earlier.to == m.frm
            and earlier.term == s.term
            and not earlier.reject
        ):
            index = max(index, earlier.index)
            round_id = max(round_id, earlier.round)
            waiting.pop()
    waiting.append(
        Message(
            MessageType.APPEND_RESP,
            to=m.frm,
            frm=s.id,
            term=s.term,
            index=index,
            log_term=s.log.term(index) or 0,
            round=round_id,
        )
    )


def _contradicts(s: State, m: Message) -> bool:
    """Whether the append shows another entry at an index that is committed here: then an entry that counted as safe
    was lost, here or by the quorum that elected this leader. Logs that agree at an index agree below it."""
    at = min(m.index + len(m.entries), s.commit)
    if m.index > at:
        return False
    term, own = m.entries[at - m.index - 1].term if at > m.index else m.log_term, s.log.term(at)
    if own is None or own == term:
        return False
    s.doubt = Doubt(DoubtKind.COMMITTED, m.frm, at, own)
    return True


def on_append(s: State, m: Message) -> None:
    follow(s, m.frm)
    log = s.log
    if _contradicts(s, m) or m.index < s.commit:
        # A leader that lacks what is committed here learns it from this answer (replication.on_append_answer).
        _acknowledge(s, m, s.commit)
        return
    if not log.matches(m.index, m.log_term):
        hint, hint_term = log.find_conflict_by_term(m.index, m.log_term)
        s.send_after_persist(
            Message(
                MessageType.APPEND_RESP,
                to=m.frm,
                frm=s.id,
                term=s.term,
                index=m.index,
                reject=True,
                hint=hint,
                hint_term=hint_term,
                round=m.round,
            )
        )
        return
    if m.entries:
        log.extend(m.index, m.entries, s.commit)
    last = m.index + len(m.entries)
    s.commit = max(s.commit, min(m.commit, last))
    _acknowledge(s, m, last)


def on_heartbeat(s: State, m: Message) -> None:
    follow(s, m.frm)
    # The leader promises commit <= match. If the log is shorter, the disk lost data.
    if m.commit > s.log.last_index():
        s.doubt = Doubt(DoubtKind.LOST_OWN, m.frm, m.commit)
    elif m.commit > s.commit:
        s.commit = m.commit
    answer = Message(MessageType.HEARTBEAT_RESP, to=m.frm, frm=s.id, term=s.term, round=m.round)
    if s.durable_hard_state.term == s.term:
        s.send(answer)
    else:
        s.send_after_persist(answer)


def on_snapshot(s: State, m: Message) -> None:
    """The host has fetched and verified the snapshot's files; decide what becomes of it (etcd's restore)."""
    meta = m.snapshot
    if meta is None:
        return
    follow(s, m.frm)
    if meta.index > s.commit:
        if s.log.matches(meta.index, meta.term):
            # All of it is in the log already: only the commit index is news.
            s.commit = meta.index
        else:
            s.restore(meta)
    _acknowledge(s, m, s.commit)
