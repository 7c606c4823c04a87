"""Reads of documents by their ordinals, on one connection.

One aggregated row crosses from SQLite per chunk: APSW gives up the GIL for each row it returns, and getting it back
from a busy event loop can take a switch interval every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import apsw
import msgspec

from needle.shard.documents.names import Named
from needle.shard.documents.records import StoredDocument, row_id
from needle.shard.documents.writer import CHUNK, padded

_whole: Final = msgspec.json.Decoder(list[tuple[int, str, int, str]])
_named: Final = msgspec.json.Decoder(list[Named])


def by_ordinal(
    connection: apsw.Connection, collection_id: int, ordinals: Sequence[int], *, metadata: bool, vectors: bool
) -> dict[int, StoredDocument]:
    """Rows by ordinal, dead ones included until they are purged; absent ones are left out."""
    base = row_id(collection_id, 0)
    found: dict[int, StoredDocument] = {}
    column = "CAST(metadata AS TEXT)" if metadata else "''"
    for start in range(0, len(ordinals), CHUNK):
        part = padded([base | ordinal for ordinal in ordinals[start : start + CHUNK]])
        marks = ",".join("?" * len(part))
        (text,) = connection.execute(
            f"SELECT json_group_array(json_array(row, id, version, {column})) FROM documents WHERE row IN ({marks})",
            part,
        ).fetchone()
        values = dict(
            connection.execute(
                f"SELECT d.row, v.vector FROM documents d JOIN vectors v ON v.row = {base} + d.vector "
                f"WHERE d.row IN ({marks})",
                part,
            ).fetchall()
            if vectors
            else ()
        )
        for row, id_, version, stored in _whole.decode(text):
            at = row - base
            found[at] = StoredDocument(id_, at, version, stored.encode(), values.get(row, b""))
    return found


def named_between(connection: apsw.Connection, collection_id: int, first: int, end: int) -> list[Named]:
    """The stored rows with ordinals in [first, end), dead ones included."""
    base = row_id(collection_id, 0)
    (text,) = connection.execute(
        f"SELECT json_group_array(json_array(row - {base}, id, version)) FROM documents WHERE row >= ? AND row < ?",
        (base + first, base + end),
    ).fetchone()
    return _named.decode(text)
