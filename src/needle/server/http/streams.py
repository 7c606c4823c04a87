"""Answers a part at a time: lines of JSON, or events.

Invariant: the last line says whether all lines are there (bodies.ExportEnd). An answer without it has broken off, as
when the node ends: its reader cannot tell that from the end of the connection, for proxies end it in good order. Of
events there are always more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final, NamedTuple, Protocol, Self, TypeGuard

import msgspec

from needle.base.access import Identity
from needle.base.errors import NeedleError
from needle.server.http import bodies, events
from needle.server.http.memory import Share
from needle.server.http.message import Send
from needle.server.http.problems import Problem, problem_of
from needle.server.http.routes import NDJSON

_lines: Final = msgspec.json.Encoder()


class Parts(Protocol):
    """An answer that comes in parts, as an asynchronous generator."""

    def __aiter__(self) -> Self: ...
    async def __anext__(self) -> bytes: ...
    async def aclose(self) -> None: ...


def in_parts(answer: object) -> TypeGuard[Parts]:
    """Whether it comes so."""
    return isinstance(answer, AsyncIterator)


class Form(NamedTuple):
    """broken_off: what a reader is told who gets no more. unit: what is behind each document."""

    content_type: str
    broken_off: Callable[[Problem], bytes]
    unit: bytes


def _broken_off(problem: Problem) -> bytes:
    return _lines.encode_lines([bodies.ExportEnd(end="broken_off", problem=problem)])


LINES: Final = Form(NDJSON, _broken_off, b"\n")
EVENTS: Final = Form(events.TYPE, events.ending, b"\n\n")


async def stream(
    send: Send,
    parts: Parts,
    extra: list[tuple[bytes, bytes]],
    share: Share,
    request_id: str,
    caller: Identity,
    form: Form = LINES,
) -> NeedleError | None:
    """Send all parts, and why there are no more of them, if they broke off: what is returned. caller: whose
    rates pay for them, as they are then. The parts are closed, also if none was read, for their reader may leave
    before."""
    try:
        return await _stream(send, parts, extra, share, request_id, caller, form)
    finally:
        await parts.aclose()


async def _stream(
    send: Send,
    parts: Parts,
    extra: list[tuple[bytes, bytes]],
    share: Share,
    request_id: str,
    caller: Identity,
    form: Form,
) -> NeedleError | None:
    headers = [(b"content-type", form.content_type.encode()), (b"cache-control", b"no-store"), *extra]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    failure: NeedleError | None = None
    try:
        async for part in parts:
            share.settle(len(part))
            if (meter := caller.meter) is not None:
                meter.pay(part.count(form.unit), len(part))
            if part:
                await send({"type": "http.response.body", "body": part, "more_body": True})
    except NeedleError as error:
        failure = error
        end = form.broken_off(problem_of(error, request_id))
        await send({"type": "http.response.body", "body": end, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
    return failure
