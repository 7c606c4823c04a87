"""What a message may say: everything that comes from outside passes here before the core acts on it.

Invariant: after a message passed, no handler raises, and every term, index and round that the core takes over can be
encoded, and so can the next one. A message that does not pass changes nothing. Pure.
"""

from __future__ import annotations

from needle.raft.membership import readable_conf
from needle.raft.messages import NUMBER_MAX, EntryKind, Message, MessageType
from needle.raft.state import LEADER, State

TERM_JUMP_MAX = 1 << 40
"""By so much a message may raise the term at once: at an election each millisecond, 34 years of them."""
TERM_ON_DISK_MAX = NUMBER_MAX - TERM_JUMP_MAX
"""A replica does not start in a later term: it was not elections that brought it there."""

_TYPES = frozenset(map(int, MessageType))
_APPEND, _HEARTBEAT, _SNAPSHOT = int(MessageType.APPEND), int(MessageType.HEARTBEAT), int(MessageType.SNAPSHOT)
_FROM_LEADER = frozenset((_APPEND, _HEARTBEAT, _SNAPSHOT))
_ROUNDS = frozenset((int(MessageType.APPEND_RESP), int(MessageType.HEARTBEAT_RESP)))
_NORMAL, _CONF = int(EntryKind.NORMAL), int(EntryKind.CONF_CHANGE)


def why_not(s: State, m: Message) -> str:
    """Why `m` cannot be what a working peer sends to this replica now; "" if it can."""
    kind = m.type
    if kind not in _TYPES:
        return f"there is no message of type {kind}"
    if m.frm == s.id or not m.frm:
        return f"it calls itself a message of {m.frm or 'nobody'}"
    numbers = (m.term, m.log_term, m.index, m.commit, m.hint, m.hint_term, m.round)
    if min(numbers) < 0 or max(numbers) > NUMBER_MAX:
        return f"it holds a number outside of 0 to {NUMBER_MAX}"
    if m.term - s.term > TERM_JUMP_MAX:
        return f"it would raise the term from {s.term} to {m.term} at once"
    if kind in _FROM_LEADER:
        return _from_leader(s, m)
    if kind in _ROUNDS and m.term == s.term and s.role is LEADER and m.round > s.round:
        return f"it answers round {m.round}, which has not begun"
    return ""


def _from_leader(s: State, m: Message) -> str:
    if m.term == s.term:
        if s.role is LEADER:
            return f"it is of another leader in term {m.term}, which this node leads"
        if s.leader and s.leader != m.frm:
            return f"it is of another leader in term {m.term} than {s.leader}, which this node follows"
    if m.type == _APPEND:
        return _append(m)
    if m.type == _SNAPSHOT:
        meta = m.snapshot
        if meta is None or not 0 < meta.index <= NUMBER_MAX or not 0 < meta.term <= m.term or not meta.conf.voters:
            return "it offers no snapshot that could be"
    return ""


def _append(m: Message) -> str:
    """The entries are a piece of one log: gapless, in terms that never fall."""
    if (m.index == 0) != (m.log_term == 0):
        return f"there is no entry {m.index} of term {m.log_term}"
    index, term = m.index, m.log_term
    for entry in m.entries:
        index += 1
        if entry.index != index or entry.term < term:
            return f"entry ({entry.index}, {entry.term}) does not follow ({index - 1}, {term})"
        term = entry.term
        if entry.kind != _NORMAL and (entry.kind != _CONF or readable_conf(entry) is None):
            return f"entry {index} is of kind {entry.kind} and cannot be read"
    if term > m.term or index > NUMBER_MAX:
        return f"its entries end at index {index} in term {term}, later than its own term {m.term}"
    return ""
