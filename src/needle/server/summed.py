"""Small files that carry a checksum of themselves, in a place where releases that know of none pass over it. Pure.

A JSON object has it as its last member, a msgpack map as its last entry; it is of all bytes before it. Invariant: bytes
that have a checksum and another sum are damaged; those without one were written by an older release, or by hand.
"""

from __future__ import annotations

from typing import Final

import msgspec
import xxhash

_DIGITS: Final = 16
_JSON_KEY, _JSON_END = b',"checksum":"', b'"}'
_PACKED_KEY: Final = b"\xa8checksum\xb0"
"""A key of 8 characters, and the head of a text of 16."""


def _sum(data: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(data).encode()


def json_with_sum(value: msgspec.Struct) -> bytes:
    """An object with at least one member, as JSON with its checksum."""
    head = msgspec.json.encode(value)[:-1] + _JSON_KEY
    return head + _sum(head) + _JSON_END


def packed_with_sum(value: msgspec.Struct) -> bytes:
    """As `json_with_sum`, as a map of msgpack."""
    fields = {name: getattr(value, name) for name in value.__struct_fields__}
    head = msgspec.msgpack.encode({**fields, "checksum": "0" * _DIGITS})[:-_DIGITS]
    return head + _sum(head)


def json_is_whole(data: bytes) -> bool | None:
    """Whether JSON is what was written; None if it has no checksum."""
    text = data.rstrip()  # an editor's newline changes nothing
    head, rest = text[: -_DIGITS - len(_JSON_END)], text[-_DIGITS - len(_JSON_END) :]
    if not head.endswith(_JSON_KEY) or not rest.endswith(_JSON_END):
        return None
    return rest[:_DIGITS] == _sum(head)


def packed_is_whole(data: bytes) -> bool | None:
    """As `json_is_whole`."""
    head, found = data[:-_DIGITS], data[-_DIGITS:]
    return found == _sum(head) if head.endswith(_PACKED_KEY) else None
