"""What a replica keeps in memory, read from its file when that is opened."""

from __future__ import annotations

from typing import NamedTuple

import apsw

from needle.shard.documents.records import INDEXING, AnswerRow, AppliedAt, CollectionRecord, SessionRow
from needle.shard.documents.row_check import check_sum, stored_position, stored_records, sum_of_ids
from needle.shard.index_change import IndexState, decode_index_state
from needle.shard.plan import PublishedSegment


class Loaded(NamedTuple):
    """See `load`. manifests, indexing: by collection id. sessions by last use, answers by session and seq."""

    at: AppliedAt
    records: list[CollectionRecord]
    manifests: dict[int, list[PublishedSegment]]
    sessions: list[SessionRow]
    answers: list[AnswerRow]
    indexing: dict[int, IndexState]


def load(connection: apsw.Connection, path: str) -> Loaded:
    """Everything, from one consistent read. Raises CorruptDocuments, also when the documents that ids point at do not
    have the sums that the log gave them."""
    connection.execute("BEGIN")
    manifests: dict[int, list[PublishedSegment]] = {}
    for row in connection.execute("SELECT * FROM segments ORDER BY collection_id, first"):
        manifests.setdefault(row[0], []).append(PublishedSegment(*row))
    sessions = connection.execute("SELECT id, nonce, used, acked FROM sessions ORDER BY used").fetchall()
    answers = connection.execute("SELECT session, seq, answer FROM answers ORDER BY session, seq").fetchall()
    records = stored_records(connection, path)
    for record in records:
        check_sum(path, record, *sum_of_ids(connection, record.id))
    named = connection.execute("SELECT name, value FROM meta WHERE name GLOB ?", (f"{INDEXING}*",))
    indexing = {int(name.removeprefix(INDEXING)): decode_index_state(bytes(value)) for name, value in named}
    return Loaded(stored_position(connection, path), records, manifests, sessions, answers, indexing)
