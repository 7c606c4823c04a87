"""The place that a scan has reached, as text that another process may go on from.

Invariant: what was cut short, changed, or made by another scan is refused by name. Pure.
"""

from __future__ import annotations

import base64
import binascii

import msgspec
import xxhash

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import InvalidArgument, shown
from needle.base.filters.ordering import START, Key, ScanOrder

VERSION = 1


class Place(msgspec.Struct, frozen=True, array_like=True):
    """What is scanned (a collection, a filter as JSON, a share of the ids), and the id behind which it goes on.
    collection_id: tells the collection from others that had or will have its name; 0 if it is not known. token, pins:
    of a consistent scan (protocol.calls.ScanPin); no pins for another one. order_by: the field in whose order it is
    read, "" for ids; descending: from its greatest value; key: the last one there."""

    collection: str
    filter: bytes
    slice: tuple[int, int]
    after: str
    collection_id: int = 0
    token: int = 0
    pins: tuple[tuple[int, int], ...] = ()
    order_by: str = ""
    key: Key = START
    descending: bool = False

    @property
    def order(self) -> ScanOrder | None:
        """As a shard is asked."""
        return ScanOrder(self.order_by, self.key, self.descending) if self.order_by else None


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """What the text holds. scan: the hash of what is scanned."""

    version: int
    scan: int
    collection: str
    after: str
    collection_id: int = 0
    token: int = 0
    pins: tuple[tuple[int, int], ...] = ()
    key: Key = START


def encode(place: Place) -> str:
    """The place as text of letters, digits, - and _."""
    kept = Kept(
        VERSION, _hash(place), place.collection, place.after, place.collection_id, place.token, place.pins, place.key
    )
    body = msgspec.msgpack.encode(kept)
    return base64.urlsafe_b64encode(binascii.crc32(body).to_bytes(4, "big") + body).decode().rstrip("=")


def decode(text: object, scan: Place) -> Place:
    """Where to go on. scan: what is to be scanned, from any place. Raises InvalidArgument."""
    kept = kept_in(text)
    if kept.collection != scan.collection:
        raise InvalidArgument(
            f"cursor = {shown(text)} is of a scan of collection {kept.collection[:80]!r}, not {scan.collection[:80]!r}",
            field="cursor",
        )
    if kept.scan != _hash(scan):
        raise InvalidArgument(
            f"cursor = {shown(text)} is of a scan with another filter, slice or order: go on with those it began with",
            field="cursor",
        )
    return msgspec.structs.replace(
        scan, after=kept.after, collection_id=kept.collection_id, token=kept.token, pins=kept.pins, key=kept.key
    )


def kept_in(text: object) -> Kept:
    """What a cursor says. Raises InvalidArgument for what is none."""
    try:
        if not isinstance(text, str):
            raise ValueError
        data = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        if binascii.crc32(data[4:]).to_bytes(4, "big") != data[:4]:
            raise ValueError
        kept = msgspec.msgpack.decode(data[4:], type=Kept)
    except (ValueError, *DECODE_ERRORS):  # binascii.Error and UnicodeEncodeError are ValueErrors
        raise InvalidArgument(
            f"cursor = {shown(text)} is none: a whole text that `scan_page` gave as its `cursor`", field="cursor"
        ) from None
    if kept.version != VERSION:
        raise InvalidArgument(f"cursor = {shown(text)} was made by another release of the client", field="cursor")
    return kept


def _hash(place: Place) -> int:
    order = [place.order_by, *(["descending"] if place.descending else [])] if place.order_by else []
    scanned = [place.filter, place.slice, *order]
    return xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(scanned))
