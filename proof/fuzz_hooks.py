"""What schemathesis is told of Needle's API: how a body of MessagePack is written, which it does not know by itself."""

from __future__ import annotations

from typing import Any

import msgspec
import schemathesis

LOW, HIGH = -(2**63), 2**64 - 1
"""Of whole numbers in MessagePack."""


@schemathesis.serializer("application/msgpack")
def packed(_: Any, value: Any) -> bytes:
    """The body of a request."""
    return msgspec.msgpack.encode(_writable(value))


def _writable(value: Any) -> Any:
    """The value, with what MessagePack cannot say as what is nearest: larger numbers, and text that is no Unicode."""
    if isinstance(value, dict):
        return {_writable(key): _writable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_writable(one) for one in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, int) and not LOW <= value <= HIGH:
        return max(LOW, min(HIGH, value))
    return value
