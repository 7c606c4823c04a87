"""Session tokens: what a caller's session has seen, by shard, as text that can be handed to another process.

A request that names one by `needle-session` gets a newer one back; an eventual read with it sees what the session wrote
and never goes back. An empty one begins a session.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import invalid

TOKEN_BYTES_MAX: Final = 16 * 1024
_decoder = msgspec.msgpack.Decoder(tuple[int, dict[int, int]])


def encode(seen: dict[int, int], cluster: int) -> str:
    """seen: the log index of each shard. cluster: its founding, which tells it from every other one."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode((cluster, seen))).decode().rstrip("=")


def decode(token: str, cluster: int) -> dict[int, int]:
    """Raises InvalidArgument, also for the token of another cluster: what that has seen may never be here."""
    if not token:
        return {}
    try:
        if len(token) > TOKEN_BYTES_MAX or not token.isascii():
            raise ValueError("too long, or not ASCII")
        founding, seen = _decoder.decode(
            base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        )
        if any(not 0 <= number < 1 << 32 or not 0 <= index < 1 << 63 for number, index in seen.items()):
            raise ValueError("numbers out of range")
        if founding != cluster:
            raise ValueError("of another cluster")
    except (binascii.Error, ValueError, *DECODE_ERRORS):
        raise invalid(
            "needle-session", token[:40], "the token of an earlier answer of this cluster, or nothing"
        ) from None
    return seen
