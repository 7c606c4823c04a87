"""Strangers at a node's port: Raft messages that no working node sends, in frames that pass for those of a node.

Invariant: none of them may have an effect on what replicas hold or whom they follow, so each is one that can be told
from a true one: a stranger that knows all that a node knows, and says what the node might say, is out of scope. They
are made when they arrive, from the state of the replica that they are for, and take the path of every other frame.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from needle.multiraft.codec import decode_frame, encode_frame
from needle.raft.messages import NUMBER_MAX, ConfState, Entry, EntryKind, Message, MessageType, SnapshotMeta
from needle.raft.plausible import TERM_JUMP_MAX
from needle.raft.state import Role, State
from proof.checkers.violation import Violation
from proof.sim.event_loop import SimLoop
from proof.sim.fleet import Fleet
from proof.sim.machine import stream
from proof.sim.network import SimNetwork
from proof.sim.spec import Fault
from proof.sim.trace import Trace

GHOST = "ghost"
"""A node that there is not."""
OVERHEARD_MAX = 200
SECONDS_MAX = 5.0
PAUSE_SECONDS = 0.3
_BEYOND = (NUMBER_MAX + 1, 1 << 63, (1 << 64) - 1)
_FROM_LEADER = (MessageType.HEARTBEAT, MessageType.APPEND, MessageType.SNAPSHOT)
_NUMBERS = ("log_term", "index", "commit", "hint", "hint_term", "round")
Made = tuple[str, Message]
"""Under which node's name the connection is, and what is said on it."""


class Strangers:
    """See the module. `overhear` is told of every frame between nodes."""

    def __init__(self, seed: int, loop: SimLoop, network: SimNetwork, fleet: Fleet, trace: Trace) -> None:
        self._seed = seed
        self._loop = loop
        self._network = network
        self._fleet = fleet
        self._trace = trace
        self._overheard: deque[bytes] = deque(maxlen=OVERHEARD_MAX)
        network.overhear = self._overheard.append

    async def call_on(self, fault: Fault, name: str) -> None:
        """Send such messages to node `name` for a while."""
        rng = stream(self._seed, "stranger", fault.number)
        until = self._loop.time() + min(fault.seconds, SECONDS_MAX)
        while self._loop.time() < until:
            self._network.intrude(self._fleet.machines[name].address, lambda handler: self._visit(rng, name, handler))
            await asyncio.sleep(2 * rng.random() * PAUSE_SECONDS)

    def _visit(self, rng: random.Random, name: str, handler: Callable[[str, bytes], None]) -> None:
        """In the node's own process, between two of its steps."""
        node = self._fleet.nodes.get(name)
        groups = node.groups() if node is not None else {}
        if node is None or not groups:
            return
        group = sorted(groups)[rng.randrange(len(groups))]
        made = self._made(rng, name, groups[group])
        if made is None:
            return
        peer, message = made
        speaker = self._fleet.nodes.get(peer)
        nonce, news = (speaker.greeting() if speaker is not None else None) or (rng.getrandbits(60) + 1, 0)
        if rng.random() < 0.1:
            nonce = rng.getrandbits(60) + 1  # of no life that the node has had
        body = encode_frame(nonce, news, [(group, message)])
        if rng.random() < 0.1:
            body = body[: rng.randrange(len(body))]
        self._trace.note(f"{name}: a stranger says as {peer or 'nobody'}, to group {group}: {message}")
        handler(peer, body)
        failure = node.failure()
        if failure is not None:
            ended = Violation("a stranger ends no node", f"{name} ended by {message} of {peer}: {failure!r}")
            self._fleet.unhandled(node.process, ended, "stranger")

    def _made(self, rng: random.Random, me: str, replica: Any) -> Made | None:
        s: State = replica.raft._s
        others = [name for name in sorted(self._fleet.machines) if name != me]
        peer = others[rng.randrange(len(others))]
        kind = rng.randrange(len(_MAKERS) + 1)
        if kind == len(_MAKERS):
            return self._of_another(rng, me, peer)
        return _MAKERS[kind](rng, s, me, peer)

    def _of_another(self, rng: random.Random, me: str, peer: str) -> Made | None:
        """What somebody said before, from a node that did not say it, on the connection of a third."""
        if not self._overheard:
            return None
        messages = decode_frame(self._overheard[rng.randrange(len(self._overheard))]).messages
        if not messages:
            return None
        message = messages[rng.randrange(len(messages))][1]
        senders = [name for name in (*sorted(self._fleet.machines), GHOST, "") if name != peer]
        return peer, msgspec.structs.replace(message, to=me, frm=senders[rng.randrange(len(senders))])


def _late_term(rng: random.Random, s: State, me: str, peer: str) -> Made:
    term = rng.choice((s.term + TERM_JUMP_MAX + 1, NUMBER_MAX - 1, NUMBER_MAX, NUMBER_MAX, *_BEYOND))
    kind = rng.choice((*MessageType, *_FROM_LEADER))
    meta = SnapshotMeta(1, 1, ConfState((peer, me))) if kind == MessageType.SNAPSHOT else None
    return peer, Message(kind, to=me, frm=peer, term=term, force=rng.random() < 0.5, snapshot=meta)


