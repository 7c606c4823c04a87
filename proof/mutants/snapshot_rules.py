"""Bugs in what a replica does when its log is not enough: repair, compaction, snapshots."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_REPAIR = "tests/multiraft/test_repair.py::"
_REBUILD = "tests/multiraft/test_rebuild.py::"
_SNAPSHOTS = "tests/multiraft/test_snapshots.py::"
_BLOCKS = "tests/multiraft/test_snapshot_blocks.py::"
_COMPACTION = "tests/multiraft/test_compaction.py::"

MUTANTS = (
    Mutant(
        name="votes-while-repairing",
        breaks="a replica whose disk lost entries votes before it has them back: a leader without committed entries",
        edits=(
            Edit(
                "multiraft.group:Group.receive",
                "if self.may_vote or message.type not in _VOTE_REQUESTS:",
                "if True:",
            ),
        ),
        tests=(_REPAIR + "test_corrupt_entries_are_fetched_from_peers_and_no_vote_is_given_before",),
    ),
    Mutant(
        name="compaction-beyond-what-is-durable",
        breaks="the log is cut where the state machine's disk does not reach: a power cut leaves a gap",
        edits=(
            Edit(
                "multiraft.group_compaction:Compaction._target",
                "target = min(durable, tail_after(group.raft.applied, entries, tail_bytes, sizes))",
                "target = tail_after(group.raft.applied, entries, tail_bytes, sizes)",
            ),
        ),
        tests=(_SNAPSHOTS + "test_a_checkpoint_that_lags_holds_compaction_back",),
    ),
    Mutant(
        name="log-not-kept-for-snapshots",
        breaks="the log is cut whoever still needs it: while writes go on, each snapshot is obsolete when it arrives",
        edits=(
            Edit(
                "multiraft.group_compaction:Compaction._target",
                "return min(target, keep_after(self._members(), sizes, host.bounds), self._snapshots.floor)",
                "return target",
            ),
        ),
        sim=True,
        tests=(_COMPACTION + "test_a_member_that_was_away_catches_up_by_one_snapshot_while_writes_go_on",),
    ),
    Mutant(
        name="log-cut-by-entries-only",
        breaks="few large entries fill the log up to its bound although all of them are applied",
        edits=(
            Edit("multiraft.group_compaction:Compaction.consider", "pressed or total >= bounds.compact", "total < 0"),
            Edit("multiraft.group_compaction:Compaction.relieve", "> self._group.log.start.index", "< 0"),
        ),
        tests=(_COMPACTION + "test_few_large_entries_are_compacted_by_their_bytes",),
    ),
    Mutant(
        name="full-log-takes-writes",
        breaks="writes are taken beyond the bound of the log",
        edits=(Edit("multiraft.host:Host.submit", ">= engine.bounds.refused", "< 0"),),
        tests=(_COMPACTION + "test_a_log_that_cannot_be_cut_refuses_writes_and_serves_again_by_itself",),
    ),
    Mutant(
        name="interrupted-install-forgotten",
        breaks="a crash inside a snapshot's installation is not finished: state and log are of different times",
        edits=(Edit("multiraft.repair:Opener._opened", "if log.pending is not None:", "if log is None:"),),
        tests=(_SNAPSHOTS + "test_a_crash_in_any_step_of_an_install_is_finished_or_abandoned",),
    ),
    Mutant(
        name="reused-file-not-verified",
        breaks="a file that is here already is taken for one of a snapshot because its size is right",
        edits=(
            Edit(
                "multiraft.snapshots.receiver:SnapshotFetcher._link_if_equal",
                "if self._files.size(source) != file.size or self._files.checksum(source) != file.checksum:",
                "if self._files.size(source) != file.size:",
            ),
        ),
        tests=(_SNAPSHOTS + "test_a_file_of_another_content_is_not_reused",),
    ),
    Mutant(
        name="replicas-at-full-speed",
        breaks="the pause of a rebalance holds for key ranges only: a new replica comes as fast as it can",
        edits=(Edit("routing.pace:rest_of", "node in move.added", "node not in move.after"),),
        tests=("tests/catalog/planning/test_pace.py::test_a_new_replica_rests_as_long_as_ranges_of_as_many_documents",),
    ),
    Mutant(
        name="rest-in-silence",
        breaks="a sender drops the snapshot of who rests for long, and each next one, so that a slow move never ends",
        edits=(Edit("multiraft.snapshots.pacing:Pacing.after", "await still_here()", "pass"),),
        tests=("tests/multiraft/test_pacing.py::test_the_sender_hears_of_a_long_rest_and_a_new_pace_counts_at_once",),
    ),
    Mutant(
        name="lost-answer-waited-for",
        breaks="a damaged replica waits for the snapshot of a leader that leads no more as long as for one that leads",
        edits=(Edit("multiraft.rebuild:Rebuild._of", "if raft.leader != leader and", "if leader == '' and"),),
        tests=(
            _REBUILD + "test_an_answer_that_never_comes_is_not_waited_for_once_another_leads",
            _REBUILD + "test_what_is_fetched_of_a_leader_that_is_gone_is_fetched_of_the_next_one",
        ),
    ),
    Mutant(
        name="lost-answer-not-asked-for-again",
        breaks="a damaged replica waits ten minutes for an answer that was lost, as long as the same node leads",
        edits=(Edit("multiraft.rebuild:Rebuild._once", "body, host.config.snapshot_chunk_timeout", "body, 600.0"),),
        tests=(_REBUILD + "test_an_answer_that_never_comes_is_asked_for_again_while_the_same_node_leads",),
    ),
    Mutant(
        name="bad-snapshot-reported-once",
        breaks="a replica that reports a bad snapshot takes no offer for ten minutes if the answer is lost",
        edits=(
            Edit(
                "multiraft.group_snapshots:SnapshotTraffic._check",
                "request, host.config.snapshot_chunk_timeout",
                "request, 600.0",
            ),
        ),
        tests=(_REBUILD + "test_that_a_snapshot_is_bad_is_said_again_if_it_was_not_heard",),
    ),
    Mutant(
        name="a-snapshot-for-each-question",
        breaks="a leader makes one snapshot more for every time it is asked while it makes one",
        edits=(
            Edit(
                "multiraft.group_snapshots:SnapshotTraffic.exported",
                "async with self._export_lock:",
                "async with asyncio.Lock():",
            ),
        ),
        tests=(_REBUILD + "test_who_asks_again_while_a_snapshot_is_made_has_no_other_made",),
    ),
    Mutant(
        name="what-the-core-did-not-take-is-waited-for",
        breaks="a damaged replica waits for good for a snapshot that its core had no use for",
        edits=(
            Edit(
                "multiraft.group_snapshots:SnapshotTraffic._fetch_offer",
                "meta.index if group.raft.is_restoring else 0",
                "meta.index",
            ),
        ),
        tests=(_SNAPSHOTS + "test_what_the_core_had_no_use_for_is_not_waited_for",),
    ),
    Mutant(
        name="copied-block-not-compared",
        breaks="what a file of the receiver holds is taken for a block of a snapshot though it has changed since",
        edits=(
            Edit(
                "multiraft.snapshots.snapshot_blocks:Donor.copy",
                "if hash_of(block) == hashes[at]:",
                "if block:",
            ),
        ),
        tests=(_BLOCKS + "test_a_file_that_changes_while_it_is_copied_from_is_not_believed",),
    ),
    Mutant(
        name="copied-blocks-again-after-a-bad-checksum",
        breaks="a sender whose hashes are wrong is asked for them again: the snapshot never arrives",
        edits=(
            Edit(
                "multiraft.snapshots.receiver:SnapshotFetcher._fetch_file",
                "if attempt == 0 and have < file.size",
                "if have < file.size",
            ),
        ),
        tests=(_BLOCKS + "test_a_sender_that_lies_gets_nothing_installed[hashes]",),
    ),
    Mutant(
        name="image-packed-anew",
        breaks="an image is written row by row: after a purge none of its pages is in another replica's file",
        edits=(
            Edit(
                "shard.documents.store:DocumentStore.copy_to",
                "copy_pages(connection, target, version)",
                "import needle.shard.documents.sqlite_file as f; connection.execute('PRAGMA query_only=0'); "
                "f.copy_tables(connection, target)",
            ),
        ),
        tests=("tests/shard/test_snapshot.py::test_an_image_shares_its_pages_with_the_files_of_other_replicas",),
    ),
    Mutant(
        name="snapshot-files-not-verified",
        breaks="a snapshot is installed whatever arrived: a damaged file becomes the state",
        edits=(
            Edit(
                "multiraft.snapshots.receiver:SnapshotFetcher._fetch_file",
                "if await self._pool.run(self._files.checksum, path) == file.checksum:",
                "if have == file.size:",
            ),
        ),
        tests=(_SNAPSHOTS + "test_a_corrupt_file_is_never_installed",),
    ),
)
