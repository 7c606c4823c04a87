"""Equal applied index means equal documents on every replica."""

from __future__ import annotations

from typing import Any

import xxhash

from needle.shard.documents.records import ORDINAL_BITS
from proof.checkers.violation import Violation

_ROWS = (
    "SELECT i.collection_id, i.id, i.ordinal, i.version, i.expires, d.metadata, v.vector FROM ids i "
    "JOIN collections c ON c.id = i.collection_id "  # the rows of one that was dropped go at each replica's own pace
    f"LEFT JOIN documents d ON d.row = (i.collection_id << {ORDINAL_BITS} | i.ordinal) "
    f"LEFT JOIN vectors v ON v.row = (i.collection_id << {ORDINAL_BITS} | i.vector) ORDER BY 1, 2"
)


def rows_of(replica: Any) -> str:
    """A digest of the documents that a replica stores, byte by byte, that no check of the product has a part in. Raises
    CorruptDocuments."""
    digest = xxhash.xxh3_128()
    with replica._store._uncached() as connection:
        for row in connection.execute(_ROWS):
            digest.update(repr(row).encode())
    return digest.hexdigest()


class Digests:
    """Remembers the digest at each applied index that was looked at."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], tuple[str, str]] = {}

    def observe(self, group: int, node: str, applied: int, digest: str) -> None:
        """Raises Violation."""
        other, known = self._seen.setdefault((group, applied), (node, digest))
        if known != digest:
            raise Violation("equal replicas", f"group {group} at {applied}: {other} has {known}, {node} has {digest}")
