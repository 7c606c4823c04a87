"""What the door takes from callers who are slow, greedy, or speak no HTTP; and the probes."""

from __future__ import annotations

import asyncio
import gc
import gzip
import logging
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from harness import door
from harness.door import Idle, connected, serving
from needle.local.process_cluster import wait_for
from needle.rpc.tls import HANDSHAKE
from needle.server.http import listener
from needle.server.http.bodies import Nothing
from needle.server.http.call import Call
from needle.server.http.listener import HttpServer
from needle.server.http.routes import ROUTES, Route

SIZE = 1 << 20


class Node(Idle):
    """Healthy unless told otherwise; its metrics are as long as it is told."""

    why = ""
    text = b"a_metric 1\n"
    rendered = 0
    audit = None

    def alive(self) -> bool:
        return self.why != "stopped"

    def not_ready(self) -> str:
        return self.why

    async def read(self) -> Callable[[], bytes]:
        self.rendered += 1
        return lambda: self.text


@pytest.fixture
async def node() -> Node:
    return Node()


@pytest.fixture
async def server(node: Node) -> AsyncIterator[HttpServer]:
    async with serving(ROUTES, node) as made:
        yield made


async def ask(server: HttpServer, request: bytes) -> bytes:
    return (await door.ask(server, request))[1]


END = b" HTTP/1.1\r\nconnection: close\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status", "body"),
    [
        (b"GET /metrics" + END + b"\r\n", 200, b"a_metric 1\n"),
        (b"HEAD /metrics" + END + b"\r\n", 200, b""),
        (b"GET /readyz?x=1" + END + b"\r\n", 200, b"ok\n"),
        (b"GET /other" + END + b"\r\n", 404, b"/openapi.json"),
        (b"GET /%ff%00" + END + b"\r\n", 400, b"UTF-8"),
        (b"DELETE /metrics" + END + b"\r\n", 405, b"method_not_allowed"),
        (b"POST /v1/collections" + END + b"\r\n", 415, b"content-type"),
        (b"POST /v1/collections" + END + b"content-type: text/plain\r\n\r\n", 415, b"application/json"),
        (b"PUT /v1/nodes/a/drain" + END + b"content-encoding: br\r\n\r\n", 415, b"gzip"),
        (b"GET /v1/nodes?timeout=1&timeout=2" + END + b"\r\n", 400, b"given twice"),
        (b"GET /v1/collections?sizes=yes" + END + b"\r\n", 400, b'"field":"sizes"'),
        (b"PUT /v1/nodes/a/drain?timeout=1" + END + b"\r\n", 400, b"stands in its body"),
        (b"GET /v1/nodes?limit=1" + END + b"\r\n", 400, b"timeout"),
        (b"GET /v1/nodes?timeout=-1" + END + b"\r\n", 400, b"timeout"),
        (b"nonsense\r\n\r\n", 400, b"malformed_request"),
        (b"BREW /v1/nodes" + END + b"\r\n", 400, b"malformed_request"),
        (b"GET /metrics" + END + b"x-a: " + b"y" * 40_000 + b"\r\n\r\n", 400, b"at most"),
        (b"GET /" + b"x" * 40_000, 400, b"at most"),
    ],
    ids=lambda value: value[:40].decode("ascii", "replace") if isinstance(value, bytes) else None,
)
async def test_requests(server: HttpServer, request_bytes: bytes, status: int, body: bytes) -> None:
    answer = await ask(server, request_bytes)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert body in answer.partition(b"\r\n\r\n")[2]


