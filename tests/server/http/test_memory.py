"""What requests may hold, from the first byte that comes to the last one that is sent; and who is kept out by it."""

from __future__ import annotations

import asyncio
import functools
import gzip
import struct
import zlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from harness.door import Idle, ask, connected, request, serving
from needle.base.access import everybody
from needle.base.decoding import DECODE_ERRORS
from needle.local.process_cluster import wait_for
from needle.protocol.calls import DocumentBatch
from needle.server.history import History
from needle.server.http import documents, listener, memory, message
from needle.server.http.bodies import Body
from needle.server.http.call import Call
from needle.server.http.listener import HttpServer
from needle.server.http.memory import Memory, Share, decoded_bytes
from needle.server.http.message import Headers, body_of
from needle.server.http.problems import HttpError
from needle.server.http.routes import Route

KIB = 1024
TEXT = b'{"value":"' + b"a" * (300 * KIB) + b'"}'


class Given(Body, frozen=True, kw_only=True):
    """Anything."""

    value: Any = None


async def take(call: Call) -> int:
    return len(call.body.value or "")


async def give(call: Call) -> str:
    return "x" * call.body.value


ROUTES = (
    Route("POST", "/v1/take", take, "", Given, int, "writer"),
    Route("POST", "/v1/give", give, "", Given, str, "writer"),
)


@pytest.fixture
async def node() -> Idle:
    return Idle()


@pytest.fixture
async def server(node: Idle, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HttpServer]:
    monkeypatch.setattr(memory, "BYTES_MAX", 1024 * KIB)
    async with serving(ROUTES, node) as made:
        yield made


async def test_who_announces_much_and_sends_nothing_keeps_nobody_out(server: HttpServer) -> None:
    writers = []
    for _ in range(8):
        _reader, writer = await connected(server)
        writer.write(request("POST", "/v1/take", b"", f"content-length: {16 << 20}"))
        writers.append(writer)
    await wait_for(lambda: server.door._requests == 8, 30, "the requests")
    assert server.door.memory.held == 0
    assert (await ask(server, request("POST", "/v1/take", TEXT)))[0] == 200
    for writer in writers:
        writer.transport.abort()
    await wait_for(lambda: server.door._requests == 0, 30, "the end of the requests")


async def test_a_body_in_chunks_counts_as_it_comes(server: HttpServer) -> None:
    _reader, writer = await connected(server)
    writer.write(request("POST", "/v1/take", b"", "transfer-encoding: chunked"))
    chunk = b"%x\r\n" % (100 * KIB) + b" " * (100 * KIB) + b"\r\n"
    writer.write(chunk * 9)
    await wait_for(lambda: server.door.memory.held == 900 * KIB, 30, "the chunks")
    status, answer = await ask(server, request("POST", "/v1/take", TEXT))
    assert (status, b'"code":"overloaded"' in answer) == (429, True)
    assert (await ask(server, request("POST", "/v1/take", b'{"value":"small"}')))[0] == 200
    writer.transport.abort()
    await wait_for(lambda: server.door.memory.held == 0, 30, "the end of the request")
    assert (await ask(server, request("POST", "/v1/take", TEXT)))[0] == 200


async def test_what_is_unpacked_is_counted_piece_by_piece(server: HttpServer, node: Idle) -> None:
    async def sent(body: bytes) -> tuple[int, bytes]:
        return await ask(server, request("POST", "/v1/take", body, "content-encoding: gzip"))

    unpacked: list[int] = []

    async def blocking(fn: Any, *arguments: Any) -> Any:
        made = fn(*arguments)
        unpacked.append(len(made))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node, "blocking", blocking)
        assert (await sent(gzip.compress(b'{"value":"' + b"a" * (20 << 20) + b'"}')))[0] == 429
    assert sum(unpacked) <= 2 << 20
    assert server.door.memory.held == 0
    assert (await sent(gzip.compress(TEXT)))[0] == 200
    status, answer = await sent(gzip.compress(b'{"value":') + gzip.compress(b'"ab"}'))
    assert (status, answer[-1:]) == (200, b"2")
    status, answer = await sent(gzip.compress(b'{"value":"ab"}') + b"more")
    assert (status, b"no gzip" in answer) == (400, True)
    status, answer = await sent(gzip.compress(TEXT)[:-9])
    assert (status, b"cut short" in answer) == (400, True)


def test_what_a_body_becomes_is_told_before_it_is_decoded() -> None:
    assert decoded_bytes(TEXT, False) < 2 * len(TEXT)
    numbers = b'{"vectors":[[' + b"0.12345678," * 1000 + b"1]]}"
    assert 32_000 < decoded_bytes(numbers, False) < 60_000
    for item, least in ((b"[],", 64), (b"{},", 200), (b"1,", 32)):
        data = b'{"value":[' + item * 1000 + b"1]}"
        assert decoded_bytes(data, False) > least * 1000
        with pytest.raises(HttpError, match="too many values"):
            decoded_bytes(data * 13_000, False)
    packed = msgspec.msgpack.encode({"vector": b"\x90" * (20 << 20)})
    assert decoded_bytes(packed, True) < 2 * len(packed)
    assert decoded_bytes(msgspec.msgpack.encode({"value": [[]] * 1000}), True) > 64_000
    for many in ([[]] * (6 << 20), [1] * (17 << 20)):
        with pytest.raises(HttpError, match="too many values"):
            decoded_bytes(msgspec.msgpack.encode({"value": many}), True)


