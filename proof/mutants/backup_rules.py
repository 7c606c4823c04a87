"""Bugs of the archive of the log, and of restoring an instant (docs/adr/0076)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_ARCHIVE = "tests/backup/test_archive.py::"

MUTANTS = (
    Mutant(
        name="restore-has-what-came-after-the-instant",
        breaks="a write that was asked for after the instant is restored",
        edits=(Edit("backup.replaying:_ends", "newest > (place.at or 0)", "newest > (place.at or 0) + 1_000_000"),),
        tests=(_ARCHIVE + "test_every_index_and_every_instant_comes_back_as_it_was",),
    ),
    Mutant(
        name="recorded-digests-not-compared",
        breaks="what is restored is not what the leader had, and nobody says so",
        edits=(
            Edit(
                "backup.replaying:Replay._go", "if digest is not None and digest !=", "if digest is False and digest !="
            ),
        ),
        tests=(_ARCHIVE + "test_a_state_that_is_not_the_recorded_one_is_not_restored",),
    ),
    Mutant(
        name="state-told-of-before-its-entries-are-kept",
        breaks="whoever begins anew leaves entries out that were read, and not kept yet",
        edits=(Edit("backup.archiving:Archiver._base", "archive.kept < image.index", "archive.kept < 0"),),
        tests=(_ARCHIVE + "test_a_state_is_told_of_only_when_the_entries_before_it_are_there",),
    ),
    Mutant(
        name="shard-that-came-later-left-out",
        breaks="documents that had moved to a new shard before the archiver heard of it are missing",
        edits=(Edit("backup.archive_reading:catalog_at", "if at > following.after:", "if at > following.at:"),),
        tests=(_ARCHIVE + "test_a_shard_that_the_catalog_named_only_afterwards_is_looked_into",),
    ),
    Mutant(
        name="range-on-its-way-has-no-owner",
        breaks="documents of a range that one shard gave up and the other has not taken yet are not restored",
        edits=(Edit("backup.instant:owners", 'transfer.phase == "released" and', 'transfer.phase == "gone" and'),),
        tests=(_ARCHIVE + "test_a_range_that_is_on_its_way_has_one_owner",),
    ),
)
