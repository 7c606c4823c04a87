"""What files of earlier formats held, and how it is brought into the tables of today (sqlite_file.copy_tables); and an
image of today into those of the format before, for nodes of the release before (sqlite_file.copy_pages).

Up to format 3 a document's vector had the document's own ordinal, and one hash was over both. Up to format 4 no
document expired."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import apsw
import msgspec

from needle.base.errors import CorruptDocuments
from needle.shard.documents.digest import MODULUS, document_hash, hash_of_format_3
from needle.shard.documents.records import DEAD_DOCUMENT, DEAD_VECTOR, ORDINAL_BITS, AnswerRow, SessionRow

CHECKSUMS: Final = 3
"""The first format with checksums on all pages, and with answers of sessions as rows of their own."""
_SAME: Final = ("meta", "vectors", "dropped", "segments")
KEPT_VECTORS: Final = 4
"""The first format with versions of documents that keep the vector of an earlier one."""


def old_tables(found: int) -> tuple[str, ...]:
    """Those of an older format that are today as they were."""
    sessions = ("sessions", "answers") if found >= CHECKSUMS else ()
    return (*_SAME, *sessions, *(("documents", "graves", "collections") if found >= KEPT_VECTORS else ()))


_ROWS: Final = (
    "SELECT i.collection_id, i.id, i.ordinal, i.version, i.hash, d.id, d.version, d.metadata, v.vector FROM main.ids i "
    f"LEFT JOIN main.documents d ON d.row = (i.collection_id << {ORDINAL_BITS} | i.ordinal) "
    "LEFT JOIN main.vectors v ON v.row = d.row WHERE i.collection_id = ?"
)


class _OldState(msgspec.Struct, array_like=True):
    """What the row of a session held before answers had rows of their own."""

    acked: int = 1
    answers: dict[int, Any] = {}


_encoder = msgspec.msgpack.Encoder()
_old_decoder = msgspec.msgpack.Decoder(_OldState)


def rows_of_old_state(session: int, nonce: bytes, used: int, state: bytes) -> tuple[SessionRow, list[AnswerRow]]:
    """The rows of a session that was stored as one. Raises DECODE_ERRORS."""
    old = _old_decoder.decode(state)
    answers = [(session, seq, _encoder.encode(answer)) for seq, answer in old.answers.items() if seq >= old.acked]
    return (session, nonce, used, old.acked), answers


def copy_old_sessions(connection: apsw.Connection) -> None:
    """From `main` into the attached `image`; so the following."""
    for row in connection.execute("SELECT id, nonce, used, state FROM main.sessions"):
        session, answers = rows_of_old_state(*row)
        connection.execute("INSERT INTO image.sessions VALUES (?, ?, ?, ?)", session)
        connection.executemany("INSERT INTO image.answers VALUES (?, ?, ?)", answers)


def copy_old_ids(connection: apsw.Connection) -> None:
    """Of format 4."""
    connection.execute("INSERT INTO image.ids SELECT *, 0 FROM main.ids")


def back_to_format_4(image: apsw.Connection) -> None:
    """Of a copy, in place, so that pages of documents and vectors stay as they are. Unless something expires or is kept
    for a scan: then the cluster has been at a version that reads format 5, whatever this node knows of it."""
    later = "SELECT EXISTS (SELECT 1 FROM ids WHERE expires > 0) OR EXISTS (SELECT 1 FROM kept)"
    if image.execute(later).fetchone() != (0,):
        return
    image.execute("PRAGMA journal_mode=OFF").fetchall()  # the copied header asks for a write-ahead log
    image.execute("BEGIN")
    image.execute("DROP TABLE kept")
    image.execute("DROP INDEX expiring")
    image.execute("ALTER TABLE ids DROP COLUMN expires")
    image.execute("UPDATE meta SET value = ? WHERE name = 'format'", (KEPT_VECTORS,))
    image.execute("COMMIT")


def copy_old_documents(connection: apsw.Connection, path: str) -> None:
    """Documents, ids, graves and collections. Each document is checked by the hash that it had, and gets today's.
    Raises CorruptDocuments."""
    connection.execute(
        "INSERT INTO image.documents SELECT row, id, version, metadata, row & ? FROM main.documents",
        ((1 << ORDINAL_BITS) - 1,),
    )
    connection.execute("INSERT INTO image.graves SELECT row, ? FROM main.graves", (DEAD_DOCUMENT | DEAD_VECTOR,))
    for collection in connection.execute("SELECT * FROM main.collections").fetchall():
        sums = [0, 0]
        rows = _new_ids(connection, collection[0], path, sums)
        connection.executemany("INSERT INTO image.ids VALUES (?, ?, ?, ?, ?, ?, 0)", rows)
        if sums[0] % MODULUS != int.from_bytes(collection[4], "little"):
            raise CorruptDocuments(f"{path} is damaged: the sum of a collection's documents is not the stored one")
        total = (sums[1] % MODULUS).to_bytes(16, "little")
        connection.execute("INSERT INTO image.collections VALUES (?, ?, ?, ?, ?)", (*collection[:4], total))


def _new_ids(
    connection: apsw.Connection, collection_id: int, path: str, sums: list[int]
) -> Iterator[tuple[int, str, int, int, bytes, int]]:
    """The rows of `ids`. sums: of their hashes, as they were and as they are, are added here."""
    for _, id_, ordinal, version, hash_, there, its_version, metadata, vector in connection.execute(
        _ROWS, (collection_id,)
    ):
        whole = (id_, version) == (there, its_version) and vector is not None
        if not whole or hash_of_format_3(ordinal, version, id_, metadata, vector) != hash_:
            raise CorruptDocuments(f"{path} is damaged: document {id_[:80]!r} is not what was written", path=path)
        now = document_hash(ordinal, version, id_, metadata, ordinal, vector)
        sums[0] += int.from_bytes(hash_, "little")
        sums[1] += int.from_bytes(now, "little")
        yield collection_id, id_, ordinal, version, now, ordinal
