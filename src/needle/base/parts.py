"""Large messages as several pieces of bytes, so that nothing large is copied to send it.

Invariant: joined, the pieces are what `protocol.calls.encode` makes of the same value: receivers see no difference.
Structs are array-like; what is large in them are bytes, or lists of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

PART_BYTES_MIN = 64 * 1024
"""Bytes of at least this size are a piece of their own."""
LARGE_BYTES = 1024 * 1024
"""A message from this size on is worth it."""

_encoder = msgspec.msgpack.Encoder()


class Pieces(list[bytes]):
    """Bytes in pieces; inside of another message they are one value of bytes."""

    def size(self) -> int:
        """Bytes of all."""
        return sum(map(len, self))


Body = bytes | Pieces
"""What is sent: whole, or in pieces."""
Payload = bytes | memoryview
"""What arrived. What is large is a view, so that it is not copied; nobody writes to it any more."""


def as_bytes(payload: Payload) -> bytes:
    """What arrived, by itself: copied if it is a view. For what is small."""
    return payload if isinstance(payload, bytes) else bytes(payload)


def body_bytes(body: Body) -> int:
    """The size of a body."""
    return len(body) if isinstance(body, bytes) else body.size()


def whole(body: Body) -> bytes:
    """A body in one piece."""
    return body if isinstance(body, bytes) else b"".join(body)


def encode_parts(value: Any) -> Pieces:
    """A message in pieces. value: an array-like struct, a list, a tuple, or what those hold; structs that are no arrays
    are small."""
    gathered = _Gathered()
    gathered.add(value)
    return gathered.end()


def _bin_header(size: int) -> bytes:
    if size < 1 << 8:
        return b"\xc4" + size.to_bytes(1, "big")
    if size < 1 << 16:
        return b"\xc5" + size.to_bytes(2, "big")
    return b"\xc6" + size.to_bytes(4, "big")


def _array_header(count: int) -> bytes:
    if count < 16:
        return (0x90 | count).to_bytes(1, "big")
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


class _Gathered:
    """Gathers what is small in one buffer, until it is large itself."""

    def __init__(self) -> None:
        self._done = Pieces()
        self._buffer = bytearray()

    def add(self, value: Any) -> None:
        if isinstance(value, bytes) and len(value) >= PART_BYTES_MIN:
            self._buffer += _bin_header(len(value))
            self._cut()
            self._done.append(value)
        elif isinstance(value, Pieces):
            self._buffer += _bin_header(value.size())
            self._cut()
            self._done += value
        elif isinstance(value, msgspec.Struct) and value.__struct_config__.array_like:
            tag = value.__struct_config__.tag
            fields = [getattr(value, name) for name in value.__struct_fields__]
            self._add_each(fields if tag is None else [tag, *fields])
        elif isinstance(value, list | tuple):
            self._add_each(value)
        else:
            _encoder.encode_into(value, self._buffer, -1)

    def _add_each(self, values: Sequence[Any]) -> None:
        self._buffer += _array_header(len(values))
        for value in values:
            self.add(value)
            if len(self._buffer) >= PART_BYTES_MIN:
                self._cut()

    def _cut(self) -> None:
        if self._buffer:
            self._done.append(bytes(self._buffer))
            self._buffer.clear()

    def end(self) -> Pieces:
        self._cut()
        return self._done
