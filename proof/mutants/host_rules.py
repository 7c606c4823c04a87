"""Bugs around the Raft core: the log on disk, restarts, repair, snapshots, answers (raft.md, sections 1 and 6)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_LOST = "tests/multiraft/test_lost_directories.py::"
_HOST = "tests/multiraft/test_host.py::"
_LOG = "tests/multiraft/test_log_store.py::"
_REPAIR = "tests/multiraft/test_repair.py::"
_REBUILD = "tests/multiraft/test_rebuild.py::"
_SNAPSHOTS = "tests/multiraft/test_snapshots.py::"
_BLOCKS = "tests/multiraft/test_snapshot_blocks.py::"
_COMPACTION = "tests/multiraft/test_compaction.py::"
_DISK = (
    "tests/sim/test_disk.py::"
    "test_power_lost_at_any_step_on_the_logs_files_leaves_a_log_that_opens_and_holds_what_returned"
)
_HOLES = "tests/multiraft/test_planted_bugs.py::"

MUTANTS = (
    Mutant(
        name="whoever-answers-is-the-node",
        breaks="a question to one node is answered by another one that has its address now, and its answer believed",
        edits=(Edit("rpc.peer_transport:PeerTransport.call", "timeout, to)", "timeout)"),),
        tests=("tests/rpc/test_peer_transport.py::test_two_nodes_at_one_address_do_not_take_it_from_each_other",),
    ),
    Mutant(
        name="timers-before-sockets",
        breaks="after a pause of the loop a follower campaigns at once, and its leader's heartbeats lie in its sockets",
        edits=(Edit("multiraft.engine:Engine._tick", "elif read or group", "elif True or group"),),
        tests=(
            "tests/multiraft/test_host.py::test_a_follower_reads_its_sockets_before_it_takes_its_leader_for_silent",
        ),
    ),
    Mutant(
        name="full-disk-passes-for-written",
        breaks="what found no room in the log counts as durable: votes and acknowledgements are forgotten",
        edits=(
            Edit(
                "multiraft.log.log_writer:LogWriter.persist",
                "loop.call_later(NO_ROOM_SECONDS, self._host.guarded, self.persist, (work, extra))",
                "self._written(work, extra, writes)",
            ),
        ),
        sim=True,
    ),
    Mutant(
        name="full-disk-passes-for-applied",
        breaks="what found no room in the state machine counts as applied: the replica lacks it forever",
        edits=(
            Edit(
                "multiraft.group:Group._start_apply",
                "host.spawn(self._apply_later(batch))",
                "self._applied(batch, [None] * len(batch))",
            ),
        ),
        tests=(_SNAPSHOTS + "test_what_finds_no_room_is_applied_later_and_the_node_lives",),
    ),
    Mutant(
        name="applied-in-part-passes-for-all",
        breaks="of what was applied in part the rest is forgotten: the replica stands still, whoever waits too",
        edits=(
            Edit(
                "multiraft.group:Group._applied",
                "batch, rest = batch[: len(results)], batch[len(results) :]",
                "batch, rest = batch[: len(results)], []",
            ),
        ),
        tests=(_SNAPSHOTS + "test_what_is_applied_in_part_is_answered_and_the_rest_follows",),
    ),
    Mutant(
        name="staged-after-a-failed-sync",
        breaks="snapshot files whose sync failed are used at the next attempt, which syncs nothing of what was lost",
        edits=(
            Edit(
                "multiraft.snapshots.receiver:SnapshotFetcher.fetch",
                "except NeedleError:",
                "except Overloaded:",
            ),
        ),
        tests=(_SNAPSHOTS + "test_after_a_failed_sync_what_was_fetched_is_not_used",),
    ),
    Mutant(
        name="log-not-synced",
        breaks="the log is written without fsync: a power cut takes back votes and acknowledgements",
        edits=(
            Edit(
                "multiraft.log.log_store:LogStore.write",
                "self._store.commit(fill, True)",
                "self._store.commit(fill, False)",
            ),
        ),
        sim=True,
    ),
    Mutant(
        name="vote-not-persisted",
        breaks="HardState is written without the vote: a restarted node votes again in the same term",
        edits=(
            Edit(
                "multiraft.log.log_store:_fill",
                "(HARD, write.hard_state),",
                '(HARD, write.hard_state and HardState(write.hard_state.term, "", write.hard_state.commit)),',
            ),
        ),
        sim=True,
    ),
    Mutant(
        name="vote-forgotten-at-restart",
        breaks="a restarted node starts without its vote: it can vote twice in a term",
        edits=(
            Edit(
                "multiraft.repair:Opener._open_whole",
                "HardState(hard_state.term, hard_state.vote, commit)",
                'HardState(hard_state.term, "", commit)',
            ),
        ),
        tests=(_HOLES + "test_a_restarted_replica_knows_its_term_and_its_vote",),
    ),
    Mutant(
        name="term-forgotten-at-restart",
        breaks="a restarted node starts with the term of its last entry: it votes again in terms it voted in before",
        edits=(
            Edit(
                "multiraft.repair:Opener._open_whole",
                "HardState(hard_state.term, hard_state.vote, commit)",
                'HardState(log.term(log.last_index()), "", commit)',
            ),
        ),
        sim=True,
        tests=(_HOLES + "test_a_restarted_replica_knows_its_term_and_its_vote",),
    ),
    Mutant(
        name="answer-when-proposed",
        breaks="a write is answered when it is in the leader's log, before any disk holds it",
        edits=(
            Edit(
                "multiraft.host:Host.submit",
                "replica.proposals.add(index, term, receiver, now + timeout)",
                "from needle.base import model; receiver.set_result(model.WriteResult(version=index, index=index))",
            ),
        ),
        sim=True,
        tests=(_HOST + "test_nothing_is_acknowledged_before_its_fsync",),
    ),
    Mutant(
        name="answer-of-another-entry",
        breaks="a write is answered with the result of whatever entry took its index: a lost write is confirmed",
        edits=(Edit("multiraft.proposals:Proposals.applied", "if pending.term != term:", "if pending.term < 0:"),),
        sim=True,
    ),
    Mutant(
        name="fsync-error-is-not-fatal",
        breaks="after a failed fsync the node goes on: the kernel has dropped the pages, a later fsync proves nothing",
        edits=(Edit("multiraft.engine:Engine.background_failed", "self.fail(error)", "self._writer.busy = False"),),
        tests=(_HOST + "test_fsync_error_is_fatal_for_all_groups_and_acknowledges_nothing",),
    ),
    Mutant(
        name="entry-checksum-not-checked",
        breaks="a flipped bit in a log entry is not noticed: one replica applies something else",
        edits=(
            Edit(
                "multiraft.log.log_records:decode_entry",
                "and zlib.crc32(checked, zlib.crc32(key)) == _CRC.unpack_from(value)[0]:",
                "and value:",
            ),
        ),
        tests=(_LOG + "test_a_flipped_bit_in_the_middle_is_told_from_a_torn_tail",),
    ),
    Mutant(
        name="record-checksum-not-checked",
        breaks="a flipped bit in HardState is not noticed: the node forgets a term or a vote",
        edits=(
            Edit(
                "multiraft.log.log_records:decode_record",
                "or zlib.crc32(value[_CRC.size :], zlib.crc32(key)) != _CRC.unpack_from(value)[0]:",
                "or not value:",
            ),
        ),
        tests=(_LOG + "test_a_flipped_bit_in_a_record_is_refused_by_name",),
    ),
    Mutant(
        name="torn-tail-accepted",
        breaks="the torn last record of the write-ahead log counts as whole: entries of garbage",
        edits=(
            Edit(
                "multiraft.log.wal_records:body_is_intact",
                "len(body) == head.length and xxhash.xxh3_64_intdigest(body, seed=salt) == head.body_hash",
                "len(body) <= head.length",
            ),
        ),
        tests=("tests/multiraft/test_wal_store.py::test_it_is_a_dict_that_survives_restarts_and_torn_commits",),
    ),
    Mutant(
        name="wal-not-synced",
        breaks="the write-ahead log is written and not flushed: all of the above, on real disks",
        edits=(Edit("multiraft.log.wal_store:WalStore._write", "self._files.flush(segment.handle)", "pass"),),
        tests=("tests/multiraft/test_wal_store.py::test_a_failed_fsync_is_final",),
    ),
    Mutant(
        name="commits-of-threads-overlap",
        breaks="two threads commit at once: the later record overwrites an acknowledged one, and the log does not open",
        edits=(Edit("multiraft.log.wal_store:WalStore.commit", "with self._writing:", "if True:"),),
        tests=("tests/multiraft/test_wal_store.py::test_commits_of_several_threads_come_one_after_another",),
    ),
    Mutant(
        name="header-before-its-name",
        breaks="a recycled file of the log gets its header before its new name is durable: after a power cut it stands "
        "under the old name, and the log does not open",
        edits=(
            Edit(
                "multiraft.log.wal_store:WalStore._roll",
                "    self._files.sync_names()\n"
                "    salt = self._salt()\n"
                "    try:\n"
                "        with self._may_wait():\n"
                "            self._files.write(handle, segment_header(number, salt), 0)\n"
                "    except SHORTAGES:\n"
                "        self._files.close(handle)\n"
                "        raise\n"
                "    self._files.flush(handle)",
                "    salt = self._salt()\n"
                "    try:\n"
                "        with self._may_wait():\n"
                "            self._files.write(handle, segment_header(number, salt), 0)\n"
                "    except SHORTAGES:\n"
                "        self._files.close(handle)\n"
                "        raise\n"
                "    self._files.flush(handle)\n"
                "    self._files.sync_names()",
            ),
            Edit("multiraft.log.wal_store:WalStore._free", "self._files.sync_names()", "pass"),
        ),
        tests=(_DISK,),
    ),
    Mutant(
        name="freed-names-not-synced",
        breaks="files of the log are given back without syncing their names: after a power cut an older one is there "
        "again, behind a gap",
        edits=(Edit("multiraft.log.wal_store:WalStore._free", "self._files.sync_names()", "pass"),),
        tests=(_DISK,),
    ),
    Mutant(
        name="unflushed-records-count-after-a-crash",
        breaks="what a process that died had written and not flushed is read at the next start and not flushed then",
        edits=(Edit("multiraft.log.wal_replay:Replay.run", "        files.flush(segment.handle)", "        pass"),),
        tests=(
            "tests/sim/test_disk.py::test_a_commit_that_a_dead_process_left_unflushed_counts_only_once_it_is_flushed",
        ),
    ),
    Mutant(
        name="flipped-bit-not-put-right",
        breaks="one flipped bit in the framing of the log, or in a vote, keeps the node from starting",
        edits=(Edit("multiraft.log.wal_correct:_find", "        if found:", "        if found and not data:"),),
        tests=("tests/multiraft/test_wal_store.py::test_every_flipped_bit_is_put_right",),
    ),
    Mutant(
        name="ends-of-old-ranges-are-believed",
        breaks="a range of the log is deleted to an end that may be damaged",
        edits=(
            Edit(
                "multiraft.log.wal_replay:Replay._replay_segment",
                "not ends_are_checked(memoryview(data)[start:end])",
                "False",
            ),
        ),
        tests=(
            "tests/multiraft/test_wal_store.py::"
            "test_a_range_as_earlier_releases_wrote_it_is_believed_with_its_whole_commit_only",
        ),
    ),
    Mutant(
        name="directories-are-not-remembered",
        breaks="a node whose directory was emptied or rolled back is accepted: acknowledged writes are lost",
        edits=(
            Edit("multiraft.lives:Lives._judge", "if remembered is not None and not answer.knows:", "if False:"),
            Edit("multiraft.lives:Lives._judge_own", "if mine is None:", "if True:"),
            Edit("multiraft.lives:Lives.answer", "self.missing(call.told) if knows else", ""),
        ),
        sim=True,
        tests=(_LOST + "test_an_emptied_or_older_directory_neither_acknowledges_nor_votes",),
        minutes=1.0,
        nodes=3,
    ),
    Mutant(
        name="a-leader-does-not-tell-what-it-has",
        breaks="a leader that comes back as a copy of itself, taken since its last start, is accepted",
        edits=(Edit("multiraft.lives:Lives.told", "message.hint if by_leader else 0", "0"),),
        tests=(
            _LOST + "test_a_copy_of_a_leader_that_ran_neither_votes_nor_follows",
            "tests/sim/test_runs.py::test_a_copy_of_a_leader_that_ran_is_noticed",
        ),
    ),
    Mutant(
        name="what-is-not-open-was-not-told",
        breaks="a copy of a directory that knows nothing of a replica is accepted, though that acknowledged entries",
        edits=(Edit("multiraft.lives:Lives.missing", "or (said.term, 0)", "or (said.term, said.index)"),),
        tests=(_LOST + "test_what_was_told_of_a_replica_counts_before_it_is_opened",),
    ),
    Mutant(
        name="a-leader-tells-what-it-has-not-written",
        breaks="a leader that dies before its own fsync is taken for one that lost what it had: it is stopped for good",
        edits=(Edit("raft.replication:_send_append", "hint=log.durable_index", "hint=log.last_index()"),),
        tests=("tests/raft/test_replication.py::test_a_leader_tells_what_is_on_its_own_disk_and_no_more",),
    ),
    Mutant(
        name="contradictions-are-not-looked-into",
        breaks="a replica whose committed entries another leader contradicts goes on: replicas differ forever",
        edits=(Edit("multiraft.doubts:own_loss", "index, own = doubt.index,", "return ''; index, own = doubt.index,"),),
        tests=(_LOST + "test_a_leader_that_lacks_what_is_committed_elsewhere_stops_and_so_does_who_holds_it",),
    ),
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
                "return min(target, keep_after(self._members(), sizes, host.bounds), group.snapshots.floor)",
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
        edits=(Edit("multiraft.host:Host.submit", ">= self.bounds.refused", "< 0"),),
        tests=(_COMPACTION + "test_a_log_that_cannot_be_cut_refuses_writes_and_serves_again_by_itself",),
    ),
    Mutant(
        name="interrupted-install-forgotten",
        breaks="a crash inside a snapshot's installation is not finished: state and log are of different times",
        edits=(Edit("multiraft.repair:Opener.open", "if log.pending is not None:", "if log is None:"),),
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
                "multiraft.snapshots.group_snapshots:SnapshotTraffic._check",
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
                "multiraft.snapshots.group_snapshots:SnapshotTraffic.exported",
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
                "multiraft.snapshots.group_snapshots:SnapshotTraffic._fetch_offer",
                "meta.index if group.raft.is_restoring else 0",
                "meta.index",
            ),
        ),
        sim=True,
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
                "copy_pages(connection, target)",
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
