"""How a trace writes messages, entries and configurations down. See trace_commands.py for how to read them."""

from __future__ import annotations

from needle.raft import membership
from needle.raft.messages import ConfState, Entry, EntryKind, Message, MessageType

_KINDS = {
    MessageType.PRE_VOTE_RESP: "prevote",
    MessageType.PRE_VOTE: "prevote",
    MessageType.VOTE_RESP: "vote",
    MessageType.APPEND_RESP: "append",
    MessageType.HEARTBEAT_RESP: "heartbeat",
    MessageType.TIMEOUT_NOW: "timeout-now",
}


def kind_of(m: Message) -> str:
    name = _KINDS.get(MessageType(m.type), MessageType(m.type).name.lower())
    return f"{name}-{'refused' if m.reject else 'ok'}" if MessageType(m.type).name.endswith("_RESP") else name


def conf_words(conf: ConfState) -> str:
    words = " ".join(conf.voters)
    if conf.voters_outgoing:
        words += " & " + " ".join(conf.voters_outgoing)
    for name, nodes in (("learners", conf.learners), ("next learners", conf.learners_next)):
        words += f", {name} {' '.join(nodes)}" if nodes else ""
    return words


def entry_words(entry: Entry) -> str:
    if entry.kind == EntryKind.CONF_CHANGE:
        what = f"[{conf_words(membership.decode_conf(entry))}]"
    else:
        what = entry.data.decode() or "no-op"
    return f"{entry.index}/t{entry.term} {what}"


def message_words(m: Message) -> str:
    """Everything that the message says, its confirmation round last."""
    words = f"{m.frm}->{m.to} {kind_of(m)} t{m.term}"
    match m.type:
        case MessageType.VOTE | MessageType.PRE_VOTE:
            words += f" log {m.index}/t{m.log_term} commit {m.hint}{' forced' if m.force else ''}"
        case MessageType.APPEND:
            entries = ", ".join(map(entry_words, m.entries)) or "nothing"
            words += f" after {m.index}/t{m.log_term}: {entries}; commit {m.commit}"
        case MessageType.APPEND_RESP if m.reject:
            words += f" after {m.index}, try {m.hint}/t{m.hint_term}"
        case MessageType.APPEND_RESP:
            words += f" up to {m.index}/t{m.log_term}"
        case MessageType.HEARTBEAT:
            words += f" commit {m.commit}"
        case MessageType.SNAPSHOT if m.snapshot is not None:
            words += f" of {m.snapshot.index}/t{m.snapshot.term}, voters {conf_words(m.snapshot.conf)}"
    return words + (f" r{m.round}" if m.round else "")


def position(text: str) -> tuple[int, int]:
    index, _, term = text.partition("/t")
    return int(index), int(term)
