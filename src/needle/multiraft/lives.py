"""Who a peer is: the life of a node's data directory, what peers remember of it, and what follows when they disagree.

A directory gets an incarnation when it is made, and each start of it a number and a nonce, durably, in the same store
as its votes: they are lost or rolled back together. Every frame carries the nonce. The first frame with another nonce
than the last makes the receiver ask the sender, on a connection of its own: "I remember this life of yours; is it in
your history? In it you told me that you hold this much; do you?" Only then are the frames heard.
Invariants: nothing of a peer is counted before its present life is durably remembered here; a node that lacks what a
peer remembers of it is not heard by that peer, and says itself that it is lost as soon as it hears of it. A stranger's
frame has no effect but a question to the address of the node that it names. It must not know how messages are handled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from needle.base.errors import NeedleError
from needle.base.ids import GroupId, NodeId, group_name
from needle.base.news import News
from needle.base.runtime import Clock
from needle.multiraft.codec import Frame, LifeAnswer, LifeCall, Told, decode_life_answer, decode_life_call, encode_body
from needle.multiraft.log.log_records import Identity, Life
from needle.multiraft.log.log_store import LivesWrite, LogStore
from needle.multiraft.ports import Transport
from needle.raft.messages import Message, MessageType

LIFE_METHOD = "raft.life"
ASK_SECONDS = 1.0
LOOK_SECONDS = 0.02
REFUSED_SECONDS = 5.0
"""So long a peer that is refused is not asked again. Then it is, whether it speaks or not: two followers have nothing
to say to each other, and one that has its right directory back would be told of as lost until the next election."""
HELD_BYTES_MAX = 1 << 20
"""Frames of a peer that wait until it is known who it is."""
HELD_BY_ALL_BYTES_MAX = 64 << 20
"""Those of all peers: anybody can call itself by many names."""
PEERS_MAX = 4096
"""Of whom anything is remembered."""

REMEDY = (
    "A data directory that was lost or replaced by an older copy must not go on under its name: remove the node, and "
    "add one with an empty directory and a new name"
)
REMEDY_HERE = (
    "If the data directory of this node was emptied, or is not mounted, start it with the one that it had: that node "
    "may have the only copy of the data. If that node's is the old one, remove it, and add it with an empty directory "
    "and a new name"
)

_log = logging.getLogger("needle.multiraft")
_ACK = int(MessageType.APPEND_RESP)
_OF_LEADER = frozenset(map(int, (MessageType.APPEND, MessageType.HEARTBEAT)))
_TELLING = _OF_LEADER | {_ACK, *map(int, (MessageType.HEARTBEAT_RESP, MessageType.VOTE, MessageType.VOTE_RESP))}


class _Peer:
    """One other node. talking: the nonce of the life whose frames are heard, 0 for none yet. told: per group, the
    latest (term, index) that it said to hold durably. told_by: the nonce of the life that said so: it cannot have lost
    that, whatever it had when it began. refused: why nothing of it is heard, "" otherwise. again: whether it is asked
    now and then for as long as it is refused."""

    __slots__ = ("again", "asking", "held", "held_bytes", "news", "refused", "retry_at", "talking", "told", "told_by")

    def __init__(self) -> None:
        self.talking = 0
        self.news = -1
        self.asking = self.again = False
        self.refused = ""
        self.retry_at = float("-inf")
        self.told: dict[GroupId, tuple[int, int]] = {}
        self.told_by = 0
        self.held: list[tuple[int, list[tuple[GroupId, Message]]]] = []
        self.held_bytes = 0


class LivesHost(Protocol):
    """What this needs of its host."""

    node_id: NodeId
    clock: Clock
    stopped: bool

    def spawn(self, work: Coroutine[Any, Any, None]) -> Any: ...
    async def durable(self, write: LivesWrite) -> None: ...
    def hear(self, frm: NodeId, messages: list[tuple[GroupId, Message]]) -> None:
        """Handle the messages of a peer that is known."""
        ...

    def lose(self, reason: str) -> None:
        """This node lost what others count on: no replica of it may go on."""
        ...


class Lives:
    """See the module. opened: per group, term and last index of its log when it was opened, 0 where it is not."""

    def __init__(
        self,
        host: LivesHost,
        store: LogStore,
        transport: Transport,
        opened: Callable[[], Mapping[GroupId, tuple[int, int]]],
    ) -> None:
        self._host = host
        self._store = store
        self._transport = transport
        self._opened = opened
        self._peers: dict[NodeId, _Peer] = {}
        self._established = False
        self._held_bytes = 0
        self._said = News(keys_max=PEERS_MAX)
        self.nonce = store.identity.life.nonce
        self.news = 0

    @property
    def identity(self) -> Identity:
        """This node's own history."""
        return self._store.identity

    def refused(self) -> dict[NodeId, str]:
        """The peers that are not heard, and why."""
        return {node: peer.refused for node, peer in sorted(self._peers.items()) if peer.refused}

    # --- frames -----------------------------------------------------------------------------------------------------
    def admits(self, frm: NodeId, frame: Frame, size: int) -> bool:
        """Whether the messages of a frame may be heard now; otherwise they wait for an introduction, or are dropped."""
        peer = self._peer(frm) if frame.nonce else None  # 0 is no life: it would pass for that of a peer not heard yet
        if peer is None:
            return False
        if peer.talking == frame.nonce:
            if peer.news != frame.news:
                self._ask_soon(frm, peer)
            return True
        now = self._host.clock.monotonic()
        if now < peer.retry_at:
            return False
        if peer.held_bytes + size <= HELD_BYTES_MAX and self._held_bytes + size <= HELD_BY_ALL_BYTES_MAX:
            peer.held.append((frame.nonce, frame.messages))
            peer.held_bytes += size
            self._held_bytes += size
        self._ask_soon(frm, peer)
        return False

    def make_known(self, frm: NodeId) -> None:
        """This node is lost: whoever still speaks to it is asked now and then, so that it asks in turn and hears it."""
        peer, now = self._peer(frm), self._host.clock.monotonic()
        if peer is not None and now >= peer.retry_at:
            peer.retry_at = now + REFUSED_SECONDS
            self._ask_soon(frm, peer)

    def told(self, frm: NodeId, group: GroupId, message: Message) -> None:
        """Note what a peer said to hold durably: a follower by its acknowledgements, a leader in all that it sends.

        In the same term nobody takes either back: only the leader of a later one replaces entries. What a leader says
        counts until it says something else. It goes on saying so, and what is forged in its name does not stay.
        """
        kind = message.type
        if message.reject or kind not in _TELLING:
            return
        known, by_leader = self._peers[frm].told, kind in _OF_LEADER
        said = (message.term, message.index if kind == _ACK else message.hint if by_leader else 0)
        before = known.get(group, (0, 0))
        if said > before or (by_leader and said[0] == before[0] and said[1] > 0):
            known[group] = said

    def _peer(self, node: NodeId) -> _Peer | None:
        peer = self._peers.get(node)
        if peer is None and (node in self._store.peers or len(self._peers) < PEERS_MAX):
            peer = self._peers[node] = _Peer()
        return peer

    # --- asking -----------------------------------------------------------------------------------------------------
    def _ask_soon(self, node: NodeId, peer: _Peer) -> None:
        if not peer.asking:
            peer.asking = True
            self._host.spawn(self._ask(node, peer))

    async def meet(self, node: NodeId) -> str:
        """Ask a node who it is now. Why it is refused, "" otherwise, also when it does not answer."""
        peer = self._peer(node)
        if peer is None:
            return ""
        while peer.asking:  # noqa: ASYNC110 - rare, and over within ASK_SECONDS
            await asyncio.sleep(LOOK_SECONDS)
        peer.asking = True
        await self._ask(node, peer)
        return peer.refused

    async def _ask(self, node: NodeId, peer: _Peer) -> None:
        remembered = self._store.peers.get(node)
        nonces = {nonce for nonce, _ in peer.held}
        try:
            answer = await self._question(node, remembered, {})
            if peer.told and answer.life.nonce != peer.told_by:
                # It told all this in a life before: the question is whether it still holds that.
                answer = await self._question(node, remembered, peer.told)
            if not self._host.stopped:
                await self._judge(node, peer, remembered, answer)
        except NeedleError as error:
            if self._is_news(node, error.code):
                _log.info("node %s could not be asked who it is: %s", node, error)
            if node not in self._store.peers and not peer.talking:
                self._peers.pop(node, None)
        finally:
            peer.asking = False
            self._held_bytes -= peer.held_bytes
            held, peer.held, peer.held_bytes = peer.held, [], 0
        for nonce, messages in held:
            if nonce == peer.talking and not self._host.stopped:
                self._host.hear(node, messages)
        if peer.talking and nonces - {peer.talking} and self._is_news(node, "another life"):
            _log.warning("frames that were not of this life of node %s are dropped", node)

    def _is_news(self, node: NodeId, what: str) -> bool:
        """Whether this was not said of the node a moment ago: who is not heard speaks on, many times a second, and that
        must not hide what else is logged."""
        return self._said.is_news((node, what), self._host.clock.monotonic())

    async def _question(
        self, node: NodeId, remembered: Life | None, told: Mapping[GroupId, tuple[int, int]]
    ) -> LifeAnswer:
        call = LifeCall(self.nonce, remembered, [Told(group, *said) for group, said in sorted(told.items())])
        return decode_life_answer(await self._transport.call(node, LIFE_METHOD, encode_body(call), ASK_SECONDS))

    async def _judge(self, node: NodeId, peer: _Peer, remembered: Life | None, answer: LifeAnswer) -> None:
        mine = answer.remembered.get(self._host.node_id)
        if not self._judge_own(node, mine, answer):
            return
        reason, remedy = "", REMEDY
        if remembered is not None and not answer.knows:
            reason = f"its data directory does not remember {_shown(remembered)}, in which it spoke to this node"
        elif answer.missing:
            reason = f"it lacks what it told this node to hold: {answer.missing}"
        elif answer.lost:
            reason = answer.lost
        elif mine is not None and not self.identity.knows(mine):
            reason = f"it remembers {_shown(mine)} of this node, whose data directory knows of none such"
            remedy = REMEDY_HERE
        if reason:
            self.refuse(node, reason, remedy)
            return
        news = self._news(node, answer)
        if news:
            await self._host.durable(LivesWrite(peers=news))
            self.news += 1
        if peer.refused:
            _log.warning("node %s is heard again", node)
        if peer.told_by != answer.life.nonce:
            peer.told, peer.told_by = {}, answer.life.nonce
        peer.talking, peer.news, peer.refused = answer.life.nonce, answer.news, ""
        peer.retry_at = float("-inf")

    def _judge_own(self, node: NodeId, mine: Life | None, answer: LifeAnswer) -> bool:
        """Whether this node is what the peer remembers, or at least may be. Nobody but this node can know that it was
        another directory that spoke under its name, unless others know this one: then the peer is the odd one out."""
        if mine is None:
            return True
        same, knows = mine.incarnation == self.identity.incarnation, self.identity.knows(mine)
        missing = self.missing(answer.told) if same and knows else ""
        if knows and not missing:
            self._established = True
            return True
        if not same and self._established:
            return True
        what = missing or f"{_shown(mine)}, which this data directory does not remember"
        self._host.lose(f"node {node} remembers of this node: {what}")
        return False

    def refuse(self, node: NodeId, reason: str, remedy: str = REMEDY) -> None:
        """Hear nothing more of a peer in its present life."""
        peer = self._peer(node)
        if peer is None:
            return
        if peer.refused != reason:
            _log.critical("node %s is refused: %s. %s", node, reason, remedy)
        peer.refused, peer.talking = reason, 0
        peer.retry_at = self._host.clock.monotonic() + REFUSED_SECONDS
        if not peer.again:
            peer.again = True
            self._host.spawn(self._ask_again(node, peer))

    async def _ask_again(self, node: NodeId, peer: _Peer) -> None:
        while peer.refused and self._peers.get(node) is peer and not self._host.stopped:
            await asyncio.sleep(REFUSED_SECONDS)
            if peer.refused and not peer.asking and not self._host.stopped:
                peer.asking = True
                await self._ask(node, peer)
        peer.again = False

    def _news(self, node: NodeId, answer: LifeAnswer) -> dict[NodeId, Life]:
        """What the answer says of nodes that is not remembered here yet: of the peer itself, and what it remembers."""
        news = {} if self._store.peers.get(node) == answer.life else {node: answer.life}
        for other, life in answer.remembered.items():
            known = self._store.peers.get(other)
            if other in (node, self._host.node_id):
                continue
            if known is None or (known.incarnation == life.incarnation and known.start < life.start):
                news[other] = life
                if other in self._peers:
                    self._peers[other].talking = 0  # it must answer for this life before it is heard again
        return news if len(self._store.peers) + len(news) <= PEERS_MAX else {}

    # --- being asked ------------------------------------------------------------------------------------------------
    def answer(self, frm: NodeId, body: bytes) -> bytes:
        """A peer asks who this node is. Raises ProtocolError. What it says of this node is only looked into."""
        call = decode_life_call(body)
        peer = self._peer(frm) if frm in self._store.peers else self._peers.get(frm)
        knows = call.remembered is None or self.identity.knows(call.remembered)
        missing = self.missing(call.told) if knows else ""
        may_ask = not self.identity.lost and peer is not None and self._host.clock.monotonic() >= peer.retry_at
        if may_ask and peer is not None and (not knows or missing or peer.talking != call.nonce):
            self._ask_soon(frm, peer)
        told = peer.told if peer is not None and peer.told_by != call.nonce else {}
        return encode_body(
            LifeAnswer(
                life=self.identity.life,
                news=self.news,
                knows=knows,
                missing=missing,
                lost=self.identity.lost,
                remembered=self._store.peers,
                told=[Told(group, *said) for group, said in sorted(told.items())],
            )
        )

    def missing(self, told: list[Told]) -> str:
        """What this node told in an earlier life, and did not hold any more when it was started; "" for nothing. A
        replica that a copy of the directory knows nothing of is not opened, or later: it counts all the same."""
        opened = self._opened()
        for said in told:
            term, last = opened.get(said.group) or self._store.standing(said.group) or (said.term, 0)
            if (term, last) < (said.term, said.index):
                return (
                    f"in {group_name(said.group)} term {said.term} and entries up to {said.index}; "
                    f"this directory had term {term} and entries up to {last} when it was opened"
                )
        return ""


def _shown(life: Life) -> str:
    return f"start {life.start} of the directory {life.incarnation:x}"
