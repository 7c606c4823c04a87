"""The digest of a replica's documents: equal content has an equal digest, at O(1) per document written.

Each document has a 128-bit hash over its ordinal, version, id, metadata and vector; a collection's sum is the sum of
its documents' hashes modulo 2^128, so it does not depend on order and a document can be taken out again. The replica's
digest is one hash over its collections in the order of their ids.

Invariant: the stored sums equal what `documents.DocumentStore.recompute` finds. It must not know SQLite or faiss.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec
import xxhash

from needle.base.model import CollectionSpec

MODULUS = 1 << 128
_head = struct.Struct("<QQIIB")


def document_hash(ordinal: int, version: int, id_: str, metadata: bytes, vector: bytes | memoryview) -> bytes:
    """16 bytes that identify one stored document version. vector: little-endian float32 bytes."""
    name = id_.encode()
    head = _head.pack(ordinal, version, len(name), len(metadata), 1)
    return xxhash.xxh3_128_digest(b"".join((head, name, metadata, vector)))


def replica_digest(collections: Iterable[tuple[int, CollectionSpec, int, int, int]], holdings: bytes = b"") -> str:
    """32 hex digits over (collection id, spec, next ordinal, document count, sum of document hashes) each, and what
    the shard owns if that ever changed."""
    rows = sorted(
        (cid, spec.name, msgspec.json.encode(spec), end, n, total) for cid, spec, end, n, total in collections
    )
    digest = xxhash.xxh3_128()
    for cid, _, spec_bytes, end, count, total in rows:
        digest.update(struct.pack("<QIQQ", cid, len(spec_bytes), end, count))
        digest.update(spec_bytes)
        digest.update(total.to_bytes(16, "little"))
    digest.update(holdings)
    return digest.hexdigest()
