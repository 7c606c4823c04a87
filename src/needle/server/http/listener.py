"""The door on the node's event loop: uvicorn's protocol with this node's bounds, without its signals and its clock.

Invariants: a connection has `HEAD_SECONDS` for the head of a request and `HEAD_BYTES_MAX` bytes; one that is idle ends
after `IDLE_SECONDS`; there are at most `http_max()`. Whoever sends slowly, never reads, or opens more takes neither the
loop nor the memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from needle.base.config import parse_address
from needle.base.errors import Unavailable
from needle.rpc.tls import HANDSHAKE
from needle.rpc.tls import Door as TlsDoor
from needle.rpc.tls_listener import TlsListener
from needle.server.http import pages
from needle.server.http.app import BODY_BYTES_MAX, BODY_SECONDS, SEND_SECONDS, Door
from needle.server.http.door_node import DoorNode
from needle.server.http.message import Scope
from needle.server.http.no_requests import LAST_SECONDS, OnlyTls, bad_request, is_news, tls_failed
from needle.server.http.probes import Health, probes
from needle.server.http.routes import ROUTES
from needle.server.machine.descriptors import http_max
from needle.server.ports import Exposition

log = logging.getLogger("needle.server")

HEAD_BYTES_MAX: Final = 32 * 1024
HEAD_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 30
STOP_SECONDS: Final = 5
READ_BYTES_MAX: Final = 256 * 1024
"""What the loop reads at once."""
PIPELINED_MAX: Final = 64
"""Requests of one connection that wait for the answer to the one before."""
BACKLOG: Final = 256


class HttpServer:
    """Listens on `address` ("host:port")."""

    def __init__(
        self,
        address: str,
        node: DoorNode,
        health: Health,
        metrics: Exposition,
        *,
        api: bool = True,
        tls: TlsDoor | None = None,
        hosts: Sequence[str] = (),
    ) -> None:
        """api: whether more than metrics and probes is served. tls: None for plain connections only. hosts: names of
        this node for browsers (browsers.py)."""
        self._host, self._port = parse_address("http_address", address)
        self._tls = tls
        more = probes(health, metrics, lambda: self.door.draining, self._check_metrics, node.blocking)
        shown = pages.routes() if api else []
        self.door = Door(node, ROUTES if api else (), [*more, *shown], metrics.history, hosts)
        config = uvicorn.Config(
            self.door,
            http=_Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
            backlog=BACKLOG,
        )
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        self._socket: socket.socket | None = None

    def _check_metrics(self, scope: Scope) -> None:
        self.door.check_metrics(scope)

    async def start(self) -> None:
        """Listen. Raises Unavailable when the address cannot be bound."""
        try:
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            self._socket = socket.create_server((self._host, self._port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise Unavailable(f"cannot listen on {self._host}:{self._port} for HTTP: {error}") from error
        if self._tls is None:
            await self._server.startup([self._socket])
        else:
            # Uvicorn only closes what it finds there.
            self._server.servers = [self._listen_for_tls(self._socket, self._tls)]  # type: ignore[list-item]

    def _listen_for_tls(self, listening: socket.socket, door: TlsDoor) -> TlsListener:
        config, server = self._server.config, self._server

        def connection() -> _Connection:
            return _Connection(config=config, server_state=server.server_state, app_state=server.lifespan.state)

        return TlsListener(
            [listening],
            door,
            connection,
            OnlyTls,
            tls_failed,
            seconds=HEAD_SECONDS,
            room=lambda: http_max() - self.connections,
        )

    @property
    def address(self) -> str:
        """ "host:port" as bound."""
        if self._socket is None:
            raise Unavailable("the HTTP server does not listen")
        return f"{self._host}:{self._socket.getsockname()[1]}"

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._server.server_state.connections)

    @property
    def refused(self) -> Mapping[str, int]:
        """Requests that were answered with an error, by code, since the start."""
        return self.door.refused

    def drain(self) -> None:
        """Refuse what comes from now on; what is under way goes on."""
        self.door.draining = True

    async def stop(self) -> None:
        """Close the listener; requests under way have STOP_SECONDS. Idempotent."""
        self.drain()
        listening, self._socket = self._socket, None
        if listening is not None:
            await self._server.shutdown([listening])
            if tasks := self._server.server_state.tasks:  # they were cancelled, and say so to who waits
                await asyncio.wait(tuple(tasks), timeout=LAST_SECONDS)


class _Connection(HttpToolsProtocol):
    """One connection, with bounds on what a peer may hold."""

    leaving: set[Callable[[], None]]
    """To be called when the connection ends."""
    _unanswered: Sequence[RequestResponseCycle] = ()
    _head: int = 0
    _fields: int = 0
    _between: int = 0
    _too_long: bool = False
    _begins_tls: bool = False
    _head_timer: asyncio.TimerHandle | None = None
    _linger: asyncio.TimerHandle | None = None
    _in_body: bool = False
    _passed_over: int = 0
    waiting_since: float | None = None
    """Since when no whole request of this connection is under way; None while one is."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        self.leaving = set()
        if len(self.connections) > http_max() and not self._make_room():
            transport.abort()
            return
        self.waiting_since = self.loop.time()
        self._await_head()

    def _make_room(self) -> bool:
        """End the connection that has sent no whole request for longest: slow ones, and idle ones, keep nobody out."""
        others = (one for one in self.connections if isinstance(one, _Connection) and one.waiting_since is not None)
        oldest = min(others, key=lambda one: one.waiting_since or 0.0, default=None)
        if oldest is None:
            return False
        oldest.waiting_since = None
        oldest.transport.abort()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._linger is not None:
            self._linger.cancel()
        super().connection_lost(exc)
        for cycle in self._unanswered:  # of a pipeline uvicorn tells the last one only, and answers into the void
            cycle.disconnected = True
        for leave in tuple(self.leaving):
            leave()

    def data_received(self, data: bytes) -> None:
        """Bytes of a head count until it is complete; those of a body are counted by who reads them."""
        self._between += len(data)
        self._begins_tls = data.startswith(HANDSHAKE)
        self._unset_keepalive_if_required()
        self._feed(data)
        if self.transport.is_closing():
            return
        if self._in_body and self.cycle.response_complete:
            self._pass_over(len(data))
            return
        if self._between > HEAD_BYTES_MAX + READ_BYTES_MAX:
            self.transport.abort()  # one trailer, or the size of one chunk, that does not end
            return
        self._head = self._head + len(data) if self._head_timer is not None else 0
        if self._head > HEAD_BYTES_MAX:
            self._too_long = True
            self.send_400_response("")
            return
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._head_timer is None and self.timeout_keep_alive_task is None:
            self._await_head()  # an empty line begins no request, and keeps no connection

    def _pass_over(self, size: int) -> None:
        """Of the body of a request that was refused before it was read: who still sends would hear of a reset
        connection otherwise, and not why it was refused."""
        self._passed_over += size
        if self._passed_over > BODY_BYTES_MAX:
            self.transport.abort()
        elif self._linger is None:
            self._linger = self.loop.call_later(BODY_SECONDS, self.transport.abort)

    def _feed(self, data: bytes) -> None:
        """To the parser. It takes a request that asks for another protocol (curl --http2, Java's client) to end with
        its head, and the body for that protocol's: it would be lost, or read as the next request. There is no other
        protocol here, so the same head is read again without the asking."""
        while not self.transport.is_closing():
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                method, version = self.parser.get_method(), self.parser.get_http_version().encode()
                if method == b"CONNECT":
                    self.send_400_response("")
                    return
                kept = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
                head = b"\r\n".join([method + b" " + self.url + b" HTTP/" + version, *kept, b"", b""])
                data = head + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                with contextlib.suppress(AttributeError):  # as uvicorn does: httptools before 0.6.3 has none
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            except httptools.HttpParserError:
                self.send_400_response("")
                return
            else:
                return

    def send_400_response(self, msg: str) -> None:
        """What cannot be read gets a problem document, too; behind an answer that has begun, the end."""
        begun = self.cycle is not None and self.cycle.response_started
        if self.transport.is_closing() or (begun and (self._in_body or not self.cycle.response_complete)):
            self.transport.abort()
            return
        text = "this is no request of HTTP/1.1 with a method and a target that there are"
        if self._too_long:
            text = f"the head of a request, with its trailers, may have at most {HEAD_BYTES_MAX} bytes"
        elif self._begins_tls:
            text = "this port does not speak TLS: ask by http://, or give the node the settings in [tls]"
            if is_news(self.client[0] if self.client else "?", "tls"):
                log.warning("HTTP connection from %s: the caller speaks TLS, and this node does not", self.client)
        self.transport.write(bad_request("malformed_request", text))
        self.transport.close()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the head; and of the trailers behind a chunked body, which are no part of it: a key, or an encoding, that
        comes there would count as said before, or not, by how the request was cut."""
        self._count(len(name) + len(value))
        if self._head_timer is not None:
            super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._between = 0
        self._fields += size
        if self._fields > HEAD_BYTES_MAX:
            self._too_long = True
            raise ValueError("the head is too long")  # the parser stops, and `send_400_response` says why

    def on_body(self, body: bytes) -> None:
        self._between = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # see `_feed`
        self._between, self._in_body, self._passed_over = 0, False, 0
        if self.cycle is not None and not self.cycle.response_complete:
            self.waiting_since = None
        elif self._linger is not None and not self.transport.is_closing():
            self._linger.cancel()
            self._linger = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer that nobody reads does not keep the connection, either."""
        self.waiting_since = None if self.pipeline else self.loop.time()
        super().on_response_complete()
        self._unanswered = [one for one in self._unanswered if not one.response_complete]
        if self.transport.is_closing() and self._linger is None:
            self._linger = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        """Idle for long: what was not read by then never will be."""
        self.transport.abort()

    def on_message_begin(self) -> None:
        self._fields = self._between = 0
        if self._head_timer is None:
            self._await_head()
        super().on_message_begin()
        self.scope["needle.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]  # ours
        self.scope["needle.leaving"] = self.leaving  # type: ignore[typeddict-unknown-key]  # ours

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # see `_feed`
        self._stop_timer()
        self._in_body = True
        if len(self.pipeline) >= PIPELINED_MAX:
            self.transport.abort()
            return
        super().on_headers_complete()
        self._unanswered = [*self._unanswered, self.cycle]
        self.scope["needle.cycle"] = self.cycle  # type: ignore[typeddict-unknown-key]  # ours

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _too_slow(self) -> None:
        self._head_timer = None
        if self.transport is not None and not self.transport.is_closing():
            self.transport.abort()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _quiet() -> None:
    """What uvicorn says of each odd request is in this node's own words already."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


_quiet()
