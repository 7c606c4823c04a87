"""Lists that no call may have are refused before they are decoded: that holds the whole process."""

from __future__ import annotations

import msgspec
import pytest

from needle.base.errors import ProtocolError
from needle.protocol import calls
from needle.protocol.calls import ELEMENTS_MAX, AddressBook, Freshness, GetCall, ScanCall

MANY = b"\xdd" + (1 << 30).to_bytes(4, "big")
MANY_PAIRS = b"\xdf" + (1 << 30).to_bytes(4, "big")


def _said(*values: object) -> bytes:
    return b"".join(map(msgspec.msgpack.encode, values))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (GetCall, b"\x95" + _said(1, "default") + MANY),
        (GetCall, b"\x97" + _said(1, "default", ["a"], False, Freshness(), 0) + MANY),
        (ScanCall, b"\x9a" + _said(1, "default", b"", "", 1, False, Freshness(), (0, 1), 0) + MANY),
        (AddressBook, b"\x91" + MANY_PAIRS),
    ],
)
def test_a_list_that_is_too_long_is_refused_by_its_length(kind: type, body: bytes) -> None:
    """None of its elements is there, and nobody misses them."""
    with pytest.raises(ProtocolError, match=f"length <= {ELEMENTS_MAX}"):
        calls.decode(body, kind)


def test_what_a_call_may_have_is_read() -> None:
    call = GetCall(1, "default", ["a"] * ELEMENTS_MAX, False, Freshness(), fields=("a.b",))
    assert calls.decode(calls.encode(call), GetCall) == call
