"""Answers in lines of JSON, a part at a time.

Invariant: the last line says whether all lines are there (bodies.ExportEnd). An answer without it has broken off, as
when the node ends: its reader cannot tell that from the end of the connection, for proxies end it in good order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import msgspec

from needle.base.errors import NeedleError
from needle.base.rates import Meter
from needle.server.http import bodies
from needle.server.http.memory import Share
from needle.server.http.message import Send
from needle.server.http.problems import problem_of
from needle.server.http.routes import NDJSON

_lines: Final = msgspec.json.Encoder()


async def stream(
    send: Send,
    parts: AsyncIterator[bytes],
    extra: list[tuple[bytes, bytes]],
    share: Share,
    request_id: str,
    meter: Meter | None,
) -> NeedleError | None:
    """Send all parts, and why there are no more of them, if they broke off: what is returned. meter: pays for them."""
    headers = [(b"content-type", NDJSON.encode()), *extra]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    failure: NeedleError | None = None
    try:
        async for part in parts:
            share.settle(len(part))
            if meter is not None:
                meter.pay(part.count(b"\n"), len(part))
            if part:
                await send({"type": "http.response.body", "body": part, "more_body": True})
    except NeedleError as error:
        failure = error
        end = bodies.ExportEnd(end="broken_off", problem=problem_of(error, request_id))
        await send({"type": "http.response.body", "body": _lines.encode_lines([end]), "more_body": True})
    await send({"type": "http.response.body", "body": b""})
    return failure
