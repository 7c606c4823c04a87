"""Bugs around the Raft core: the log on disk, restarts, answers (raft.md, sections 1 and 6)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_LOST = "tests/multiraft/test_lost_directories.py::"
_HOST = "tests/multiraft/test_host.py::"
_LOG = "tests/multiraft/test_log_store.py::"
_SNAPSHOTS = "tests/multiraft/test_snapshots.py::"
_DISK = (
    "tests/sim/test_disk.py::"
    "test_power_lost_at_any_step_on_the_logs_files_leaves_a_log_that_opens_and_holds_what_returned"
)
_STEPS = "tests/multiraft/test_apply_steps.py::"
_GATHERS = "multiraft.apply_steps:ApplySteps.gathers"
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
        name="writes-wait-for-quiet",
        breaks="while callers keep asking, writes that were proposed are neither sent nor written",
        edits=(
            Edit("multiraft.gathering:Gathering.due", "self._waited < LOOP_TURNS_MAX and self.more()", "self.more()"),
        ),
        tests=("tests/multiraft/test_gathering.py::test_every_turn_has_a_bound_of_its_own",),
    ),
    Mutant(
        name="each-turn-an-append",
        breaks="the writes of one client become several small appends, each with a frame and a sync of its own",
        edits=(Edit("multiraft.gathering:Gathering.due", "self._waited < LOOP_TURNS_MAX and self.more()", "False"),),
        tests=(
            "tests/multiraft/test_gathering.py::"
            "test_writes_that_begin_in_several_turns_of_the_event_loop_are_one_append",
        ),
    ),
    Mutant(
        name="awaited-entries-gathered",
        breaks="what somebody waits for on a follower is gathered, too: reads of one's own writes are late",
        edits=(Edit("multiraft.apply_steps:ApplySteps.gathers", " and not awaited", ""),),
        tests=(_STEPS + "test_what_somebody_waits_for_on_a_follower_is_applied_at_once",),
    ),
    Mutant(
        name="gathered-forever",
        breaks="a follower that hears nothing more never applies what it knows to be committed",
        edits=(
            Edit(
                "multiraft.apply_steps:ApplySteps.gathers", "min(self.next_deadline, now + config.apply_delay)", "FAR"
            ),
        ),
        tests=(_STEPS + "test_a_follower_that_hears_nothing_more_applies_what_it_has",),
    ),
    Mutant(
        name="each-append-an-apply",
        breaks="a follower applies each append alone, at the fixed cost of an apply",
        edits=(Edit(_GATHERS, "return True", "return False"),),
        tests=(_STEPS + "test_a_follower_applies_in_larger_steps_than_it_acknowledges",),
    ),
    Mutant(
        name="leadership-for-who-rests",
        breaks="a node in maintenance offers its groups to others in maintenance: they take no writes meanwhile",
        edits=(Edit("multiraft.heirs:Heirs.best", "voter not in self.resting", "voter"),),
        tests=("tests/multiraft/test_host.py::test_nothing_is_offered_to_who_is_in_maintenance_and_writes_go_on",),
    ),
    Mutant(
        name="one-heir-for-ever",
        breaks="who does not take a group's leadership is asked again and again, and nobody else",
        edits=(Edit("multiraft.heirs:Heirs._offer", "asked.add(heir)", "pass"),),
        tests=("tests/multiraft/test_host.py::test_leadership_is_offered_to_those_in_turn_who_may_lead",),
    ),
    Mutant(
        name="no-room-for-ever",
        breaks="a node whose disk was low once refuses data for good, and what is to come to it waits",
        edits=(Edit("server.machine.disk_space:DiskSpace._judge", "self._change(False)", "pass"),),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=("tests/server/test_disk_space.py::test_it_takes_more_room_to_begin_again_than_to_stop",),
    ),
    Mutant(
        name="no-memory-for-ever",
        breaks="a node whose memory was low once refuses data for good",
        edits=(
            Edit(
                "server.machine.memory_space:MemorySpace.look",
                "bool(self.limit) and self.own > self.limit - (step if self.low else 0)",
                "self.low or (bool(self.limit) and self.own > self.limit)",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=("tests/server/test_memory_space.py::test_both_end_a_sixteenth_below_where_they_began",),
    ),
    Mutant(
        name="full-disk-passes-for-written",
        breaks="what found no room in the log counts as durable: votes and acknowledgements are forgotten",
        edits=(
            Edit(
                "multiraft.log_writer:LogWriter.persist",
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
)
