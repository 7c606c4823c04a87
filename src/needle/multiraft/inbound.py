"""What other nodes send to this one: frames of Raft messages, and questions.

A message that cannot be is refused and counted, whatever it says; a contradiction that the core met is looked into
(doubts.py), and stops what must not go on.
Invariant: of a peer only what its present life sent is handled (lives.py). It must not know turns or the log's disk.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol

from needle.base.errors import Internal, NeedleError, Unavailable, invalid
from needle.base.ids import GroupId, NodeId, group_name
from needle.base.news import News
from needle.base.parts import Payload
from needle.base.runtime import Clock
from needle.multiraft import doubts
from needle.multiraft.codec import (
    Addressed,
    StateRequest,
    decode_blocks_request,
    decode_chunk_request,
    decode_frame,
    decode_hashes_request,
    decode_standing_call,
    decode_state_request,
    encode_body,
    encode_state,
)
from needle.multiraft.counters import Counters
from needle.multiraft.group import Group
from needle.multiraft.lives import LIFE_METHOD, Lives
from needle.multiraft.log.group_log import LogWrite
from needle.multiraft.log.log_records import LostRecord
from needle.multiraft.ports import Transport
from needle.multiraft.rebuild import STATE_METHOD, refuse_damaged
from needle.multiraft.snapshots.receiver import BLOCKS_METHOD, CHUNK_METHOD, HASHES_METHOD
from needle.multiraft.snapshots.sender import SnapshotShelf
from needle.raft.messages import Doubt, Message, MessageType
from needle.raft.raft import Raft
from needle.raft.state import LEADER, Role

_log = logging.getLogger("needle.multiraft")
REFUSAL_LOG_SECONDS = 1.0
"""At most so often a refused message is logged; all are counted."""
CALL_METHODS = (CHUNK_METHOD, HASHES_METHOD, BLOCKS_METHOD, STATE_METHOD, LIFE_METHOD, doubts.STANDING_METHOD)
"""What hosts ask each other."""

_OF_LEADER = frozenset(map(int, (MessageType.APPEND, MessageType.HEARTBEAT)))
_VOTE, _VOTE_RESP = int(MessageType.VOTE), int(MessageType.VOTE_RESP)
_APPEND_RESP, _HEARTBEAT_RESP = int(MessageType.APPEND_RESP), int(MessageType.HEARTBEAT_RESP)


def _counts(raft: Raft, message: Message) -> bool:
    """Whether this replica counts on what a message says that its sender holds: only that is held against the sender
    after its next start. What nobody counts on may have been said by anybody."""
    if message.type == _VOTE:
        return message.term <= raft.term
    if message.term != raft.term:
        return False
    if message.type in _OF_LEADER:
        return raft.leader == message.frm
    if message.type == _VOTE_RESP:
        return raft.role is not Role.FOLLOWER
    answered = raft.role is LEADER
    return answered and (message.type != _APPEND_RESP or raft.holds(message.frm, message.index))


class InboundHost(Protocol):
    """What this needs of its host."""

    node_id: NodeId
    clock: Clock
    counters: Counters
    lives: Lives
    shelf: SnapshotShelf
    stopped: bool
    transport: Transport

    @property
    def lost(self) -> str:
        """Why no replica of this node may go on; "" if they may."""
        ...

    def wake(self, group: Group) -> None: ...
    def is_news(self, *what: object) -> bool: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> Any: ...
    async def durable(self, write: LogWrite) -> None: ...
    def fail(self, error: NeedleError) -> None:
        """The node can no longer keep its promises."""
        ...


class Inbound:
    """See the module. groups: the open ones. find: one of them; raises Unavailable, LostState if it is not open."""

    def __init__(self, host: InboundHost, groups: Mapping[GroupId, Group], find: Callable[[GroupId], Group]) -> None:
        self._host = host
        self._groups = groups
        self._find = find
        self._doubted: dict[GroupId, None] = {}
        self._refusals = News(REFUSAL_LOG_SECONDS, keys_max=1)

    # --- frames -----------------------------------------------------------------------------------------------------
    def on_frame(self, frm: NodeId, body: Payload) -> None:
        """One frame of a peer. Messages for groups that are not open here are dropped. Raises ProtocolError."""
        host = self._host
        frame = decode_frame(body)
        host.counters.frames_in += 1
        if host.lost:
            host.lives.make_known(frm)
        elif host.lives.admits(frm, frame, len(body)):
            self.hear(frm, frame.messages)

    def hear(self, frm: NodeId, messages: list[Addressed]) -> None:
        """Handle the messages of a peer that is known."""
        host = self._host
        host.counters.messages_in += len(messages)
        now = host.clock.monotonic()
        try:
            for group_id, message in messages:
                group = self._groups.get(group_id)
                if group is None or message.to != host.node_id or message.frm != frm:
                    continue
                refusal = group.receive(message, now)
                if refusal:
                    self._refused(frm, group_id, refusal, now)
                else:
                    doubt = group.raft.take_doubt()
                    if doubt is not None:
                        self._doubt(group, doubt)
                    elif _counts(group.raft, message):
                        host.lives.told(frm, group_id, message)
                if message.type != _HEARTBEAT_RESP or group.has_work():  # most of these only say that a node is there
                    host.wake(group)
        except NeedleError as error:
            host.fail(error)
        except Exception as error:  # as in a turn: a bug stops the node
            host.fail(Internal(f"a message of {frm} could not be handled: {error!r}"))
            raise

    def _refused(self, frm: NodeId, group: GroupId, why: str, now: float) -> None:
        """What comes from outside may be refused and counted; it is logged now and then."""
        self._host.counters.messages_refused += 1
        if self._refusals.is_news("refused", now):
            _log.warning("%s: a message from %s is refused: %s", group_name(group), frm, why)

    # --- contradictions ----------------------------------------------------------------------------------------------
    def _doubt(self, group: Group, doubt: Doubt) -> None:
        if group.id not in self._doubted and not group.lost:
            self._doubted[group.id] = None
            self._host.spawn(self._look_into(group, doubt))

    async def _look_into(self, group: Group, doubt: Doubt) -> None:
        """The core met a contradiction: ask the other side, and stop what must not go on."""
        news = self._host.is_news(group.id, "doubt", doubt.kind, doubt.peer)
        _log.log(logging.ERROR if news else logging.DEBUG, "%s: %s", group_name(group.id), doubt)
        try:
            answer = await doubts.ask(self._host.transport, group.id, doubt, news=news)
            if answer is None or self._host.stopped or group.lost or group.id not in self._groups:
                return
            reason = doubts.own_loss(group.raft, doubt, answer)
            if reason:
                group.raft.retire(self._host.clock.monotonic())
                await self._host.durable(LogWrite(log=group.log, lost=LostRecord(reason)))
                group.retire(self._host.clock.monotonic())  # now that the reason is known, whoever waits is told
                return
            reason = doubts.peers_loss(group.raft, doubt, answer)
            if reason:
                self._host.lives.refuse(doubt.peer, reason)
        finally:
            self._doubted.pop(group.id, None)

    async def on_call(self, frm: NodeId, method: str, body: bytes) -> bytes:
        """A peer's question, one of CALL_METHODS. Raises InvalidArgument for any other method."""
        if method == LIFE_METHOD:
            return self._host.lives.answer(frm, body)
        if method == doubts.STANDING_METHOD:
            call = decode_standing_call(body)
            group = self._find(call.group)
            doubt = doubts.asked(group.raft, call, frm)
            if doubt is not None:
                self._doubt(group, doubt)
            return encode_body(doubts.standing(group.raft, call.index, frm))
        if method == STATE_METHOD:
            return await self._snapshot_for(decode_state_request(body))
        shelf, now = self._host.shelf, self._host.clock.monotonic()
        if method == CHUNK_METHOD:
            chunk = decode_chunk_request(body)
            return await self._from_snapshot(frm, chunk.group, shelf.read(chunk, now, frm))
        if method == HASHES_METHOD:
            hashes = decode_hashes_request(body)
            return await self._from_snapshot(frm, hashes.group, shelf.hashes(hashes, now))
        if method == BLOCKS_METHOD:
            blocks = decode_blocks_request(body)
            return await self._from_snapshot(frm, blocks.group, shelf.blocks(blocks, now, frm))
        raise invalid("method", method, f"one of {', '.join(CALL_METHODS)}")

    async def _from_snapshot(self, frm: NodeId, group: GroupId, reading: Awaitable[bytes]) -> bytes:
        try:
            return await reading
        except Unavailable:
            # The peer was offered a snapshot that is gone: have the core ask for another one.
            offering = self._groups.get(group)
            if offering is not None and not self._host.stopped:
                offering.raft.report_snapshot_failed(frm, self._host.clock.monotonic())
            raise

    async def _snapshot_for(self, request: StateRequest) -> bytes:
        """A snapshot for a replica whose state is damaged. Raises Unavailable, StorageError."""
        group = self._find(request.group)
        refuse_damaged(group.id, group.machine)
        exported = await group.snapshots.exported(
            lambda made: made.snapshot != request.refused and made.meta.index >= request.applied
        )
        if exported.meta.index < request.applied:
            raise Unavailable(
                f"{group_name(group.id)} has not applied {request.applied} on node {self._host.node_id} yet"
            )
        return encode_state(exported.meta)
