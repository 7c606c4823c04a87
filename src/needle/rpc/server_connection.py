"""One accepted connection: checks the hello, hands requests to a handler, writes its answers.

Invariant: a request gets exactly one RESPONSE or ERROR frame while its connection lives; a connection works on at most
`inflight_requests_max` requests of at most `inflight_bytes_max` bytes (one may exceed the bytes alone), reads nothing
while it is at a bound or its peer does not read. One that holds more than its share while the server holds too much is
refused. A handler's failure never ends the connection. Does not know methods.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from needle.base.errors import FrameTooLarge, Internal, NeedleError, ProtocolError, TlsFailed
from needle.base.events import CONNECTION_REFUSED, tell
from needle.base.parts import Payload
from needle.base.request import current, over
from needle.base.tracebacks import release
from needle.rpc.codec import Hello, encode, encode_error, split_about, split_request
from needle.rpc.connection import FrameConnection, RpcStats
from needle.rpc.failures import cancelled, named
from needle.rpc.frame import ENVELOPE_BYTES, ERROR, HELLO, HELLO_ACK, ONEWAY, REQUEST, RESPONSE, Frame
from needle.rpc.greeting import Greeted, Greeting, no_room
from needle.rpc.handler import Answer, Peer
from needle.rpc.held_bytes import HeldBytes, Holding
from needle.rpc.promise import Promise
from needle.rpc.tls import ONLY_TLS, Door, check_caller
from needle.rpc.turns import PORTION, Turns

log = logging.getLogger(__name__)

SMALL_ANSWER_BYTES = 4096
REFUSING_MAX = 16
"""Connections over the limit that are told so at one time; the oldest of further ones are cut off without a word."""


class Serving(Greeted, Holding, Protocol):
    """What a connection needs of its server. door: see RpcServer. tasks: requests that run. passing: those that did not
    say yet who they are, or are told why they are refused; oldest first. known: how many said it, and are served.
    refused: errors answered, by code."""

    connections: dict[ServerConnection, None]
    door: Door | None
    passing: dict[ServerConnection, None]
    refused: Counter[str]
    known: int
    stats: RpcStats
    tasks: dict[asyncio.Future[Any], None]
    turns: Turns

    def met(self, connection: ServerConnection) -> None: ...
    def promised(self, more: int) -> None: ...
    def is_news(self, remote: str, why: str) -> bool: ...


class ServerConnection(FrameConnection):
    """One accepted connection."""

    def __init__(self, server: Serving, *, only_tls: bool = False) -> None:
        """only_tls: it came without TLS, and is told that this is not enough."""
        super().__init__(server.limits, server.stats)
        self.server = server
        self.handler = server.handler
        self.peer: Peer | None = None
        self._greeting = Greeting(server, lambda node: check_caller(server.door, self.transport, node))
        self._only_tls = only_tls
        self.said: Hello | None = None
        self.inflight = self.inflight_bytes = 0
        self._reading, self._draining, self._ending = True, False, False
        self._backlog: deque[Frame] = deque()
        self._backlog_bytes = 0
        self._held = HeldBytes(server)
        self._frame_since: float | None = None
        self.droppable: dict[asyncio.Future[Any] | Promise[Any], None] = {}
        self.decoder.frame_bytes_max = min(self.limits.hello_bytes_max, self.limits.frame_bytes_max)
        self._hello_timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._hello_timer = self.loop.call_later(self.limits.hello_timeout, self._no_hello)
        passing = self.server.passing
        passing[self] = None
        if self.stats.connections > self.limits.connections_max + REFUSING_MAX:
            # Each holds a socket. Who has something to say does so at once: the oldest is least likely to.
            oldest = next(iter(passing))
            del passing[oldest]
            oldest.abort()
        if self in passing:
            self.server.met(self)
        if self._only_tls:
            self.refuse(TlsFailed(ONLY_TLS))

    def drain(self) -> None:
        """Take no more requests; those running may still answer."""
        self._draining = True
        self._drop_backlog()
        self._set_reading(False)

    # --- input -------------------------------------------------------------------------------------------------------
    def on_frames(self, frames: list[Frame]) -> None:
        if self._backlog or self._blocked():
            self._keep(frames)
        else:
            self._serve(frames)
        if self.decoder.error is not None:
            self.refuse(self.decoder.error)
        elif not self.decoder.buffered:
            self._frame_since = None
        elif frames or self._frame_since is None:
            self._frame_since = self.loop.time()
        if self._held.now or self.decoder.buffered or self._backlog or self.inflight_bytes > SMALL_ANSWER_BYTES:
            self.account()
            if self.decoder.buffered and self._held.are_greedy():
                self.refuse(self._held.overloaded("this frame"))

    def _keep(self, frames: Sequence[Frame]) -> None:
        self._backlog.extend(frames)
        self._backlog_bytes += sum(len(payload) + ENVELOPE_BYTES for _, _, payload in frames)

    def _drop_backlog(self) -> None:
        self._backlog.clear()
        self._backlog_bytes = 0

    # --- what is held for the peer -----------------------------------------------------------------------------------
    def account(self) -> None:
        """Tell the server what is held for this peer now."""
        held = 0
        if not self.closing:
            held = self.decoder.buffered + self._backlog_bytes + self.unsent_bytes()
        self._held.tell(held + self.inflight_bytes)

    def check_frame(self, now: float) -> None:
        """Refuse a peer that does not finish its frame. While this side does not read, no time passes."""
        if self._frame_since is None or self.closing:
            return
        if not self._reading:
            self._frame_since = now
            return
        size = self.decoder.expected
        allowed = self.limits.frame_timeout + size / self.limits.frame_bytes_per_second
        if now - self._frame_since > allowed:
            self.refuse(ProtocolError(f"a frame of {size} bytes was not complete after {allowed:.3g} s"))

    def _serve(self, frames: Sequence[Frame]) -> None:
        for position, frame in enumerate(frames):
            if self.closing:
                return
            if self._blocked() or not self._has_turn(position):
                self._keep(frames[position:])
                self._set_reading(False)
                if not self._blocked():
                    self.server.turns.wait(self)
                return
            self._take(frame)

    def _has_turn(self, served: int) -> bool:
        """Other nodes' messages keep the cluster together: a portion of them is served in any turn."""
        if served < PORTION and self.peer is not None and self.peer.node_id:
            return True
        return not self.server.turns.are_over()

    def _take(self, frame: Frame) -> None:
        kind, request_id, payload = frame
        try:
            if kind == REQUEST and self.peer is not None:
                self._request(self.peer, request_id, payload)
            elif kind == ONEWAY and self.peer is not None:
                self._oneway(self.peer, payload)
            else:
                self._handshake(kind, payload)
        except ProtocolError as error:
            self.refuse(error)

    def _handshake(self, kind: int, payload: Payload) -> None:
        if kind != HELLO or self.peer is not None:
            raise ProtocolError(f"frame kind {kind} is not allowed {'after' if self.peer else 'before'} the hello")
        try:
            found = self._greeting.hear(payload, self.remote)
        except NeedleError as error:
            self.refuse(error)
            return
        if isinstance(found, Hello):
            self.write_frame(HELLO_ACK, 0, (encode(found),))
            return
        self._hello_timer.cancel()
        full = no_room(self.server.known, self.limits.connections_max, found.hello.node_id)
        if full is not None:
            del self.server.connections[self]
            self.refuse(full)
            return
        self.server.known += 1
        del self.server.passing[self]
        self.decoder.frame_bytes_max = self.limits.frame_bytes_max
        self.peer, self.said = found.peer(self.remote), found.hello
        if not found.proven:
            self.write_frame(HELLO_ACK, 0, (encode(self.server.hello),))

    def _no_hello(self) -> None:
        self.refuse(ProtocolError(f"no hello within {self.limits.hello_timeout:g} s"))

    def refuse(self, error: NeedleError) -> None:
        """Tell the peer why by name, then close."""
        if self.closing:
            return
        self._hello_timer.cancel()
        self.stats.protocol_errors += 1
        self.server.refused[error.code] += 1
        if self.server.is_news(self.remote, error.message):
            tell(CONNECTION_REFUSED, remote=self.remote, code=error.code, why=error)
        self.write_frame(ERROR, 0, (encode_error(error),))
        self._drop_backlog()
        self.decoder.drop()
        self.close_after_refusal()
        self.account()

    # --- requests ----------------------------------------------------------------------------------------------------
    def _oneway(self, peer: Peer, payload: Payload) -> None:
        try:
            self.handler.on_oneway(peer, payload)
        except ProtocolError as error:
            self.stats.protocol_errors += 1
            level = logging.WARNING if self.server.is_news(self.remote, "one-way") else logging.DEBUG
            log.log(level, "one-way frame from %s (%s) is refused: %s", peer.node_id or "a client", self.remote, error)
        except Exception:  # a boundary: it is no request, so nobody is answered, and the connection goes on
            self.stats.handler_failures += 1
            log.exception("one-way frame from %s (%s) failed", peer.node_id or "a client", self.remote)

    def _request(self, peer: Peer, request_id: int, payload: Payload) -> None:
        about = None
        if payload and not payload[0]:
            about, payload = split_about(payload)
        token = current.set(about)  # what it begins has it, too, and `_done`: not that of one behind which it waited
        try:
            self._begin(peer, request_id, payload)
        finally:
            current.reset(token)

    def _begin(self, peer: Peer, request_id: int, payload: Payload) -> None:
        method, body = split_request(payload)
        if self.server.held > self.limits.held_bytes_max and self._held.are_greedy():
            self._answer_error(request_id, self._held.overloaded("this request"))
            return
        try:
            answer = self.handler.on_request(peer, method, body)
        except Exception as error:  # noqa: BLE001 - a boundary: every exception becomes the caller's error
            self._answer_error(request_id, error)
            return
        if isinstance(answer, bytes):
            self._answer(request_id, (answer,))
            return
        if isinstance(answer, list):
            self._answer(request_id, answer)
            return
        if isinstance(answer, Promise):
            self._promise(request_id, len(payload), answer, self.handler.is_droppable(method))
            return
        future: asyncio.Future[Answer] = asyncio.ensure_future(answer)
        size = len(payload)
        self.inflight += 1
        self.inflight_bytes += size
        self.server.tasks[future] = None
        if self.handler.is_droppable(method):
            self.droppable[future] = None
        future.add_done_callback(partial(self._done, request_id, size))
        if self._blocked():
            self._set_reading(False)

    def _promise(self, request_id: int, size: int, promise: Promise[Answer], droppable: bool) -> None:
        self.inflight += 1
        self.inflight_bytes += size
        self.server.promised(1)
        about = current.get()

        def settled(answer: Answer | None, error: BaseException | None) -> None:
            self.server.promised(-1)
            self.droppable.pop(promise, None)
            over(about)
            self.inflight, self.inflight_bytes = self.inflight - 1, self.inflight_bytes - size
            if answer is None:
                self._answer_error(request_id, error or Internal("no answer"))
            else:
                self._answer(request_id, answer if isinstance(answer, list) else (answer,))
            if (self.closing or not self._reading) and not self._ending:
                self._ending = True  # answers of one turn come by the hundred
                self.loop.call_soon(self._ended)

        if droppable:
            self.droppable[promise] = None
        promise.then(settled)
        if self._blocked():
            self._set_reading(False)

    def _done(self, request_id: int, size: int, future: asyncio.Future[Answer]) -> None:
        self.server.tasks.pop(future, None)
        is_droppable = future in self.droppable
        self.droppable.pop(future, None)
        self.inflight -= 1
        self.inflight_bytes -= size
        if future.cancelled():
            self._answer_error(request_id, cancelled(is_droppable))
        elif (error := future.exception()) is not None:
            self._answer_error(request_id, error)
        else:
            answer = future.result()
            self._answer(request_id, answer if isinstance(answer, list) else (answer,))
        over(current.get())
        self._ended()

    def _ended(self) -> None:
        """Requests that ran have been answered."""
        self._ending = False
        if self.closing:
            self.account()
        elif not self._reading:
            self.on_flow()

    def _answer(self, request_id: int, parts: list[bytes] | tuple[bytes, ...]) -> None:
        size = sum(map(len, parts))
        if size + ENVELOPE_BYTES > self.limits.frame_bytes_max:
            limit = self.limits.frame_bytes_max
            self._answer_error(request_id, FrameTooLarge(f"the answer of {size} bytes is over the limit of {limit}"))
            return
        if size > SMALL_ANSWER_BYTES:
            self.account()
            unread = self.unsent_bytes()
            if (unread and unread + size > self.limits.answers_bytes_max) or self._held.are_greedy(size):
                self._answer_error(request_id, self._held.overloaded(f"an answer of {size} bytes"))
                return
        self.write_frame(RESPONSE, request_id, parts)

    def _answer_error(self, request_id: int, error: BaseException) -> None:
        self.stats.handler_failures += not isinstance(error, NeedleError)
        told = named(error, self.remote, self.peer.identity.name if self.peer is not None else "")
        self.server.refused[told.code] += 1
        self.write_frame(ERROR, request_id, (encode_error(told),))
        release(error)

    # --- flow --------------------------------------------------------------------------------------------------------
    def _blocked(self) -> bool:
        return (
            self._draining
            or self.slow
            or self.inflight >= self.limits.inflight_requests_max
            or self.inflight_bytes >= self.limits.inflight_bytes_max
        )

    def _set_reading(self, on: bool) -> None:
        if on == self._reading or self.transport is None or self.closing:
            return
        self._reading = on
        if on:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def on_flow(self) -> None:
        if self._blocked():
            self._set_reading(False)
        elif self.go_on(PORTION):
            self.server.turns.wait(self)

    def go_on(self, portion: int) -> bool:
        # One by one: a request that has ended lets one more begin, and thousands may wait behind it.
        served = 0
        while (
            self._backlog and served < portion and not self.closing and not self._blocked() and self._has_turn(served)
        ):
            frame = self._backlog.popleft()
            self._backlog_bytes -= len(frame[2]) + ENVELOPE_BYTES
            self._take(frame)
            served += 1
        if served:
            self.account()
        if self.closing or self._blocked():
            return False
        if not self._backlog:
            self._set_reading(True)
        return bool(self._backlog)

    def on_lost(self, error: Exception | None) -> None:
        self._hello_timer.cancel()
        self._drop_backlog()
        self.decoder.drop()
        self.server.connections.pop(self, None)
        self.server.passing.pop(self, None)
        for task in list(self.droppable):
            task.cancel()
        self.account()
        if self.peer is not None:
            self.server.known -= 1
            self.peer.closed = True
            self.handler.on_gone(self.peer)
        if error is not None:
            log.debug("connection from %s lost: %s", self.remote, error)
