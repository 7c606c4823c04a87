"""HTTP on the node's own event loop: GET /metrics, /livez, /readyz. Parsed by httptools; nothing else is served.

/livez: 200 while the node does its work; 503 when a restart would help. /readyz: 200 when it has caught up and knows a
leader; 503 with the reason otherwise, also in maintenance and while stopping.
Invariant: a connection gets one answer a turn of the loop, and none while it does not read those that it got: whoever
asks without end, or never reads, takes neither the loop nor the memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import NamedTuple, Protocol, cast

import httptools

from needle.base.config import parse_address
from needle.base.errors import Unavailable
from needle.server.process.descriptors import http_max

log = logging.getLogger("needle.server")

REQUEST_BYTES_MAX = 16 * 1024
IDLE_SECONDS = 30.0
TEXT = "text/plain; charset=utf-8"
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class Health(Protocol):
    """The node, as its probes see it."""

    def alive(self) -> bool: ...
    def not_ready(self) -> str: ...


class Exposition(Protocol):
    """The metrics, as text."""

    content_type: str

    def render(self) -> bytes: ...


class HttpServer:
    """Listens on `address` ("host:port")."""

    def __init__(self, address: str, health: Health, metrics: Exposition) -> None:
        self.host, self._port = parse_address("http_address", address)
        self.health = health
        self.metrics = metrics
        self.draining = False
        self.connections: dict[HttpConnection, None] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises Unavailable when the address cannot be bound."""
        try:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: HttpConnection(self), self.host, self._port)
        except OSError as error:
            raise Unavailable(f"cannot listen on {self.host}:{self._port} for HTTP: {error}") from error

    @property
    def address(self) -> str:
        """ "host:port" as bound."""
        if self._server is None:
            raise Unavailable("the HTTP server does not listen")
        return f"{self.host}:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close the listener and all connections. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for connection in list(self.connections):
            connection.close()
        if server is not None:
            await server.wait_closed()

    def answer(self, method: str, path: str) -> tuple[int, str, bytes]:
        """(status, content type, body) of a request."""
        known = {"/metrics": self._metrics, "/livez": self._live, "/readyz": self._ready}.get(path)
        if known is None:
            return 404, TEXT, b"/metrics, /livez and /readyz are served here\n"
        if method not in ("GET", "HEAD"):
            return 405, TEXT, b"only GET is allowed\n"
        return known()

    def _metrics(self) -> tuple[int, str, bytes]:
        return 200, self.metrics.content_type, self.metrics.render()

    def _live(self) -> tuple[int, str, bytes]:
        return (200, TEXT, b"ok\n") if self.health.alive() else (503, TEXT, b"stopped\n")

    def _ready(self) -> tuple[int, str, bytes]:
        why = "stopping" if self.draining else self.health.not_ready()
        return (503, TEXT, f"not ready: {why}\n".encode()) if why else (200, TEXT, b"ok\n")


class _Asked(NamedTuple):
    """A request that waits for its answer. refused: why it is none, "" otherwise."""

    method: str
    path: str
    keep: bool
    refused: str = ""


class HttpConnection(asyncio.Protocol):
    """One connection; answers requests in order, keeps alive."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._path = ""
        self._received = 0
        self._timer: asyncio.TimerHandle | None = None
        self._asked: deque[_Asked] = deque()
        self._paused = self._scheduled = self._refused = False

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def _abort(self) -> None:
        """Close it without waiting for a peer that does not read."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol --------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._server.connections) >= http_max():
            self._abort()
            return
        self._server.connections[self] = None
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.pop(self, None)
        self._asked.clear()
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._received += len(data)
        if self._received > REQUEST_BYTES_MAX:
            self._refuse(f"a request may have at most {REQUEST_BYTES_MAX} bytes")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse("upgrades are not served")
        except httptools.HttpParserError as error:
            self._refuse(str(error))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._go_on()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._abort)

    # --- httptools ---------------------------------------------------------------------------------------------------
    def on_url(self, url: bytes) -> None:
        self._path += url.decode("ascii", errors="replace")

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode("ascii", errors="replace")
        path, self._path, self._received = self._path.partition("?")[0], "", 0
        self._ask(_Asked(method, path, self._parser.should_keep_alive()))

    def _refuse(self, why: str) -> None:
        self._refused = True
        self._ask(_Asked("", "", keep=False, refused=why))

    # --- answers -----------------------------------------------------------------------------------------------------
    def _ask(self, asked: _Asked) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if not self._asked:
            transport.pause_reading()
        self._asked.append(asked)
        self._go_on()

    def _go_on(self) -> None:
        if self._asked and not self._paused and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._answer)

    def _answer(self) -> None:
        """The oldest request's, in a turn of its own."""
        self._scheduled = False
        transport = self._transport
        if not self._asked or self._paused or transport is None or transport.is_closing():
            return
        asked = self._asked.popleft()
        if asked.refused:
            self._write(400, TEXT, f"{asked.refused}\n".encode(), head=False, keep=False)
        else:
            status, kind, body = self._server.answer(asked.method, asked.path)
            self._write(status, kind, body, head=asked.method == "HEAD", keep=asked.keep)
        self._wait()
        if self._asked:
            self._go_on()
        elif not transport.is_closing():
            transport.resume_reading()

    def _write(self, status: int, kind: str, body: bytes, *, head: bool, keep: bool) -> None:
        if self._transport is None:
            return
        lines = (
            f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
            f"connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        self._transport.write(lines.encode("ascii") + (b"" if head else body))
        if not keep:
            self._transport.close()