@pytest.mark.parametrize("behind", [b"\xa5value\xc0", b"\x01\x02", b"", b"\xa1a\xc0\x00"])
def test_what_is_passed_over_in_a_packed_body_counts_as_well(behind: bytes) -> None:
    """A name that is there twice, or that is no text, an end that is missing or not the last: the decoder of a body
    makes of the first value what there is, before it comes to that."""
    for many in (1 << 20, 17 << 20):
        value = b"\xa5value\xdd" + struct.pack(">I", many) + b"\x80" * many
        try:
            counted = decoded_bytes(b"\x82" + value + behind, True)
        except (HttpError, *DECODE_ERRORS):
            continue  # refused, and nothing was made of it
        assert counted > 64 * many


async def test_empty_members_of_a_packed_body_cost_no_more_than_others() -> None:
    """Each was cut off the body by copying the rest."""
    copied = 0

    class Reader:
        def __init__(self, wbits: int) -> None:
            self._reader = zlib.decompressobj(wbits)

        def decompress(self, data: bytes, most: int) -> bytes:
            nonlocal copied
            made = self._reader.decompress(data, most)
            copied += len(self._reader.unused_data) + len(self._reader.unconsumed_tail)
            return made

        def __getattr__(self, name: str) -> Any:
            return getattr(self._reader, name)

    member, text = gzip.compress(b"", mtime=0), bytes(range(256)) * 9000
    body = member * 20_000 + gzip.compress(text) + member
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(message, "zlib", SimpleNamespace(decompressobj=Reader, error=zlib.error))
        headers = Headers("", False, False, "gzip", False, len(body), "", None)
        messages = [{"type": "http.request", "body": body}]

        async def receive() -> Any:
            return messages.pop()

        assert await body_of(receive, headers, 1 << 30, functools.partial(Idle.blocking, None), Share(Memory())) == text  # type: ignore[arg-type]
    assert copied < 200 * len(body)


async def test_a_body_with_too_many_values_is_refused(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "DECODED_BYTES_MAX", 1024 * KIB)
    body = b'{"value":[' + b"[]," * (30 * KIB) + b"[]]}"
    status, answer = await ask(server, request("POST", "/v1/take", body))
    assert (status, b"too many values" in answer) == (413, True)


async def test_large_bodies_are_decoded_one_at_a_time(
    server: HttpServer, node: Idle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("needle.server.http.app.LARGE_BYTES", 1)
    monkeypatch.setattr(memory, "BYTES_MAX", 1 << 30)
    most = now = 0

    async def blocking(fn: Any, *arguments: Any) -> Any:
        nonlocal most, now
        decodes = getattr(fn, "__name__", "") == "decode"
        now += decodes
        most = max(most, now)
        for _ in range(50):
            await asyncio.sleep(0)
        now -= decodes
        return fn(*arguments)

    monkeypatch.setattr(node, "blocking", blocking)
    answers = await asyncio.gather(*[ask(server, request("POST", "/v1/take", TEXT)) for _ in range(4)])
    assert [status for status, _ in answers] == [200] * 4
    assert most == 1


async def test_an_answer_counts_until_it_is_read(server: HttpServer) -> None:
    count = 20 << 20
    reader, writer = await connected(server, limit=KIB)
    writer.write(request("POST", "/v1/give", b'{"value":%d}' % count))
    await wait_for(lambda: server.door.memory.held == count + 2, 30, "the answer")
    assert (await ask(server, request("POST", "/v1/take", TEXT)))[0] == 429
    assert len(await reader.read()) > count
    assert server.door.memory.held == 0
    writer.close()


async def test_an_answer_is_counted_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BYTES_MAX", 1024 * KIB)
    made: list[Any] = []
    monkeypatch.setattr(documents, "_documents", lambda *a: made.append(a) or [])
    batch = DocumentBatch(
        ids=["a"] * 100, versions=[1] * 100, vectors=bytes(100 * KIB), metadata=[b""] * 100, applied_index=1
    )
    all_ = Memory()

    def call() -> Call:
        blocking = functools.partial(Idle.blocking, None)  # type: ignore[arg-type]
        return Call(None, None, {}, None, False, False, blocking, everybody(), Share(all_), False, None, History())  # type: ignore[arg-type]

    with pytest.raises(HttpError) as caught:
        await documents._beside(call(), batch, "numbers")
    assert (caught.value.status, made) == (429, [])
    await documents._beside(call(), batch, "float32")
    assert len(made) == 1


@pytest.mark.parametrize("trailers", [b"x: y\r\n" * 1000, b"x" * 6000, b"x: " + b"y" * 6000])
async def test_trailers_are_counted(server: HttpServer, trailers: bytes) -> None:
    _reader, writer = await connected(server)
    writer.write(request("POST", "/v1/take", b"", "transfer-encoding: chunked") + b"2\r\n{}\r\n0\r\n")
    with pytest.raises(ConnectionError):
        for _ in range(10_000):
            writer.write(trailers)
            await writer.drain()
    writer.transport.abort()


async def test_a_new_connection_takes_the_place_of_who_waits_longest(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "http_max", lambda: 4)
    begun = (b"", b"GET /livez HTTP/1.1\r\n", request("POST", "/v1/take", b"", "content-length: 9"), b"POST ")
    slow = []
    for data in begun:
        slow.append(await connected(server))
        slow[-1][1].write(data)
        await wait_for(lambda: len(server._server.server_state.connections) == len(slow), 30, "the connection")
    for at, path in enumerate(("/livez", "/readyz", "/metrics")):
        assert (await ask(server, request("GET", path)))[0] == 200, path
        if not at:
            with pytest.raises((ConnectionError, EOFError)):
                await asyncio.wait_for(slow[0][0].readexactly(1), 30)
    assert len(server._server.server_state.connections) <= 4
    for _reader, writer in slow:
        writer.transport.abort()
