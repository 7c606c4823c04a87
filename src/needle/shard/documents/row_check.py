"""Whether the rows of a replica's file are what the log wrote: the hash of each document, the sum of each collection.

The checksums of pages (sqlite_file.py) find bits that change; these find what they cannot: a page that was never
written, a row that a bug has changed, an image whose sender was wrong. Every function raises CorruptDocuments.
"""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from typing import NamedTuple

import apsw
import numpy as np

from needle.base.errors import CorruptDocuments
from needle.base.model import CollectionSpec
from needle.routing.topology import called
from needle.shard.disk import disk_errors
from needle.shard.documents.digest import MODULUS, document_hash
from needle.shard.documents.records import AppliedAt, CollectionRecord, row_id
from needle.shard.documents.sqlite_file import connect, decoded
from needle.shard.plan import PublishedSegment

CHECK_ROWS = 1024


class Stored(NamedTuple):
    """What a file held when all of its rows were read and found to be what the log wrote."""

    at: AppliedAt
    records: list[CollectionRecord]
    holdings: bytes | None
    manifest: list[PublishedSegment]


def verify_image_file(path: str) -> Stored:
    """Read every row of a file that nobody writes to. Raises CorruptDocuments, StorageError."""
    with disk_errors(path), closing(connect(path, "?immutable=1")) as image:
        return check_all(image, path)


def check_all(connection: apsw.Connection, path: str) -> Stored:
    records = stored_records(connection, path)
    for record in records:
        after, total, count = "", 0, 0
        while page := check_rows(connection, path, record.id, after, CHECK_ROWS):
            after, count, total = page.last, count + page.rows, total + page.total
        check_sum(path, record, count, total % MODULUS)
        _check_index(connection, path, record)
    manifest = read_small_tables(connection, path)
    held = connection.execute("SELECT value FROM meta WHERE name = 'holdings'").fetchone()
    return Stored(stored_position(connection, path), records, None if held is None else bytes(held[0]), manifest)


class Checked(NamedTuple):
    """Documents that were read and have their hashes. last: the last id. total: sum of their hashes. size: bytes."""

    last: str
    rows: int
    total: int
    size: int


def check_rows(connection: apsw.Connection, path: str, collection_id: int, after: str, rows_max: int) -> Checked | None:
    """Read the next current documents in the order of their ids, behind the id `after` ("": from the first); None if
    there are none."""
    base = row_id(collection_id, 0)
    rows = total = size = 0
    last = after
    expiry = _expiry_column(connection)
    found = connection.execute(
        f"SELECT i.id, i.ordinal, i.version, i.hash, i.vector, {expiry}, d.id, d.version, d.vector, d.metadata, "
        f"v.vector FROM ids i LEFT JOIN documents d ON d.row = {base} + i.ordinal "
        f"LEFT JOIN vectors v ON v.row = {base} + i.vector "
        "WHERE i.collection_id = ? AND i.id > ? ORDER BY i.id LIMIT ?",
        (collection_id, after, rows_max),
    )
    for id_, ordinal, version, hash_, place, expires, there, its_version, its_place, metadata, vector in found:
        if (id_, version, place) != (there, its_version, its_place) or vector is None:
            raise CorruptDocuments(
                f"{path} is damaged: id {id_[:80]!r} points at ordinal {ordinal}, which holds {there!r}", path=path
            )
        if document_hash(ordinal, version, id_, metadata, place, vector, expires) != hash_:
            raise CorruptDocuments(
                f"{path} is damaged: document {id_[:80]!r} does not have the hash it was written with", path=path
            )
        last, rows, total = id_, rows + 1, total + int.from_bytes(hash_, "little")
        size += len(id_) + len(metadata) + len(vector)
    return Checked(last, rows, total, size) if rows else None


def _expiry_column(connection: apsw.Connection) -> str:
    """An image of the release before has none."""
    found = connection.execute("SELECT 1 FROM pragma_table_info('ids') WHERE name = 'expires'").fetchone()
    return "0" if found is None else "i.expires"


def _check_index(connection: apsw.Connection, path: str, record: CollectionRecord) -> None:
    """What expires is found by an index: that it names what the rows say."""
    if _expiry_column(connection) == "0":
        return
    sums = (
        "SELECT count(*), sum(expires >> 32), sum(expires & 0xffffffff) FROM ids {} "
        "WHERE collection_id = ? AND {}expires > 0"
    )
    by_rows = connection.execute(sums.format("", "+"), (record.id,)).fetchone()  # + keeps it off the index
    if connection.execute(sums.format("INDEXED BY expiring", ""), (record.id,)).fetchone() != by_rows:
        raise CorruptDocuments(
            f"{path} is damaged: the index of what expires in {called(record.spec.name)!r} is not what its rows say",
            path=path,
        )


def sum_of_ids(connection: apsw.Connection, collection_id: int) -> tuple[int, int]:
    """How many ids a collection has, and the sum of their hashes."""
    cursor = connection.execute("SELECT hash FROM ids WHERE collection_id = ?", (collection_id,))
    count, lanes = 0, np.zeros(4, np.uint64)
    while hashes := [hash_ for (hash_,) in islice(cursor, 4096)]:
        count += len(hashes)
        lanes += np.frombuffer(b"".join(hashes), "<u4").reshape(-1, 4).sum(axis=0, dtype=np.uint64)
    return count, sum(int(lane) << (32 * at) for at, lane in enumerate(lanes)) % MODULUS


def check_sum(path: str, record: CollectionRecord, count: int, total: int) -> None:
    if (count, total) != (record.documents, record.total):
        raise CorruptDocuments(
            f"{path} is damaged: the {count} documents of collection {called(record.spec.name)!r} and the sum that the "
            f"log gave for {record.documents} disagree",
            path=path,
        )


def read_small_tables(connection: apsw.Connection, path: str) -> list[PublishedSegment]:
    """Read what belongs to no document, so that the checksums of its pages are compared; the manifest."""
    for table in ("graves", "kept", "dropped", "sessions", "answers"):
        known = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
        for _ in connection.execute(f"SELECT * FROM {table}") if known else ():
            pass
    segments = connection.execute("SELECT * FROM segments ORDER BY collection_id, first").fetchall()
    return [PublishedSegment(*row) for row in segments]


def stored_records(connection: apsw.Connection, path: str) -> list[CollectionRecord]:
    found = connection.execute(
        "SELECT id, spec, next_ordinal, documents, digest FROM collections ORDER BY id"
    ).fetchall()
    return [
        CollectionRecord(
            id=row[0],
            spec=decoded(row[1], CollectionSpec, path),
            next_ordinal=row[2],
            documents=row[3],
            total=int.from_bytes(row[4], "little"),
        )
        for row in found
    ]


def stored_position(connection: apsw.Connection, path: str) -> AppliedAt:
    meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    try:
        return AppliedAt(meta["index"], meta["term"], bytes(meta["conf"]), meta["next_collection_id"])
    except KeyError as error:
        raise CorruptDocuments(f"{path} is damaged: it does not say its {error}", path=path) from None
