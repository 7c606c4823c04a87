"""Metadata as it is written: its size, its depth, its numbers. Pure."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from needle.base.config import Limits
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import InvalidArgument, invalid
from needle.base.plain import INT_MAX, INT_MIN

METADATA_DEPTH_MAX: Final = 64

_DIGITS_ALIKE: Final = bytes.maketrans(b"123456789", b"0" * 9)
_MANY_DIGITS: Final = b"0" * 19
_NOTHING: Final = b"{}"
_json: Final = msgspec.json.Decoder()
_NO_BRACKET: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")


def check_metadata(id_: str, metadata: bytes, limits: Limits) -> None:
    """JSON. Raises InvalidArgument. id_: what the error is to name."""
    if len(metadata) > limits.metadata_bytes_max:
        raise _bad_metadata(id_, f"{len(metadata)} bytes", f"at most {limits.metadata_bytes_max} bytes of JSON")
    if metadata == _NOTHING:
        return
    # The cheap bounds first: only text with many brackets can be deep.
    deep = len(metadata) > METADATA_DEPTH_MAX and metadata.count(b"[") + metadata.count(b"{") > METADATA_DEPTH_MAX
    if deep and depth(metadata) > METADATA_DEPTH_MAX:
        raise _bad_metadata(id_, metadata[:40], f"JSON nested at most {METADATA_DEPTH_MAX} deep")
    try:
        value = _json.decode(metadata)
        metadata.decode()
    except DECODE_ERRORS as error:
        raise _bad_metadata(id_, metadata[:60], f"JSON ({error})") from None
    if len(metadata) >= len(_MANY_DIGITS) and _MANY_DIGITS in metadata.translate(_DIGITS_ALIKE):
        _check_numbers(id_, value)


def _bad_metadata(id_: str, value: object, allowed: str) -> InvalidArgument:
    return invalid(f"metadata of {id_[:80]!r}", value, allowed)


def _check_numbers(id_: str, value: object) -> None:
    """A filter compares a larger integer as a float, a routing key does not: searches would pass over its document."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
        elif type(one) is int and not INT_MIN <= one <= INT_MAX:
            raise _bad_metadata(id_, one, "integers from -2^63 to 2^64 - 1")


def depth(text: bytes) -> int:
    """Deepest nesting of [ and { outside of strings. Nothing here is done a byte: metadata may be long."""
    # In a run of backslashes each escapes the next; once these pairs and the escaped quotes are gone, every quote left
    # begins or ends a string.
    plain = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(plain.split(b'"')[::2])
    brackets = np.frombuffer(outside.translate(None, delete=_NO_BRACKET), np.uint8)
    steps = np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1)
    return int(np.cumsum(steps).max(initial=0))
