"""What is told of a request before its head, and to whom."""

from __future__ import annotations

import asyncio

import pytest

from needle.base.errors import ProtocolError
from needle.base.request import ID_MAX, Request, as_trace, current, over
from needle.rpc.codec import ABOUT_BYTES_MAX, about_head, request_head, split_about, split_request

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("size", [0, 3, 40_000])
@pytest.mark.parametrize(("id", "trace"), [("r 1", ""), ("", TRACE), ("x" * ID_MAX, TRACE)])
def test_what_is_told_comes_back_and_the_rest_is_the_request(id: str, trace: str, size: int) -> None:
    head = about_head(Request(id, trace))
    assert len(head) <= ABOUT_BYTES_MAX and head[0] == 0
    about, rest = split_about(head + request_head("search") + b"b" * size)
    method, body = split_request(rest)
    assert (about.id, about.trace, method, bytes(body)) == (id, trace, "search", b"b" * size)


@pytest.mark.parametrize(
    "payload", [b"\0", b"\0\5abc", b"\0\2\xc3\xa4", b"\0\3a\tb", b"\0" + bytes([255]) + b"a" * 255]
)
def test_what_cannot_be_read_is_a_violation(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        split_about(payload)


@pytest.mark.parametrize(
    "bad", ["", "01" + TRACE[2:], TRACE[:-1], TRACE.upper(), "00-" + "0" * 32 + TRACE[35:], TRACE + "\n"]
)
def test_what_is_no_traceparent_is_left_out(bad: str) -> None:
    assert as_trace(bad) == ""
    about, _ = split_about(bytes([0, len(bad) + 1]) + b"\n" + bad.encode())
    assert about.trace == ""


def told(recorder):
    """Answers `who` by the id of the request for which it is answered, and anything else as before."""
    answer = recorder.on_request

    def on_request(peer, method, body):
        if method == "who":
            return about.id.encode() if (about := current.get()) is not None else b"nobody"
        return answer(peer, method, body)

    recorder.on_request = on_request
    return recorder


async def test_what_waited_behind_a_request_is_not_taken_for_a_part_of_it(net, recorder, until):
    """It was begun where the one before had ended, and had its id in slow lines, and its span above its own."""
    server = await net.server(told(recorder), inflight_requests_max=1)
    client = net.client()
    await client.call(server.address, "echo", b"", 20.0)
    token = current.set(Request("first"))
    first = asyncio.create_task(client.call(server.address, "wait", b"", 20.0))
    current.reset(token)
    behind = [asyncio.create_task(client.call(server.address, "who", b"", 20.0)) for _ in range(3)]
    await until(lambda: recorder.entered)
    (connection,) = server.connections
    await until(lambda: len(connection._backlog) == 3)  # they came together with it
    recorder.gate.set()
    await first
    assert await asyncio.gather(*behind) == [b"nobody"] * 3


async def test_what_outlives_a_request_does_not_tell_of_it(net, recorder):
    server, client = await net.server(told(recorder)), net.client()
    request = Request("asked")
    token = current.set(request)
    assert await client.call(server.address, "who", b"", 20.0) == b"asked"
    over(request)
    assert await client.call(server.address, "who", b"", 20.0) == b"nobody"
    current.reset(token)
