"""The place that a change feed has reached, as text that any client may go on from, at any node.

Invariant: what was cut short, changed, or is of another cluster or collection is refused by name. Pure.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Set
from typing import Final

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import InvalidArgument, shown
from needle.protocol.change_calls import Position

VERSION: Final = 1


class Token(msgspec.Struct, frozen=True, array_like=True):
    """founding: of the cluster. positions: by shard; a shard that is not named was added since, and is read from its
    first change on. whole: False while all documents are told: those up to the id `after` were; None: the feed begins
    again, with all documents that there are then."""

    version: int
    founding: int
    collection: str
    collection_id: int
    positions: dict[int, Position]
    whole: bool = True
    after: str | None = None


def encode(token: Token) -> str:
    """The token as text of letters, digits, - and _."""
    body = msgspec.msgpack.encode(token)
    return base64.urlsafe_b64encode(binascii.crc32(body).to_bytes(4, "big") + body).decode().rstrip("=")


def decode(text: object) -> Token:
    """What a text says. Raises InvalidArgument for what is none."""
    try:
        if not isinstance(text, str):
            raise ValueError
        data = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        if binascii.crc32(data[4:]).to_bytes(4, "big") != data[:4]:
            raise ValueError
        version = msgspec.msgpack.decode(data[4:], type=list[object])[0]
        if version != VERSION:
            raise InvalidArgument(f"since = {shown(text)} was made by another release of the client", field="since")
        return msgspec.msgpack.decode(data[4:], type=Token)
    except (ValueError, IndexError, *DECODE_ERRORS):  # binascii.Error and UnicodeEncodeError are ValueErrors
        raise InvalidArgument(
            f'since = {shown(text)} is none: "now", "start", or a whole text that a feed gave as its `token`',
            field="since",
        ) from None


def check(token: Token, collection: str, collection_id: int, founding: int) -> None:
    """Raises InvalidArgument unless the token is of this collection of this cluster."""
    if token.founding != founding:
        raise InvalidArgument("since is of another cluster, or of this one before it was made again", field="since")
    if token.collection_id != collection_id:
        raise InvalidArgument(
            f"since is of another collection than {collection[:80]!r} is now: it was dropped and made again, or its "
            'alias got another meaning; begin with since = "start"',
            field="since",
        )


def check_shards(token: Token, shards: Set[int]) -> None:
    """Raises InvalidArgument for a token that names others than these, all that the cluster has or had: each would be
    asked for changes for as long as the feed is open."""
    others = sorted(token.positions.keys() - shards)
    if others:
        raise InvalidArgument(
            f"since names shards that this cluster never had ({', '.join(map(str, others[:3]))}), so no feed gave it",
            field="since",
        )


def check_reached(token: Token, ends: Mapping[int, Position]) -> None:
    """Raises InvalidArgument for a token of a place that a shard has not come to: nothing would be told until it has.
    ends: by shard, where its changes end, as its leader says after the token was given."""
    ahead = [shard for shard, place in token.positions.items() if shard in ends and place > ends[shard]]
    if ahead:
        shard = min(ahead)
        entry, offset = token.positions[shard]
        raise InvalidArgument(
            f"since is behind changes of entry {entry if offset else entry - 1} of the log of shard {shard}, which "
            f"ends with entry {ends[shard][0] - 1}: no feed of this cluster as it is now gave it. It was changed, or "
            "the nodes have older disks than when it was given, and what was told since is lost; begin again with "
            '"start", a watch with "now"',
            field="since",
        )
