"""Bugs of how a node's time is shared between the calls of many and large writes, and of what searches beside writers
read from memory (docs/adr/0097)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_WRITER = "tests/shard/test_document_writer.py::"
_TURNS = "tests/server/test_bulk_turns.py::"

MUTANTS = (
    Mutant(
        name="large-writes-do-not-rest",
        breaks="searches beside a writer of large batches have what it leaves of the node",
        edits=(Edit("server.service.shares:Shares.ended", "now + min(rest, REST_SECONDS_MAX)", "now"),),
        tests=(_TURNS + "test_beside_searches_they_are_executed_one_at_a_time_and_have_the_share_of_their_weight",),
    ),
    Mutant(
        name="large-writes-starve",
        breaks="a large write waits for all that came before it, past its own time",
        edits=(
            Edit(
                "server.service.bulk_turns:BulkTurns._wait",
                "asyncio.timeout(seconds)",
                "asyncio.timeout(None)",
            ),
        ),
        tests=(_TURNS + "test_one_behind_a_long_one_waits_for_a_second_or_half_of_its_time",),
    ),
    Mutant(
        name="large-writes-keep-the-turn",
        breaks="after one large write all others wait for a second, as if it never ended",
        edits=(Edit("server.service.bulk_turns:BulkTurns.turn", "self._lock.release()", "pass"),),
        tests=(_TURNS + "test_beside_searches_they_are_executed_one_at_a_time_and_have_the_share_of_their_weight",),
    ),
    Mutant(
        name="newest-of-another-collection",
        breaks="a hit among the documents that wait for their commit has the id of a document of another collection",
        edits=(Edit("shard.documents.writer:DocumentWriter.newest", "row_id(collection_id, 0)", "row_id(1, 0)"),),
        tests=(_WRITER + "test_ids_and_metadata_of_what_waits_need_no_commit",),
    ),
    Mutant(
        name="newest-after-a-failed-commit",
        breaks="searches go on answering from memory though the commit of what they found has failed for good",
        edits=(Edit("shard.documents.writer:DocumentWriter.newest", " or self._failed is not None", ""),),
        tests=(_WRITER + "test_after_a_failed_commit_nothing_is_read_from_memory",),
    ),
)
