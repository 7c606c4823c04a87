"""A door of its own: the HTTP server on a node that does nothing, with routes of the test's choice."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any

from needle.routing.topology import Topology
from needle.server.access import Access
from needle.server.history import History
from needle.server.http import listener
from needle.server.http.listener import HttpServer
from needle.server.http.routes import Route
from needle.server.service.watched import Watch


class Idle:
    """A node: healthy, and a client of nothing."""

    content_type = "text/plain"
    caller = SimpleNamespace()
    shards = SimpleNamespace(topology=Topology)

    def __init__(self) -> None:
        self.rng = random.Random(1)
        self.access = Access(required=False)
        self.history = History()
        self.node_id = "idle"
        self.host = SimpleNamespace(engine=SimpleNamespace(groups={}), maintenance=False)
        self.service = SimpleNamespace(watch=Watch(self, 0.0, None))
        self.router = SimpleNamespace(in_session=lambda seen: SimpleNamespace(seen=seen))

    def alive(self) -> bool:
        return True

    def not_ready(self) -> str:
        return ""

    async def read(self) -> Callable[[], bytes]:
        return lambda: b"a_metric 1\n"

    def observe(self, what: str, seconds: float, error: object) -> None: ...

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def blocking(self, fn: Any, *arguments: Any) -> Any:
        return fn(*arguments)


@contextlib.asynccontextmanager
async def serving(routes: Sequence[Route], node: Any = None, hosts: Sequence[str] = ()) -> AsyncIterator[HttpServer]:
    """It listens."""
    node = node or Idle()
    before, listener.ROUTES = listener.ROUTES, tuple(routes)  # type: ignore[misc]
    try:
        server = HttpServer("127.0.0.1:1", node, node, node, hosts=hosts)
    finally:
        listener.ROUTES = before  # type: ignore[misc]
    server._port = 0
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def connected(server: HttpServer, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A new connection."""
    host, _, port = server.address.rpartition(":")
    return await asyncio.open_connection(host, int(port), **options)


def request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    """As it goes over the wire; the connection ends with the answer."""
    lines = [f"{method} {path} HTTP/1.1", "host: x", "connection: close", "content-type: application/json", *headers]
    if not any(line.startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def ask(server: HttpServer, data: bytes) -> tuple[int, bytes]:
    """Status and whole answer."""
    reader, writer = await connected(server)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return int(answer[9:12] or 0), answer
