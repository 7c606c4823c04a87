"""What becomes of a contradiction that the core met (raft.messages.Doubt): the other side is asked before it counts.

A committed entry that the leader of a later term lacks, or has another one for, proves that acknowledged entries were
lost: by this replica, by the leader, or by others of the quorum that elected it. Which of them cannot be known from two
logs that differ, so both refuse to go on, and people decide. A member that lacks what it acknowledged in the very term
is to blame itself.
Invariant: nothing is believed that the peer does not say on a connection that this node made. It must not know lives.
"""

from __future__ import annotations

import logging

from needle.base.errors import NeedleError
from needle.base.ids import NodeId, group_name
from needle.multiraft.codec import Standing, StandingCall, decode_standing, encode_body
from needle.multiraft.ports import Transport
from needle.raft.messages import Doubt, DoubtKind
from needle.raft.raft import Raft
from needle.raft.state import Role

STANDING_METHOD = "raft.standing"
ASK_SECONDS = 1.0
_log = logging.getLogger("needle.multiraft")


async def ask(transport: Transport, group: int, doubt: Doubt, *, news: bool = True) -> Standing | None:
    """How the doubted peer stands to the entry; None if it does not answer. news: whether the log is told of that."""
    try:
        body = encode_body(StandingCall(group, doubt.index, doubt.term))
        return decode_standing(await transport.call(doubt.peer, STANDING_METHOD, body, ASK_SECONDS))
    except NeedleError as error:
        text, level = "%s: %s could not be asked about entry %d: %s", logging.WARNING if news else logging.DEBUG
        _log.log(level, text, group_name(group), doubt.peer, doubt.index, error)
        return None


def standing(raft: Raft, index: int, asker: NodeId) -> Standing:
    """How this replica stands to an entry."""
    term_at = raft.term_at(index)
    if term_at is None:
        term_at = 0 if index > raft.last_index else -1
    progress = raft.progress().get(asker)
    match = max(progress.match, progress.lost_match) if progress is not None else 0
    return Standing(raft.term, raft.role is Role.LEADER, raft.commit, raft.last_index, term_at, match)


def asked(raft: Raft, call: StandingCall, asker: NodeId) -> Doubt | None:
    """What the question itself gives a leader to doubt: another replica holds as committed what is not in its log."""
    if call.term > 0 and raft.role is Role.LEADER and _lacks(raft, call.index, call.term):
        return Doubt(DoubtKind.UNKNOWN_MATCH, asker, call.index, call.term)
    return None


def _lacks(raft: Raft, index: int, term: int) -> bool:
    own = raft.term_at(index)
    return own != term if own is not None else index > raft.last_index


def own_loss(raft: Raft, doubt: Doubt, peer: Standing) -> str:
    """Why this replica must not go on after what the peer answered; "" if it may."""
    index, own = doubt.index, raft.term_at(doubt.index)
    if doubt.kind == DoubtKind.COMMITTED:
        holds_own = raft.commit >= index and own == doubt.term
        if holds_own and peer.leads and peer.term >= raft.term and peer.term_at not in (own, -1):
            return _contradiction(doubt, f"entry {index} of term {own} is committed here", peer)
    elif doubt.kind == DoubtKind.UNKNOWN_MATCH:
        leads = raft.role is Role.LEADER and peer.term <= raft.term
        if leads and peer.commit >= index and peer.term_at > 0 and _lacks(raft, index, peer.term_at):
            return _contradiction(doubt, f"this leader has entry {index} of term {own or 'none'}", peer)
    elif doubt.kind == DoubtKind.LOST_OWN and peer.leads and peer.term == raft.term and peer.match > raft.last_index:
        return (
            f"its log ends at {raft.last_index}, but it acknowledged {peer.match} to {doubt.peer} in term {raft.term}"
        )
    return ""


def peers_loss(raft: Raft, doubt: Doubt, peer: Standing) -> str:
    """Why the peer must not be heard any more; "" if it may."""
    if doubt.kind == DoubtKind.LOST_MATCH and peer.term == raft.term and peer.last_index < doubt.index:
        return f"its log ends at {peer.last_index}, but it acknowledged {doubt.index} in term {raft.term}"
    return ""


def _contradiction(doubt: Doubt, here: str, peer: Standing) -> str:
    there = (
        f"entry {doubt.index} of term {peer.term_at}" if peer.term_at > 0 else f"a log that ends at {peer.last_index}"
    )
    role = "leader" if peer.leads else "replica"
    return f"acknowledged entries were lost: {here}, but the {role} {doubt.peer} has {there} (commit {peer.commit})"
