"""What a bulk load asks of a shard's replicas, and these of each other (docs/adr/0119).

| method | asked of | takes | answers |
|---|---|---|---|
| bulk_begin | the leader | BulkBeginCall | BulkBeginAnswer |
| bulk_put | each replica | BulkPutCall | BulkHereAnswer |
| bulk_load | the leader | BulkLoadCall | WriteResult |
| bulk_here | each replica, also by the leader | BulkHereCall | BulkHereAnswer |
| bulk_bytes | a replica, by another one | BulkBytesCall | BulkBytesAnswer |

A collection is called as it is in the shard. A file's name has its checksum in it (shard/bulk/staged.py). Invariant:
until bulk_load is answered nothing that a reader sees has changed.
"""

from __future__ import annotations

from typing import Final

import msgspec

from needle.base.config import Limits
from needle.base.ids import GroupId
from needle.base.model import CollectionSpec
from needle.protocol.upkeep_commands import LoadRows

BULK_BEGIN: Final = "bulk_begin"
BULK_PUT: Final = "bulk_put"
BULK_LOAD: Final = "bulk_load"
BULK_HERE: Final = "bulk_here"
BULK_BYTES: Final = "bulk_bytes"
PUT_BYTES_MAX: Final = 1 << 20
"""Of a file, in one call."""
NAMES_MAX: Final = 4096


class BulkBeginCall(msgspec.Struct, frozen=True, array_like=True):
    """What a load into this collection has to be made for."""

    group: GroupId
    collection: str


class BulkBeginAnswer(msgspec.Struct, frozen=True, array_like=True):
    """collection_id: of the collection in this shard. spec: with its index of now. generation: as in PublishSegment.
    documents, written: that it has, and that it was ever written to. loaded: the checksum of the rows that a bulk load
    brought; "" for none. rows_max: of an index file. owned: fingerprint of the ranges of keys that the shard owns."""

    collection_id: int
    spec: CollectionSpec
    generation: int
    documents: int
    written: bool
    loaded: str
    rows_max: int
    owned: int


class BulkPutCall(msgspec.Struct, frozen=True, array_like=True):
    """A part of a file of `size` bytes, from `offset` on; parts come in order."""

    group: GroupId
    name: str
    size: int
    offset: int
    data: bytes


class BulkHereCall(msgspec.Struct, frozen=True, array_like=True):
    """How much of these files is here."""

    group: GroupId
    names: list[str]


class BulkHereAnswer(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of each; -1: all of it, compared with its checksum, and durable. room: bytes that the node's disk takes
    before data is refused. id_bytes_max, metadata_bytes_max: the node's settings, by which it judges a load."""

    here: list[int]
    room: int = 0
    id_bytes_max: int = Limits().id_bytes_max
    metadata_bytes_max: int = Limits().metadata_bytes_max


class BulkLoadCall(msgspec.Struct, frozen=True, array_like=True):
    """Have the entry proposed, once a majority has the file; a repetition is answered as what it repeats."""

    group: GroupId
    command: LoadRows
    timeout: float = 60.0


class BulkBytesCall(msgspec.Struct, frozen=True, array_like=True):
    """Bytes [offset, offset + length) of a file."""

    group: GroupId
    name: str
    offset: int
    length: int


class BulkBytesAnswer(msgspec.Struct, frozen=True, array_like=True):
    """there: whether the replica has the file. over: it has none, and needs none any more: the entry that names it is
    behind what it has applied and stored."""

    there: bool
    over: bool
    data: bytes
