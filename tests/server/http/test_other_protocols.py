"""Requests that ask for another protocol: there is none, and they are answered as if they did not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from harness.door import ask, connected, request, serving
from needle.server.http.bodies import Body
from needle.server.http.call import Call
from needle.server.http.listener import HttpServer
from needle.server.http.routes import Route


class Given(Body, frozen=True, kw_only=True):
    """Anything."""

    value: Any = None


async def take(call: Call) -> int:
    return len(call.body.value or "")


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    async with serving([Route("POST", "/v1/take", take, "", Given, int, "writer")]) as made:
        yield made


async def test_a_tunnel_is_refused(server: HttpServer) -> None:
    status, answer = await ask(
        server, b"CONNECT example.org:443 HTTP/1.1\r\nhost: x\r\n\r\nGET /livez HTTP/1.1\r\n\r\n"
    )
    assert (status, answer.count(b"HTTP/1.1")) == (400, 2)  # the second one stands in the text


@pytest.mark.parametrize("trailer", [b"authorization: Bearer wrong", b"content-encoding: gzip"])
async def test_trailers_are_no_headers(server: HttpServer, trailer: bytes) -> None:
    """They were when the whole request came at once."""
    one = request("POST", "/v1/take", b"2\r\n{}\r\n0\r\n" + trailer + b"\r\n\r\n", "transfer-encoding: chunked")
    again = one.replace(b"connection: close\r\n", b"", 1) + one
    reader, writer = await connected(server)
    writer.write(again)
    assert (await asyncio.wait_for(reader.read(), 30)).count(b"HTTP/1.1 200 OK") == 2
    writer.close()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 2])
async def test_who_asks_for_another_protocol_is_answered_in_this_one(
    server: HttpServer, chunked: bool, cut: int
) -> None:
    """As curl --http2 and Java's client do, with whatever they send: the body was lost, or read as a request."""
    asking = ("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQCAAAAAAIAAAAA")
    told = b"GET /livez HTTP/1.1\\r\\n" * (10_000 if cut == 1 else 1)
    text = b'{"value":"%b"}' % told
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(text), text) if chunked else text
    asking += ("transfer-encoding: chunked",) if chunked else ()
    one = request("POST", "/v1/take", body, *asking).replace(b"connection: close\r\n", b"")
    reader, writer = await connected(server)
    data = one + one + request("POST", "/v1/take", text)
    for at in range(0, len(data), 7 if cut == 2 else len(data)):
        writer.write(data[at : at + (7 if cut == 2 else len(data))])
        await asyncio.sleep(0)
    answers = await asyncio.wait_for(reader.read(), 30)
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.count(b"%d" % (21 * (10_000 if cut == 1 else 1))) >= 3
    writer.close()
