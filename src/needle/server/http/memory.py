"""What requests hold in memory: bytes of bodies as they came, of what they become when decoded, of answers until they
are sent.

Invariant: all requests together hold at most `BYTES_MAX`, counted before it is allocated; what is more is refused by
name. A small request is never refused for what others hold: so many of these are bounded by their number.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from needle.server.http.problems import HttpError

BYTES_MAX: Final = 768 * 1024 * 1024
SMALL_BYTES: Final = 64 * 1024
DECODED_BYTES_MAX: Final = 384 * 1024 * 1024
"""What one body may become."""
PACKED_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of MessagePack besides binary and text: one byte of it can be an object."""

_WINDOW: Final = 1024 * 1024
_SLOT: Final = 32
_LIST: Final = 64
_OBJECT: Final = 200
_CONTAINERS: Final = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
_OTHERS: Final = bytes(byte for byte in range(256) if byte not in _CONTAINERS)
_PLAIN: Final = re.compile(rb"[\xa0-\xbf\xc4-\xc6\xd9-\xdb]", re.DOTALL)
_fields: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])


def counted(data: bytes, byte: bytes) -> int:
    """`data.count(byte)`, but others may run meanwhile."""
    return sum(data.count(byte, at, at + _WINDOW) for at in range(0, len(data), _WINDOW))


class Memory:
    """See the module. held: bytes."""

    def __init__(self) -> None:
        self.held = 0


class Share:
    """What one request holds."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.held = 0

    def take(self, count: int) -> None:
        """It is to hold so many more. Raises HttpError."""
        mine, all_ = self.held + count, self._memory.held + count
        if mine > SMALL_BYTES and all_ > BYTES_MAX:
            text = f"requests under way on this node hold {self._memory.held} of {BYTES_MAX} bytes; this one needs more"
            raise HttpError(429, "overloaded", text)
        self.held, self._memory.held = mine, all_

    def settle(self, count: int) -> None:
        """It holds so many and nothing else, which is no more than it did."""
        self._memory.held += count - self.held
        self.held = count


def decoded_bytes(data: bytes, packed: bool) -> int:
    """About how many bytes of objects are in a body, and rather more. Raises HttpError for what is too many, and
    DECODE_ERRORS for some of what no decoder reads."""
    if packed:
        size = _packed_bytes(data)
    else:
        size = len(data)
        for byte, bytes_each in ((b",", _SLOT), (b"[", _LIST), (b"{", _OBJECT)):
            size += bytes_each * counted(data, byte)
    if size > DECODED_BYTES_MAX:
        raise _too_many()
    return size


def _packed_bytes(data: bytes) -> int:
    """Raises DECODE_ERRORS for what is no map of texts, or ends early or late: decoded before that is noticed, it would
    become as much as what is right."""
    fields = _fields.decode(data)
    size = len(data)
    seen = sum(len(name.encode()) + len(memoryview(raw)) for name, raw in fields.items())
    # Of a name that is there twice the last value counts, but each is decoded: what is not seen here may be anything.
    size += _become(len(data) - seen, len(data) - seen)
    for raw in fields.values():
        value = bytes(raw)
        if not _PLAIN.match(value):
            size += _become(len(value), len(value.translate(None, _OTHERS)))
    return size


def _become(count: int, containers: int) -> int:
    """What so many bytes of MessagePack become, of which so many may begin a list or an object. Raises HttpError."""
    if count > PACKED_BYTES_MAX:
        raise _too_many()
    return 8 * count + _LIST * containers


def _too_many() -> HttpError:
    text = "the body has too many values; send it in several requests, and vectors as binary"
    return HttpError(413, "content_too_large", text, field="body")
