"""Reading a request and writing an answer, as ASGI messages: bodies with bounds, media types, gzip.

Invariant: of a request no more than `body_bytes_max` is ever held, compressed or not; work that takes time by the byte
is done in threads.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, Final, NamedTuple

import msgspec

from needle.base.errors import InvalidArgument, invalid
from needle.base.request import as_trace
from needle.base.runtime import beside
from needle.server.http.browsers import browsed_host
from needle.server.http.call import BESIDE_BYTES
from needle.server.http.memory import Share
from needle.server.http.problems import HttpError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Blocking = Callable[..., Awaitable[Any]]

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
GZIP_BYTES_MIN: Final = 1024
PIECE_BYTES: Final = 1024 * 1024
GIVEN_BYTES: Final = 4096
"""What a reader of gzip is given at once."""
_MSGPACK_NAMES: Final = frozenset({MSGPACK, "application/x-msgpack", "application/vnd.msgpack"})
_JSON_NAMES: Final = frozenset({JSON, "text/json"})


class Gone(Exception):
    """The caller has left before it sent all of its request."""


class Headers(NamedTuple):
    """What a request says of itself. kind: its body's media type. packed: that is MessagePack; wants_packed: so should
    the answer be. coding: of the body. key: an API key; None if it says none. host: that a browser asks for. trace: the
    span that it is a part of, "" without one."""

    kind: str
    packed: bool
    wants_packed: bool
    coding: str
    wants_gzip: bool
    length: int
    request_id: str
    session: str | None
    key: str | None = None
    host: str | None = None
    trace: str = ""


def remote_of(scope: Scope) -> str:
    """Where a request comes from, "host:port"."""
    return ":".join(map(str, scope.get("client") or ()))


def told_of(scope: Scope) -> dict[str, str]:
    """Who sends a request, for the log."""
    return {"remote": remote_of(scope), "key": scope.get("needle.key", "")}


def last_event(scope: Scope) -> str:
    """Where a reader of events was who comes back; "" for one who does not."""
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"last-event-id"), "")


def headers_of(scope: Scope) -> Headers:
    """As they are; `check_body` judges them."""
    told = {name: value.decode("latin-1") for name, value in scope["headers"]}
    kind = told.get(b"content-type", "").partition(";")[0].strip().lower()
    coding = told.get(b"content-encoding", "identity").strip().lower()
    accepted = [part.partition(";")[0].strip().lower() for part in told.get(b"accept", "").split(",")]
    packed = kind in _MSGPACK_NAMES
    wants_packed = any(one in _MSGPACK_NAMES for one in accepted) or (packed and accepted in ([""], ["*/*"]))
    length = told.get(b"content-length", "")
    return Headers(
        kind=kind,
        packed=packed,
        wants_packed=wants_packed,
        coding=coding,
        wants_gzip=_gzip_is_accepted(told.get(b"accept-encoding", "")),
        length=int(length) if length.isascii() and length.isdigit() else 0,
        request_id=told.get(b"x-request-id", ""),
        session=told.get(b"needle-session"),
        key=_key(told),
        host=browsed_host(told),
        trace=as_trace(told.get(b"traceparent", "")),
    )


def _gzip_is_accepted(accepted: str) -> bool:
    """With a weight of 0 it is named to be refused."""
    for part in accepted.lower().split(","):
        coding, _, weight = part.replace(" ", "").partition(";")
        if coding in ("gzip", "x-gzip"):
            return not re.fullmatch(r"q=0(\.0*)?", weight)
    return False


def _key(told: dict[bytes, str]) -> str | None:
    """The API key. Who says more than one way is taken by `authorization`; another scheme than Bearer is no key of
    ours, and stands for itself, so that it is refused."""
    said = told.get(b"authorization")
    if said is None:
        return told.get(b"api-key")
    scheme, _, key = said.strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else said


def check_body(method: str, headers: Headers) -> None:
    """Whether a body of this kind is read. A page of another site can have a browser send a POST, but with none of
    these types: so a POST has to say what it has. Raises HttpError."""
    unsaid = not headers.kind and method != "POST"
    if not unsaid and headers.kind not in _JSON_NAMES and headers.kind not in _MSGPACK_NAMES:
        text = f"content-type {headers.kind[:80]!r}: say {JSON} or {MSGPACK}"
        raise HttpError(415, "unsupported_media_type", text, field="content-type")
    if headers.coding not in ("identity", "gzip"):
        text = f"content-encoding {headers.coding[:80]!r}: gzip is read here"
        raise HttpError(415, "unsupported_media_type", text, field="content-encoding")


def no_body(scope: Scope, headers: Headers) -> None:
    """For a request whose query says all: a condition in a body would be passed over, and the rest be done without it.
    Raises InvalidArgument."""
    if headers.length or any(name == b"transfer-encoding" for name, _ in scope["headers"]):
        raise invalid(
            "body", f"{headers.length or 'some'} bytes", f"none: what a {scope['method']} says stands in its query"
        )


async def body_of(receive: Receive, headers: Headers, bytes_max: int, blocking: Blocking, share: Share) -> bytes:
    """All of a request's body, unpacked. What it holds is counted as it comes, not as it is announced: who announces
    need not send. Raises HttpError, Gone."""
    if headers.length > bytes_max:
        raise too_large(bytes_max)
    parts: list[bytes] = []
    size, refusal = 0, None
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        part = message.get("body", b"")
        size += len(part)
        if size > bytes_max:
            raise too_large(bytes_max)
        if refusal is None:
            try:
                share.take(len(part))
                parts.append(part)
            except HttpError as error:  # the rest is read all the same, and dropped: who still sends hears no answer
                refusal = error
                parts.clear()
                share.settle(0)
        if not message.get("more_body", False):
            break
    if refusal is not None:
        raise refusal
    data = parts[0] if len(parts) == 1 else b"".join(parts) if size < BESIDE_BYTES else await blocking(b"".join, parts)
    del parts
    if headers.coding != "gzip":
        return data
    try:
        return await _gunzip(data, bytes_max, blocking, share)
    except zlib.error as error:
        raise InvalidArgument(f"the body is no gzip: {error}", field="body") from None


def too_large(bytes_max: int) -> HttpError:
    """The refusal."""
    return HttpError(413, "content_too_large", f"a request may have at most {bytes_max} bytes of body", field="body")


async def _gunzip(data: bytes, bytes_max: int, blocking: Blocking, share: Share) -> bytes:
    """Piece by piece, each counted before the next one. Several members, one behind the other, are one body."""
    reader, parts, size = _Gunzip(data), list[bytes](), 0
    while not reader.ended:
        parts.append(await blocking(reader.read))
        size += len(parts[-1])
        if size > bytes_max:
            raise too_large(bytes_max)
        share.take(len(parts[-1]))
    unpacked: bytes = await blocking(b"".join, parts)  # 64 MiB take 27 ms
    share.settle(len(unpacked))
    return unpacked


class _Gunzip:
    """Unpacks a body. A reader of zlib copies what it was given and did not use, so it is given little at a time: a
    body of empty members would be copied once for each of them otherwise, by the terabyte."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = memoryview(data), 0
        self._reader = zlib.decompressobj(wbits=31)
        self._rest: bytes | memoryview = b""
        self.ended = False

    def read(self) -> bytes:
        """The next PIECE_BYTES at most, of about as many. Raises zlib.error, InvalidArgument."""
        parts, room, stop = list[bytes](), PIECE_BYTES, self._at + PIECE_BYTES
        while room > 0 and self._at <= stop:
            given = self._rest or self._next()
            if self._reader.eof:
                if not given:
                    self.ended = True
                    break
                self._reader = zlib.decompressobj(wbits=31)
            parts.append(self._reader.decompress(given, room))
            if not given and not parts[-1] and not self._reader.eof:
                raise InvalidArgument("the body's gzip is cut short", field="body")
            self._rest = self._reader.unused_data if self._reader.eof else self._reader.unconsumed_tail
            room -= len(parts[-1])
        return b"".join(parts)

    def _next(self) -> memoryview:
        given = self._data[self._at : self._at + GIVEN_BYTES]
        self._at += len(given)
        return given


