"""The digest of a replica's documents: equal content has an equal digest, at O(1) per document written.

Each document has a 128-bit hash: the sum, modulo 2^128, of one over its ordinal, version, id and metadata, one over its
vector and that one's ordinal, and one over when it expires, if it does. So metadata can change without a look at the
vector. A collection's sum is the sum of
its documents' hashes, so it does not depend on order and a document can be taken out again. The replica's digest is one
hash over its collections in the order of their ids.

Invariant: the stored sums equal what `documents.DocumentStore.recompute` finds. It must not know SQLite or faiss.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Protocol

import msgspec
import xxhash

from needle.base.dtypes import DType
from needle.base.model import CollectionSpec, IndexKind

MODULUS = 1 << 128
SPECS_KEPT: Final = 1 << 14
"""Of so many specs the bytes are kept (some 0.5 KiB each): they are most of the work of a digest."""
_head = struct.Struct("<QQIIB")
_place = struct.Struct("<QB")
_expiry = struct.Struct("<QQB")


def document_hash(
    ordinal: int,
    version: int,
    id_: str,
    metadata: bytes,
    vector_ordinal: int,
    vector: bytes | memoryview,
    expires: int = 0,
) -> bytes:
    """16 bytes that identify one stored document version. vector: as it is stored."""
    return document_sum(ordinal, version, id_, metadata, vector_ordinal, vector, expires).to_bytes(16, "little")


def document_sum(
    ordinal: int,
    version: int,
    id_: str,
    metadata: bytes,
    vector_ordinal: int,
    vector: bytes | memoryview,
    expires: int = 0,
) -> int:
    """The same as a number, which is what is added up."""
    total: int = xxhash.xxh3_128_intdigest(_place.pack(vector_ordinal, 3) + vector)
    return (total + _head_hash(id_, ordinal, version, metadata, expires)) % MODULUS


Head = tuple[int, int, bytes, int]
"""(ordinal, version, metadata, when it expires)."""


def rehashed(hash_: bytes, id_: str, before: Head, now: Head) -> bytes:
    """The hash of a document that keeps its vector."""
    total = int.from_bytes(hash_, "little") - _head_hash(id_, *before) + _head_hash(id_, *now)
    return (total % MODULUS).to_bytes(16, "little")


def _head_hash(id_: str, ordinal: int, version: int, metadata: bytes, expires: int) -> int:
    name = id_.encode()
    head = xxhash.xxh3_128_intdigest(_head.pack(ordinal, version, len(name), len(metadata), 2) + name + metadata)
    return head + xxhash.xxh3_128_intdigest(_expiry.pack(ordinal, expires, 4)) if expires else head


def hash_of_format_3(ordinal: int, version: int, id_: str, metadata: bytes, vector: bytes | memoryview) -> bytes:
    """What files up to that format hold: one hash over all of it."""
    name = id_.encode()
    head = _head.pack(ordinal, version, len(name), len(metadata), 1)
    return xxhash.xxh3_128_digest(b"".join((head, name, metadata, vector)))


@lru_cache(maxsize=SPECS_KEPT)
def _spec_bytes(spec: CollectionSpec) -> bytes:
    """As earlier releases had it, which know no `ttl`, no `model` and no `text`: they are the catalog's; one kind of
    index, one type of vectors, and no named ones."""
    fields = msgspec.to_builtins(spec)
    del fields["ttl"], fields["model"], fields["text"]
    if spec.dtype is DType.FLOAT32:
        del fields["dtype"]
    if not spec.of:
        del fields["of"]
    if spec.index.kind is IndexKind.HNSW:
        del fields["index"]["kind"]
    return msgspec.json.encode(fields)


class Counted(Protocol):
    """A collection, as far as a digest tells of it (records.CollectionRecord)."""

    @property
    def id(self) -> int: ...
    @property
    def spec(self) -> CollectionSpec: ...
    @property
    def next_ordinal(self) -> int: ...
    @property
    def documents(self) -> int: ...
    @property
    def total(self) -> int: ...


class DigestParts:
    """What digests are made of, kept of each collection until it is another record: a replica with thousands of them is
    asked for its digest on the event loop. From any thread."""

    def __init__(self) -> None:
        self._parts: dict[int, tuple[Counted, bytes]] = {}

    def digest(self, records: Iterable[Counted], holdings: bytes = b"") -> str:
        """32 hex digits over id, spec, next ordinal, document count and sum of document hashes of each collection, and
        what the shard owns if that ever changed."""
        known, parts = self._parts, dict[int, tuple[Counted, bytes]]()
        for record in records:
            kept = known.get(record.id)
            parts[record.id] = kept if kept is not None and kept[0] is record else (record, _part(record))
        self._parts = parts  # one assignment: whoever asks at the same time makes some of them twice
        digest = xxhash.xxh3_128()
        digest.update(b"".join([parts[id_][1] for id_ in sorted(parts)]))
        digest.update(holdings)
        return digest.hexdigest()


def _part(record: Counted) -> bytes:
    spec = _spec_bytes(record.spec)
    head = struct.pack("<QIQQ", record.id, len(spec), record.next_ordinal, record.documents)
    return b"".join((head, spec, record.total.to_bytes(16, "little")))
