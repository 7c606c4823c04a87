"""Bugs of the archive of the log, of restoring an instant (docs/adr/0076), and of index files in backups (0093)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_ARCHIVE = "tests/backup/test_archive.py::"
_JOINING = "tests/backup/test_archive_joining.py::"
_ADOPTED = "tests/shard/test_adopted.py::"
_LAG = "tests/server/test_archive_lag.py::"
_HOMES = "tests/backup/test_restored_homes.py::"

MUTANTS = (
    Mutant(
        name="archive-leaves-out-the-first-entry-of-a-new-leader",
        breaks="after a change of leader the archive lacks an entry, and nothing behind it can be restored",
        edits=(
            Edit(
                "backup.shard_archive:ShardArchive.take",
                "self.entries.append(one)",
                "self.entries += [one] if self.term in (0, one.term) else []",
            ),
        ),
        sim=True,
        minutes=0.5,
        sharded=True,
        backups=True,
    ),
    Mutant(
        name="archive-begins-below-the-mount-point",
        breaks="an archiver that is started while its disk is not mounted begins another archive, unheard",
        edits=(Edit("backup.archive_notes:Notes.find_target", "if now.archived and", "if now.archived < 0 and"),),
        tests=("tests/backup/test_archive_notes.py::test_one_that_is_started_while_the_target_is_not_mounted_waits",),
    ),
    Mutant(
        name="backup-begins-below-the-mount-point",
        breaks="a backup is made where no disk is mounted, and the alert of backups that are too old goes by it",
        edits=(Edit("backup.creating:_check_target", "if now.backed_up and", "if now.backed_up < 0 and"),),
        tests=("tests/backup/test_told.py::test_a_backup_is_not_begun_where_no_disk_is_mounted",),
    ),
    Mutant(
        name="of-two-with-one-id-one-is-restored",
        breaks="under a shard key one of two documents with one id is lost by a restore, which ends with an error",
        edits=(Edit("backup.restored_ids:each_id_once", "if len(set(piece.ids)) == len(piece.ids):", "if piece.ids:"),),
        tests=(_HOMES + "test_two_documents_of_one_id_are_restored_or_told_before_anything_is_made",),
    ),
    Mutant(
        name="two-with-one-id-come-into-one-shard",
        breaks="a restore writes two documents of one id into one shard for hours, and then says that they differ",
        edits=(Edit("backup.restored_ids:check_ids", "now.map is None or", "now.map is not None or"),),
        tests=(_HOMES + "test_two_documents_of_one_id_are_restored_or_told_before_anything_is_made",),
    ),
    Mutant(
        name="restarted-node-expects-no-archive",
        breaks="a node that was restarted cuts entries of its log that an archive lacks, and it has a gap forever",
        edits=(Edit("multiraft.host:Host.expect_archive", "self.note_archived(group, UNNAMED, 0, 0)", "self"),),
        tests=("tests/multiraft/test_compaction.py::test_a_log_is_kept_for_an_archive_that_is_only_expected",),
    ),
    Mutant(
        name="who-begins-elsewhere-is-taken-for-who-was-there",
        breaks="nodes that were restarted cut what an archiver lacks that is down, a minute after another one began",
        edits=(Edit("multiraft.archives:Archives.note", " and not begun", ""),),
        tests=(
            _LAG + "test_a_replica_that_hears_late_of_an_archive_that_begins_elsewhere_keeps_its_log_for_the_other_one",
        ),
    ),
    Mutant(
        name="what-expired-is-back-for-minutes",
        breaks="documents whose instant has passed are found again for minutes after a restore",
        edits=(Edit("backup.restore_expiry:not_passed", "int(seconds * 1e6)", "int(seconds * 60e6)"),),
        sim=True,
        tests=("tests/backup/test_restored_expiry.py::test_none_expires_sooner_than_in_a_moment",),
        minutes=0.5,
        sharded=True,
        backups=True,
    ),
    Mutant(
        name="restore-has-what-came-after-the-instant",
        breaks="a write that was asked for after the instant is restored",
        edits=(Edit("backup.replaying:_ends", "newest > (place.at or 0)", "newest > (place.at or 0) + 1_000_000"),),
        tests=(_ARCHIVE + "test_every_index_and_every_instant_comes_back_as_it_was",),
    ),
    Mutant(
        name="recorded-digests-not-compared",
        breaks="what is restored is not what the leader had, and nobody says so",
        edits=(Edit("backup.replaying:Replay._compare", "if here != digest", "if digest is False"),),
        tests=(_ARCHIVE + "test_a_state_that_is_not_the_recorded_one_is_not_restored",),
    ),
    Mutant(
        name="state-told-of-before-its-entries-are-kept",
        breaks="whoever begins again leaves entries out that were read, and not kept yet",
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
    Mutant(
        name="restored-instant-mixes-vectors",
        breaks="documents of an instant come back with each other's vectors",
        edits=(Edit("backup.instant:_batch", "vector for row in rows)", "vector for row in rows[::-1])"),),
        tests=("tests/backup/test_restore_drill.py::test_what_comes_back_is_what_was_there",),
    ),
    Mutant(
        name="joined-file-lacks-an-entry",
        breaks="where files of the archive overlap, the joined one lacks entries, and its parts are deleted",
        edits=(
            Edit("backup.archive_joining:Joining._join", "if one.index > at]\n", "if one.index > at + (at > 0)]\n"),
        ),
        tests=(_JOINING + "test_they_are_joined_and_every_index_comes_back",),
    ),
    Mutant(
        name="damaged-file-takes-what-it-holds-with-it",
        breaks="the parts of a damaged joined file are deleted, though nobody has their entries any more",
        edits=(Edit("backup.archive_joining:Joining._is_whole", "return False", "return True"),),
        tests=(_JOINING + "test_what_a_damaged_file_holds_too_is_not_deleted",),
    ),
    Mutant(
        name="index-file-adopted-without-comparing",
        breaks="searches are answered by vectors that the documents do not have",
        edits=(Edit("shard.segments.adopted:fit", "if not nodes or not same_rows", "if not nodes and not same_rows"),),
        tests=(_ADOPTED + "test_what_does_not_fit_is_refused",),
    ),
    Mutant(
        name="rows-in-another-order-taken-for-nodes",
        breaks="once a file that was adopted is built upon, documents have each other's vectors in searches",
        edits=(
            Edit(
                "shard.segments.graph_builder:_named",
                "len(node_of) == nodes and np.array",
                "len(node_of) == nodes or np.array",
            ),
        ),
        tests=(_ADOPTED + "test_nodes_as_many_as_rows_in_another_order_are_told_apart_by_a_later_build",),
    ),
    Mutant(
        name="node-of-nobody-found",
        breaks="a search finds another document in the place of one that is not there",
        edits=(
            Edit("shard.segments.sealed:SealedSegment.search", "mask is None and self._shared.whole", "mask is None"),
        ),
        tests=(_ADOPTED + "test_rows_in_another_order_and_fewer_are_found_as_exactly_as_before[hnsw-l2]",),
    ),
)