_json, _msgpack = msgspec.json.Encoder(), msgspec.msgpack.Encoder()


def _written(answer: Any, packed: bool, gzipped: bool) -> tuple[bytes, bool]:
    body = (_msgpack if packed else _json).encode(answer)
    if gzipped and len(body) >= GZIP_BYTES_MIN:
        return gzip.compress(body, 1, mtime=0), True
    return body, False


async def encoded(
    answer: Any, headers: Headers, extra: list[tuple[bytes, bytes]], *, size: int, blocking: Blocking, kind: str = ""
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The headers and the body of an answer. size: about how many bytes it has; large ones are encoded in a thread.
    kind: its media type, if it is not that of every answer."""
    packed = headers.wants_packed and not kind
    if size < BESIDE_BYTES and not headers.wants_gzip:
        body, gzipped = _written(answer, packed, False)
    else:
        body, gzipped = await blocking(_written, answer, packed, headers.wants_gzip)
    told = [
        (b"content-type", (kind or (MSGPACK if packed else JSON)).encode()),
        (b"content-length", str(len(body)).encode()),
        *extra,
    ]
    if gzipped:
        told += [(b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")]
    return told, body


async def given_back(held: list[Any], size: int, blocking: Blocking) -> None:
    """Hold nothing of this any more. size: about how many bytes it became: to give back what a large answer, or a large
    request, was made of, perhaps a million objects, takes a tenth of a second."""
    await beside(blocking if size >= BESIDE_BYTES else None, held.clear)


def is_there(scope: Scope) -> bool:
    """Whether all of the request's body has come, so that nothing is waited for. A clock for each request that needs
    none costs as much as routing it."""
    cycle = scope.get("needle.cycle")
    return cycle is not None and not cycle.more_body


def is_taken(scope: Scope) -> bool:
    """Whether the next part of an answer is off our hands at once: the connection takes it, or is ending, and then it
    is dropped. To be asked before each part: what is written into a connection before its end was heard of fails."""
    cycle = scope.get("needle.cycle")
    if cycle is None:
        return False
    if cycle.transport.is_closing():
        cycle.disconnected = True
    return cycle.disconnected or not cycle.flow.write_paused


def pieces_of(message: MutableMapping[str, Any]) -> Iterator[MutableMapping[str, Any]]:
    """A part of an answer, in pieces of PIECE_BYTES at most."""
    body = message.get("body", b"")
    if len(body) <= PIECE_BYTES:
        yield message
        return
    for at in range(0, len(body), PIECE_BYTES):
        end = at + PIECE_BYTES
        yield {**message, "body": body[at:end], "more_body": message.get("more_body", False) or end < len(body)}


async def write(send: Send, status: int, told: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Send an answer."""
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": body})
