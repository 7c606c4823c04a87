"""Bugs in named vectors: what follows a document, and what must not (docs/adr/0118)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_SHARD = "tests/shard/test_named_vectors.py::"
_FEEDS = "tests/shard/test_named_feeds.py::"

MUTANTS = (
    Mutant(
        name="a-replaced-document-keeps-its-named-vector",
        breaks="a document that is inserted again is found by the vector of what it was",
        edits=(Edit("shard.apply.named:follow", "if not stays:", "if vector is None and now is None:"),),
        sim=True,
        minutes=1.0,
        sharded=True,
        tests=(_SHARD + "test_a_document_that_is_replaced_or_deleted_loses_its_vector", _SHARD + "test_a_model_of_it"),
    ),
    Mutant(
        name="a-late-named-vector-is-taken",
        breaks="a vector of an older text is put beside a newer one, whatever version its writer has seen",
        edits=(
            Edit(
                "shard.apply.execute:_update_named",
                "_check_versions(command, refs, here if command.owned or command.within else ids)",
                "None",
            ),
        ),
        tests=(_SHARD + "test_a_vector_is_filled_in_unless_the_document_was_changed",),
    ),
    Mutant(
        name="a-move-leaves-named-vectors-behind",
        breaks="documents that move to another shard lose their named vectors",
        edits=(Edit("shard.copying:_named", "view.vectors_of(held) if ordinals else ()", "()"),),
        tests=(_SHARD + "test_what_is_copied_for_a_move_has_them",),
    ),
    Mutant(
        name="named-vectors-of-a-pinned-scan-are-purged",
        breaks="a consistent scan has the documents of its moment, and not their named vectors",
        edits=(
            Edit(
                "shard.apply.batch:Batch.change",
                "self.record(record.spec.of).id if record.spec.of else record.id",
                "record.id",
            ),
        ),
        tests=(_SHARD + "test_a_pinned_scan_sees_the_vectors_of_its_moment",),
    ),
    Mutant(
        name="a-backup-does-not-sum-named-vectors",
        breaks="a restore whose named vectors are other ones counts as right",
        edits=(Edit("backup.format:Contents.add", "named.get(at, {})", "{}"),),
        tests=("tests/backup/test_named_vectors.py::test_a_vector_that_is_another_one_is_seen",),
    ),
    Mutant(
        name="rows-of-named-vectors-do-not-stay-for-feeds",
        breaks="a feed that comes late tells documents without the named vectors that they had",
        edits=(Edit("shard.apply.named:follow_and_tell", "if record is None or not telling:", "if True:"),),
        tests=(_FEEDS + "test_each_change_has_the_vector_of_its_moment_also_when_it_is_read_late",),
    ),
    Mutant(
        name="a-vector-that-was-purged-was-never-there",
        breaks="a feed tells a document that has moved away without the named vector that it had",
        edits=(Edit("shard.feeding:_Rows.named", "one.new not in self.wish.live", "False"),),
        tests=(_FEEDS + "test_what_a_move_took_away_is_not_told_without_its_vector",),
    ),
    Mutant(
        name="a-feed-tells-the-named-vector-of-before",
        breaks="a consumer keeps the named vector that a document had before its last change",
        edits=(
            Edit(
                "shard.feeding:_Rows.with_named",
                "rows = self.named(record.id, part, ordinals)",
                "rows = {o.new: r for o in part for at, r in self.named(record.id, part, [*ordinals, *("
                "p.old for p in part if p.old >= 0)]).items() if at == (o.old if o.old >= 0 else o.new)}",
            ),
        ),
        sim=True,
        minutes=1.0,
        sharded=True,
        tests=(_FEEDS + "test_a_change_by_name_is_a_change_of_its_document",),
    ),
    Mutant(
        name="a-vector-that-is-taken-away-stays",
        breaks="a document is found by a vector that was taken from it",
        edits=(Edit("shard.apply.named:follow", "(keep and id_ not in given)", "keep"),),
        sim=True,
        minutes=1.0,
        sharded=True,
        tests=(_SHARD + "test_a_vector_is_taken_away_and_all_else_stays", _SHARD + "test_a_model_of_it"),
    ),
)