def _number_beyond(rng: random.Random, s: State, me: str, peer: str) -> Made:
    message = Message(rng.choice(tuple(MessageType)), to=me, frm=s.leader or peer, term=s.term)
    return message.frm, msgspec.structs.replace(message, **{rng.choice(_NUMBERS): rng.choice(_BEYOND)})


def _second_leader(rng: random.Random, s: State, me: str, peer: str) -> Made | None:
    """Of the term in which this node leads, or follows another."""
    if s.role is not Role.LEADER and s.leader in ("", peer):
        return None
    kind, last = rng.choice(_FROM_LEADER), s.log.last_index()
    if kind == MessageType.SNAPSHOT:
        meta = SnapshotMeta(last + 1, s.term, ConfState((peer, me)))
        return peer, Message(kind, to=me, frm=peer, term=s.term, snapshot=meta)
    if kind == MessageType.APPEND:
        entry = Entry(last + 1, s.term, EntryKind.NORMAL, b"")
        return peer, Message(
            kind, to=me, frm=peer, term=s.term, index=last, log_term=s.log.last_term(), entries=(entry,)
        )
    return peer, Message(kind, to=me, frm=peer, term=s.term)


def _beyond_the_log(rng: random.Random, s: State, me: str, peer: str) -> Made | None:
    """An index that nobody has: acknowledged to a leader; said to be committed, or to go on from, to a follower."""
    index = rng.choice((s.log.last_index() + (1 << 40), NUMBER_MAX - 1))
    if s.role is Role.LEADER:
        return peer, Message(MessageType.APPEND_RESP, to=me, frm=peer, term=s.term, index=index, log_term=s.term)
    if not s.leader:
        return None
    if rng.random() < 0.5:
        return s.leader, Message(MessageType.HEARTBEAT, to=me, frm=s.leader, term=s.term, commit=index)
    return s.leader, Message(MessageType.APPEND, to=me, frm=s.leader, term=s.term, index=index, log_term=s.term)


def _round_to_come(rng: random.Random, s: State, me: str, peer: str) -> Made | None:
    if s.role is not Role.LEADER:
        return None
    round_id = s.round + 1 + rng.choice((0, 1000, 1 << 60))
    return peer, Message(MessageType.HEARTBEAT_RESP, to=me, frm=peer, term=s.term, round=round_id)


def _torn_entries(rng: random.Random, s: State, me: str, peer: str) -> Made | None:
    """Of this node's own leader, but no piece of a log: a gap, a term that falls, a configuration that is none."""
    if s.role is Role.LEADER or not s.leader:
        return None
    last, term = s.log.last_index(), s.log.last_term()
    entry = rng.choice(
        (
            Entry(last + 2, s.term, EntryKind.NORMAL, b""),
            Entry(last + 1, s.term + 1, EntryKind.NORMAL, b""),
            Entry(last + 1, max(term - 1, 0), EntryKind.NORMAL, b""),
            Entry(last + 1, s.term, EntryKind.CONF_CHANGE, b"\xc1"),
            Entry(last + 1, s.term, 7, b""),
        )
    )
    if entry.kind == EntryKind.NORMAL and entry.index == last + 1 and term <= entry.term <= s.term:
        return None
    return s.leader, Message(
        MessageType.APPEND, to=me, frm=s.leader, term=s.term, index=last, log_term=term, entries=(entry,)
    )


def _misnamed(rng: random.Random, s: State, me: str, peer: str) -> Made:
    """Grants, requests and heartbeats of the node itself, of nobody, of a node that is not, to one that is not."""
    kind = rng.choice((MessageType.VOTE, MessageType.VOTE_RESP, MessageType.PRE_VOTE_RESP, MessageType.HEARTBEAT))
    connection, frm, to = rng.choice(
        ((me, me, me), (peer, me, me), (peer, "", me), ("", peer, me), (GHOST, GHOST, me), (GHOST, peer, me),
         (peer, GHOST, me), (peer, peer, GHOST))
    )  # fmt: skip
    return connection, Message(kind, to=to, frm=frm, term=s.term + rng.randrange(2), force=rng.random() < 0.5)


def _unknown_type(rng: random.Random, s: State, me: str, peer: str) -> Made:
    return peer, Message(rng.choice((10, 99, -1, 1 << 40)), to=me, frm=peer, term=s.term)


_MAKERS: tuple[Callable[[random.Random, State, str, str], Made | None], ...] = (
    _late_term,
    _late_term,
    _number_beyond,
    _second_leader,
    _second_leader,
    _beyond_the_log,
    _round_to_come,
    _torn_entries,
    _misnamed,
    _unknown_type,
)