async def test_what_is_no_request_is_told_so_behind_others(server: HttpServer) -> None:
    reader, writer = await connected(server)
    writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b"ok\n"), 30)
    writer.write(b"nonsense\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_the_head_is_counted_however_it_is_cut(server: HttpServer) -> None:
    _reader, writer = await connected(server)
    writer.write(b"GET /metrics HTTP/1.1\r\n")
    with pytest.raises(ConnectionError):
        for n in range(100_000):
            writer.write(b"x-%d: %s\r\n" % (n, b"y" * 1000))
            await writer.drain()
    assert n < 20_000
    writer.transport.abort()


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(server: HttpServer) -> None:
    head = b"POST /v1/collections HTTP/1.1\r\ncontent-type: application/json\r\n"
    answer = await ask(server, head + b"content-length: 99999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"field":"body"' in answer


async def test_a_chunked_body_is_counted_as_it_comes(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("needle.server.http.app.BODY_BYTES_MAX", 1000)
    head = b"POST /v1/collections HTTP/1.1\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = await ask(server, head + (b"400\r\n" + b" " * 1024 + b"\r\n") * 2)
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_small_gzip_that_grows_is_refused(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("needle.server.http.app.BODY_BYTES_MAX", 1 << 20)
    bomb = gzip.compress(b" " * (10 << 20))
    head = b"POST /v1/collections" + END + b"content-type: application/json\r\ncontent-encoding: gzip\r\n"
    answer = await ask(server, head + b"content-length: %d\r\n\r\n" % len(bomb) + bomb)
    assert answer.startswith(b"HTTP/1.1 413 ")
    answer = await ask(server, head + b"content-length: %d\r\n\r\n" % (len(bomb) - 9) + bomb[:-9])
    assert b"cut short" in answer or answer.startswith(b"HTTP/1.1 413 ")
    answer = await ask(server, head + b"content-length: 3\r\n\r\nabc")
    assert b"no gzip" in answer


async def test_who_sends_too_slowly_is_gone(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.05)
    for begun in (b"", b"GET /metrics HTTP/1.1\r\nhost", b"\r\n"):
        reader, writer = await connected(server)
        writer.write(begun)
        with pytest.raises((ConnectionError, EOFError)):
            assert await asyncio.wait_for(reader.readexactly(1), 30)
        writer.close()
    monkeypatch.setattr("needle.server.http.app.BODY_SECONDS", 0.05)
    head = b"POST /v1/collections HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    answer = await ask(server, head)
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_nobody_is_answered_who_does_not_read(server: HttpServer, node: Node) -> None:
    """Else some kilobytes of requests are answered with megabytes that stay in memory."""
    node.text = b"x" * SIZE
    reader, writer = await connected(server, limit=1024)
    count = 60
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n" * count)
    seen = -1
    while node.rendered != seen:  # as long as it goes on
        seen = node.rendered
        for _ in range(200):
            await asyncio.sleep(0)
    held = sum(one.transport.get_write_buffer_size() for one in server._server.server_state.connections)  # type: ignore[union-attr]
    assert 0 < held < 2 * SIZE
    assert node.rendered < count
    got = 0
    while got < count * SIZE:  # who reads again gets the rest
        got += len(await reader.read(1 << 20))
    assert node.rendered == count
    writer.transport.abort()


async def test_an_answer_that_is_never_read_is_given_up(
    server: HttpServer, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("needle.server.http.app.SEND_SECONDS", 0.05)
    node.text = b"x" * (16 * SIZE)
    _reader, writer = await connected(server, limit=1024)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    await wait_for(lambda: bool(node.rendered), 30, "the request")
    await wait_for(lambda: not server.connections, 30, "the end of the connection")
    assert server.door.memory.held == 0
    assert server.door._requests == 0
    writer.transport.abort()


async def test_an_idle_connection_ends(server: HttpServer) -> None:
    reader, writer = await connected(server)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    await reader.readuntil(b"a_metric 1\n")
    (one,) = server._server.server_state.connections
    assert one.timeout_keep_alive_task is not None
    one.timeout_keep_alive_handler()
    await wait_for(lambda: not server.connections, 30, "the end of the connection")
    with pytest.raises(EOFError):
        await reader.readexactly(1)
    writer.close()


async def test_a_pipeline_without_end_is_cut(server: HttpServer) -> None:
    answer = await ask(server, b"GET /metrics HTTP/1.1\r\n\r\n" * 5000)
    assert answer.count(b"a_metric") < 1000


@pytest.mark.parametrize("path", [b"/metrics", b"/v1/read"])
def test_who_leaves_a_pipeline_unread_is_no_bug_of_the_node(path: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Anybody could fill the log with tracebacks: a few bytes for each. Nodes run on uvloop, which raises for what is
    written into a connection that has ended."""

    class Slow(Node):
        async def read(self) -> Callable[[], bytes]:
            self.rendered += 1
            await asyncio.sleep(0.005)
            return lambda: self.text

    async def leave() -> None:
        node = Slow()

        async def read(_: Call) -> dict[str, int]:
            await node.read()
            return {}

        async with serving([Route("GET", "/v1/read", read, "", Nothing, dict, "reader")], node) as server:
            for _ in range(5):
                before = node.rendered
                _, writer = await connected(server)
                writer.write(b"GET " + path + b" HTTP/1.1\r\n\r\n" * 20)
                await wait_for(lambda seen=before: node.rendered > seen, 30, "the first request")
                writer.close()
                await wait_for(lambda: not server.connections, 30, "the end of the connection")
            await wait_for(lambda: not server._server.server_state.tasks, 30, "the end of the requests")

    gc.collect()  # what a test before this one has left is not of this one
    caplog.clear()
    uvloop.run(leave())
    gc.collect()  # a task whose error nobody has asked for tells it when it goes
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_that_a_caller_speaks_tls_is_said_once(server: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert b"this port does not speak TLS" in await ask(
            server, HANDSHAKE + b"\x03\x01\x02\x00\x01\x00" + b"\0" * 600
        )
    assert caplog.text.count("the caller speaks TLS") == 1


async def test_what_is_too_much_at_once_is_refused_by_name(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("needle.server.http.app.REQUESTS_MAX", 0)
    refused = await ask(server, b"GET /v1/nodes" + END + b"\r\n")
    assert refused.startswith(b"HTTP/1.1 429 ")
    for path in (b"/livez", b"/readyz", b"/metrics"):
        assert (await ask(server, b"GET " + path + END + b"\r\n")).startswith(b"HTTP/1.1 200 ")
    assert b"retry-after: 1" in refused
    monkeypatch.setattr(listener, "http_max", lambda: 0)
    reader, _writer = await connected(server)
    with pytest.raises((ConnectionError, EOFError)):
        await asyncio.wait_for(reader.readexactly(1), 30)


async def test_a_request_id_comes_back_and_one_is_made(server: HttpServer) -> None:
    assert b"x-request-id: mine-7\r\n" in await ask(server, b"GET /other" + END + b"x-request-id: mine-7\r\n\r\n")
    answer = await ask(server, b"GET /other" + END + b"x-request-id: " + b"a" * 500 + b"\r\n\r\n")
    assert b"aaaa" not in answer
    assert b"x-request-id: " in answer


async def test_probes_tell_why(server: HttpServer, node: Node) -> None:
    async def status(path: bytes) -> bytes:
        answer = await ask(server, b"GET " + path + END + b"\r\n")
        return answer[9:12] + b" " + answer.partition(b"\r\n\r\n")[2]

    assert await status(b"/readyz") == b"200 ok\n"
    node.why = "in maintenance"
    assert await status(b"/readyz") == b"503 not ready: in maintenance\n"
    assert await status(b"/livez") == b"200 ok\n"
    node.why = "stopped"
    assert await status(b"/livez") == b"503 stopped\n"
    node.why = ""
    server.drain()
    assert await status(b"/readyz") == b"503 not ready: stopping\n"
    assert (await status(b"/v1/nodes")).startswith(b"503 ")
    assert await status(b"/livez") == b"200 ok\n"


async def test_without_the_api_there_are_only_metrics_and_probes(node: Node) -> None:
    server = HttpServer("127.0.0.1:1", node, node, node, api=False)
    server._port = 0
    await server.start()
    for path, status in ((b"/metrics", 200), (b"/readyz", 200), (b"/v1/nodes", 404), (b"/docs", 404)):
        assert (await ask(server, b"GET " + path + END + b"\r\n")).startswith(b"HTTP/1.1 %d " % status)
    await server.stop()


@pytest.mark.parametrize(
    ("kind", "size", "status"), [("text/plain", 3 * SIZE, 415), ("application/json", 20 * SIZE, 413)]
)
async def test_who_sends_a_large_body_hears_why_it_is_refused(
    server: HttpServer, kind: str, size: int, status: int
) -> None:
    """Also who sends all of it first, as most clients do: the connection was reset under it. And it goes on."""
    reader, writer = await connected(server)
    head = f"POST /v1/collections HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {size}\r\n\r\n"
    writer.write(head.encode())
    for _ in range(size // SIZE):
        writer.write(bytes(SIZE))
        await writer.drain()
    writer.write(b"GET /livez" + END + b"\r\n")
    answer = await asyncio.wait_for(reader.read(), 30)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 2 and answer.endswith(b"ok\n")
    writer.close()


@pytest.mark.parametrize("bound", ["BODY_BYTES_MAX", "BODY_SECONDS"])
async def test_what_is_passed_over_of_a_body_has_a_bound(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(listener, bound, SIZE if bound == "BODY_BYTES_MAX" else 0.2)
    _reader, writer = await connected(server)
    head = b"POST /v1/collections HTTP/1.1\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"
    writer.write(head + b"%x\r\n" % (1 << 40))
    piece = bytes(64 * 1024 if bound == "BODY_BYTES_MAX" else 1)
    with pytest.raises(ConnectionError):
        for _ in range(1000):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
    writer.transport.abort()
