"""What a caller is told whose bytes are no request: what no parser takes, and plain text where TLS is required."""

from __future__ import annotations

import asyncio
import logging
from typing import ClassVar, Final, cast

import msgspec

from needle.base.news import News
from needle.server.http.problems import CONTENT_TYPE, HttpError, problem_of

log = logging.getLogger("needle.server")

LAST_SECONDS: Final = 1.0
"""In which requests that are ended at a stop send their last answer."""
REFUSING_MAX: Final = 16
"""Callers without TLS, where it is required, that are told so at one time."""
_said = News()
"""What was logged of which host."""


class OnlyTls(asyncio.Protocol):
    """A plain connection where TLS is required: it is told so. At most REFUSING_MAX at a time; beyond it the one that
    was told first is cut off."""

    _told: ClassVar[dict[OnlyTls, None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._told) >= REFUSING_MAX:
            oldest = next(iter(self._told))
            del self._told[oldest]
            oldest._transport.abort()
        self._told[self] = None
        peer = transport.get_extra_info("peername")
        if is_news(peer[0] if peer else "?", "plain"):
            log.warning("plain HTTP from %s is refused: this port speaks TLS only", peer[0] if peer else "?")
        self._transport.write(bad_request("tls_failed", "this port speaks TLS only: ask by https://"))
        # What is sent behind it is read and dropped: closed at once, it would reset the connection before the answer.
        self._end = asyncio.get_running_loop().call_later(LAST_SECONDS, self._transport.abort)
        self._transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._told.pop(self, None)
        self._end.cancel()


def tls_failed(remote: str, why: str) -> None:
    """Say so in the log, once in a while for each host."""
    if is_news(remote.rpartition(":")[0], why):
        log.warning("HTTP connection from %s: %s", remote, why)


def is_news(host: str, why: str) -> bool:
    """Whether this was not said of the host a moment ago."""
    return _said.is_news((host, why), asyncio.get_running_loop().time())


def bad_request(code: str, text: str) -> bytes:
    """A whole answer, as a problem document, where there is no request to answer."""
    body = msgspec.json.encode(problem_of(HttpError(400, code, text), ""))
    head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: {CONTENT_TYPE}\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"connection: close\r\n\r\n" + body
