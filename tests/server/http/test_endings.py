"""Requests that end before they are answered: their caller leaves, or the node stops; and what is not served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from harness.door import ask, connected, request, serving
from needle.base.errors import DiskFailed, NoQuorum
from needle.local.process_cluster import wait_for
from needle.server.http import listener
from needle.server.http.bodies import ExportEnd, Nothing
from needle.server.http.call import Call
from needle.server.http.routes import Route
from needle.server.process import main

EVENTS: dict[str, int] = {}


async def _waits(name: str) -> dict[str, Any]:
    EVENTS[name] = EVENTS.get(name, 0) + 1
    try:
        await asyncio.Event().wait()
        return {}
    except asyncio.CancelledError:
        EVENTS[name + " cancelled"] = 1
        raise


async def read(call: Call) -> dict[str, Any]:
    return await _waits("read")


async def write(call: Call) -> dict[str, Any]:
    return await _waits("write")


async def lines(call: Call) -> AsyncIterator[bytes]:
    async def pages() -> AsyncIterator[bytes]:
        while True:
            EVENTS["pages"] = EVENTS.get("pages", 0) + 1
            yield b"x" * 100_000
            await asyncio.sleep(0)

    return pages()


ROUTES = (
    Route("POST", "/v1/read", read, "", Nothing, dict, "reader"),
    Route("POST", "/v1/write", write, "", Nothing, dict, "writer"),
    Route("POST", "/v1/lines", lines, "", Nothing, None, "reader"),
)


@pytest.fixture(autouse=True)
def events() -> None:
    EVENTS.clear()


async def test_who_leaves_waits_for_no_answer_and_writes_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "STOP_SECONDS", 0.05)
    async with serving(ROUTES) as server:
        _, reading = await connected(server)
        reading.write(request("POST", "/v1/read", b"{}"))
        _, writing = await connected(server)
        writing.write(request("POST", "/v1/write", b"{}"))
        await wait_for(lambda: EVENTS == {"read": 1, "write": 1}, 30, "the requests")
        writing.transport.abort()
        await wait_for(lambda: len(server._server.server_state.connections) == 1, 30, "the end of the connection")
        reading.transport.abort()
        await wait_for(lambda: server.door._requests == 1, 30, "the end of the read")
        assert EVENTS == {"read": 1, "write": 1, "read cancelled": 1}


async def test_pages_are_not_read_for_who_has_left() -> None:
    async with serving(ROUTES) as server:
        reader, writer = await connected(server)
        writer.write(request("POST", "/v1/lines", b"{}"))
        await reader.readexactly(1000)
        writer.transport.abort()
        await wait_for(lambda: server.door._requests == 0, 30, "the end of the stream")
        seen = EVENTS["pages"]
        for _ in range(50):
            await asyncio.sleep(0)
        assert EVENTS["pages"] == seen
        assert server.door.memory.held == 0


async def test_an_answer_in_lines_that_breaks_off_says_why_in_its_last_line() -> None:
    async def breaks(call: Call) -> AsyncIterator[bytes]:
        async def pages() -> AsyncIterator[bytes]:
            yield b'{"id":"a"}\n'
            raise NoQuorum("there is no leader")

        return pages()

    async with serving([Route("POST", "/v1/breaks", breaks, "", Nothing, None, "reader")]) as server:
        status, answer = await ask(server, request("POST", "/v1/breaks", b"{}"))
    assert status == 200
    lines = [line for line in answer.splitlines() if line.startswith(b"{")]
    end = msgspec.json.decode(lines[1], type=ExportEnd)
    assert lines[0] == b'{"id":"a"}' and end.end == "broken_off" and end.problem is not None
    assert (end.problem.code, end.problem.detail, end.problem.retryable) == ("no_quorum", "there is no leader", True)


async def test_a_stopping_node_says_so_to_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "STOP_SECONDS", 0.05)
    async with serving(ROUTES) as server:
        data = [request("POST", path, b"{}") for path in ("/v1/read", "/v1/write")]
        asked = [asyncio.ensure_future(ask(server, one)) for one in data]
        await wait_for(lambda: EVENTS == {"read": 1, "write": 1}, 30, "the requests")
        await server.stop()
        (status, answer), (fate, unknown) = [await one for one in asked]
    assert (status, b'"code":"unavailable"' in answer) == (503, True), answer
    assert (fate, b'"code":"outcome_unknown"' in unknown) == (504, True), unknown


@pytest.mark.parametrize("failed", [False, True])
async def test_requests_end_before_the_node_that_answers_them(monkeypatch: pytest.MonkeyPatch, failed: bool) -> None:
    order: list[str] = []

    class Node:
        def __init__(self) -> None:
            self.failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def start(self) -> None: ...

        async def stop(self, *, hand_over: bool) -> None:
            order.append("node")

    class Http:
        def drain(self) -> None:
            order.append("drain")

        async def stop(self) -> None:
            order.append("http")

    class Metrics:
        def watch(self, node: Any, watch: Any) -> None: ...

        def watch_http(self, door: object) -> None: ...

    async def http_server(node: Any, metrics: Any) -> Any:
        asyncio.get_running_loop().call_soon(lambda: node.failed.set_result(DiskFailed("disk") if failed else None))
        return Http()

    monkeypatch.setattr(main, "NodeMetrics", Metrics)
    monkeypatch.setattr(main, "system_ports", lambda *a, **k: None)
    monkeypatch.setattr(main, "system_node", lambda *a: Node())
    monkeypatch.setattr(main, "http_server", http_server)
    config: Any = type("Config", (), {"node_id": "a"})()
    assert await main.run_node(config) == (main.EXIT_FAILED if failed else main.EXIT_OK)
    assert order == (["drain", "node", "http"] if failed else ["drain", "http", "node", "http"])


async def test_a_header_that_promises_more_than_is_served_is_refused() -> None:
    async def made(call: Call) -> str:
        return "done"

    admin = [Route("POST", "/v1/made", made, "", Nothing, str, "admin")]
    async with serving(admin) as server:
        status, answer = await ask(server, request("POST", "/v1/made", b"{}", "idempotency-key: 1"))
    assert (status, b'"field":"idempotency-key"' in answer) == (400, True)


async def test_a_key_is_refused_while_a_node_is_there_that_would_execute_a_repetition() -> None:
    async with serving(ROUTES) as server:  # its cluster is at the first version
        status, answer = await ask(server, request("POST", "/v1/write", b"{}", "idempotency-key: 1"))
    assert (status, b'"code":"cluster_too_old"' in answer) == (409, True)
    assert EVENTS == {}


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("gzip", True), ("br, gzip;q=0.5", True), ("gzip;q=0", False), ("gzip; q=0.000, br", False), ("", False)],
)
async def test_gzip_is_sent_to_who_takes_it(accepted: str, packed: bool) -> None:
    async def long(call: Call) -> str:
        return "x" * 5000

    async with serving([Route("POST", "/v1/long", long, "", Nothing, str, "reader")]) as server:
        _, answer = await ask(server, request("POST", "/v1/long", b"{}", f"accept-encoding: {accepted}"))
    assert (b"content-encoding: gzip" in answer) == packed
