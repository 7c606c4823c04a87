"""Bugs in the state machine and in what it does with writes: dedupe, conditions, patches (raft.md, 1, 5, 6)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_MACHINE = "tests/shard/test_state_machine.py::"
_FIELDS = "tests/shard/test_payload_index.py::"
_PATCHING = "tests/shard/test_patching.py::"
_WHERE = "tests/client/test_changes_by_filter.py::"

MUTANTS = (
    Mutant(
        name="new-vector-takes-the-metadata",
        breaks="a document that is given another vector loses its metadata",
        edits=(
            Edit("shard.apply.execute:_update_vectors", "[metadata[id_] for id_ in here]", '[b"{}" for id_ in here]'),
        ),
        sim=True,
        tests=("tests/shard/test_new_vectors.py::test_the_metadata_stays",),
    ),
    Mutant(
        name="a-patch-loses-a-field",
        breaks="a change of metadata begins with nothing: fields that it does not name are lost",
        edits=(Edit("shard.apply.patching:_edited", "if data not in _EMPTY:", "if False:"),),
        sim=True,
        tests=(_PATCHING + "test_what_is_not_named_keeps_its_bytes",),
    ),
    Mutant(
        name="a-patched-document-has-another-vector",
        breaks="what is found by its vector is not led to the newest version of its document",
        edits=(Edit("shard.places:Places.documents_of", "if not self._runs or", "if True or"),),
        tests=(_PATCHING + "test_places_are_what_a_dict_says",),
    ),
    Mutant(
        name="a-patched-vector-is-purged",
        breaks="the vector of a patched document is deleted with its former version",
        edits=(
            Edit(
                "shard.apply.changes:CollectionChange.write_to",
                "out.graves.extend((base | ordinal, DEAD_DOCUMENT) for",
                "out.graves.extend((base | ordinal, DEAD_DOCUMENT | DEAD_VECTOR) for",
            ),
        ),
        sim=True,
        tests=(_PATCHING + "test_what_is_patched_survives_purges_and_its_vector_goes_with_it",),
    ),
    Mutant(
        name="a-part-judges-what-changed-since",
        breaks="later parts of a delete by filter look at what was written after the first one",
        edits=(
            Edit(
                "shard.apply.where:change_where",
                "upto = last if command.upto < 0 else min(command.upto, last)",
                "upto = last",
            ),
        ),
        tests=(_PATCHING + "test_parts_of_a_change_touch_what_matched_at_the_first_and_did_not_change_since",),
    ),
    Mutant(
        name="a-change-by-a-filter-is-denied",
        breaks="when one shard does nothing, a change by a filter is said to have done nothing, whatever others did",
        edits=(Edit("client.where:WhereWork._failure", "if changed or unknown:", "if unknown:"),),
        tests=(_WHERE + "test_when_a_shard_fails_nothing_is_under_way_any_more_and_what_is_done_is_said",),
    ),
    Mutant(
        name="a-range-that-moved-is-judged-twice",
        breaks="when ranges move, shards are asked again for all they own: what was changed is changed twice",
        edits=(
            Edit(
                "client.router.by_filter:change_in_shards",
                "intersection(now.ranges(shard), left)",
                "now.ranges(shard)",
            ),
        ),
        tests=(_WHERE + "test_ranges_that_move_are_judged_once",),
    ),
    Mutant(
        name="a-range-that-moved-is-skipped",
        breaks="what a shard refuses because it moved is asked of nobody else: a delete by filter leaves it",
        edits=(Edit("client.router.by_filter:change_in_shards", "work.left.extend(ranges)", "pass"),),
        tests=(_WHERE + "test_ranges_that_move_are_judged_once",),
    ),
    Mutant(
        name="a-condition-is-not-asked",
        breaks="a write with a condition on the stored document is executed whatever is stored",
        edits=(Edit("shard.apply.execute:_check_matches", "if not command.matches:", "if True:"),),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_PATCHING + "test_conditions_of_writes",),
    ),
    Mutant(
        name="a-change-by-a-filter-skips-a-shard",
        breaks="the last shard is not asked to change, or delete, what matches a filter",
        edits=(
            Edit(
                "client.router.by_filter:change_in_shards",
                "for shard in now.owners]\n    while",
                "for shard in now.owners[: max(1, len(now.owners) - 1)]]\n    while",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
    ),
    Mutant(
        name="a-change-by-a-filter-runs-twice",
        breaks="a part of a change by a filter that comes again, because its answer was lost, is executed again",
        edits=(
            Edit(
                "shard.apply.execute:execute",
                "known = batch.sessions.find(numbered, index, 0 if bound is None else bound.owner)",
                "known = None if isinstance(command, ChangeWhere) else batch.sessions.find(numbered, index, 0)",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
    ),
    Mutant(
        name="a-scan-by-an-index-loses-what-came-since",
        breaks="a page of few documents, which indexes tell, lacks what was written since they were looked at",
        edits=(Edit("shard.documents.scans:some", '"end": base + end', '"end": base + MASK'),),
        tests=("tests/shard/test_scans_by_index.py::test_what_is_written_between_the_look_and_the_read_is_not_lost",),
    ),
    Mutant(
        name="a-cursor-repeats-a-document",
        breaks="a page of a scan begins with the document that ended the one before",
        edits=(Edit("shard.documents.scans:current", "i.id > ?", "i.id >= ?"),),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=("tests/shard/test_reference_model.py::test_a_collection_is_what_a_plain_model_says",),
    ),
    Mutant(
        name="a-page-cuts-documents-of-one-id",
        breaks="a page ends between documents of two shards with one id: the second is on no page",
        edits=(
            Edit(
                "client.router.merge:merge_pages",
                "rows = [one for one in rows if one[0] <= bound]",
                "rows = rows[:limit]",
            ),
        ),
        tests=("tests/client/test_scans.py::test_pages_of_shards_lose_and_repeat_nothing",),
    ),
    Mutant(
        name="a-page-goes-beyond-what-all-shards-reached",
        breaks="a page shows what lies behind the end of another shard's page, whose rest is then on no page",
        edits=(
            Edit(
                "client.router.merge:merge_pages",
                "if bound is None or place <= bound",
                "if True",
            ),
        ),
        tests=("tests/client/test_scans.py::test_pages_of_shards_lose_and_repeat_nothing",),
    ),
    Mutant(
        name="work-for-nobody",
        breaks="a search goes on when its time is over: a few with heavy filters keep all others waiting for minutes",
        edits=(Edit("shard.searching:while_wanted", "if not any(map(wanted, members))", "if False"),),
        tests=(_FIELDS + "test_a_filter_is_not_worked_on_for_nobody",),
    ),
    Mutant(
        name="keys-with-accents-are-skipped",
        breaks="fields whose names are not plain ASCII are lost in decoding: filters on them match nothing",
        edits=(
            Edit("shard.documents.metadata_rows:decode_rows", " if all(map(str.isascii, keys)) else _all_keys", ""),
        ),
        tests=(_FIELDS + "test_a_field_is_found_whatever_letters_its_name_has",),
    ),
    Mutant(
        name="no-handle-passes-for-damage",
        breaks="an index file that cannot be opened for want of file handles is taken for damaged, and deleted",
        edits=(Edit("shard.segments.format:verify_file", "raise shortage(error, path) or damaged", "raise damaged"),),
        tests=("tests/shard/test_snapshot.py::test_an_index_file_that_cannot_be_opened_now_is_not_damaged",),
    ),
    Mutant(
        name="no-memory-passes-for-damage",
        breaks="an index file that cannot be mapped for want of memory or handles is taken for damaged, and deleted",
        edits=(Edit("shard.segments.opened:wanting", "return shortage(error, path)", "return None"),),
        tests=(
            "tests/shard/test_sealed_segment.py::test_a_base_that_cannot_be_opened_for_want_of_handles_is_not_damaged",
        ),
    ),
    Mutant(
        name="writes-judged-slowly",
        breaks="a write is decoded again for each of its bytes on the event loop: heartbeats of all groups wait",
        edits=(
            Edit(
                "server.service.checks:Ownerships.checked",
                "command = command_of(call)",
                "command = [command_of(call) for _ in range(400 * len(call.command))][0]",
            ),
        ),
        sim=True,
        stalls=True,
    ),
    Mutant(
        name="applied-index-outside-transaction",
        breaks="the applied index is committed after the data (etcd#13766): a crash in between applies entries twice",
        edits=(
            Edit(
                "shard.documents.writer:DocumentWriter._commit",
                'many("UPDATE meta',
                'run("COMMIT"); run("BEGIN IMMEDIATE"); many("UPDATE meta',
            ),
        ),
        sim=True,
        tests=(_MACHINE + "test_killed_around_the_commit",),
    ),
    Mutant(
        name="reads-miss-what-waits",
        breaks="batches that wait for their commit are not committed before a read: acknowledged writes are not found",
        edits=(Edit("shard.documents.store:DocumentStore.reading", "self.writer.save()", "pass"),),
        sim=True,
        tests=("tests/shard/test_document_writer.py::test_batches_wait_until_somebody_reads",),
    ),
    Mutant(
        name="searches-miss-what-waits",
        breaks="a search does not have the documents committed that it found: they are not there",
        edits=(Edit("shard.documents.writer:DocumentWriter.save_up_to", "self.save()", "pass"),),
        sim=True,
        tests=("tests/shard/test_document_writer.py::test_a_search_waits_for_the_commit_of_what_it_found_only",),
    ),
    Mutant(
        name="commands-miss-what-waits",
        breaks="a write does not see the version that waits for its commit: two documents have one id",
        edits=(Edit("shard.documents.writer:DocumentWriter.find", "if self._waiting is not None:", "if False:"),),
        sim=True,
        tests=("tests/shard/test_document_writer.py::test_commands_see_what_waits",),
    ),
    Mutant(
        name="live-ordinals-change-under-a-view",
        breaks="a batch changes the set of live ordinals that older views hold: a search finds what is newer than it",
        edits=(Edit("shard.ordinal_set:OrdinalSet._copy", "BitMap(held)", "held"),),
        tests=("tests/shard/test_ordinal_set.py::test_the_same_as_a_set_of_integers",),
    ),
    Mutant(
        name="keeper-is-not-told",
        breaks="apply does not say which collections changed: their vectors are never indexed, dropped files stay",
        edits=(
            Edit(
                "shard.opened_state:OpenedState._swap",
                "self._around.changed.note(batch.dropped, changes.collections)",
                "pass",
            ),
        ),
        tests=("tests/shard/test_costs.py::test_the_keeper_looks_at_what_changed",),
    ),
    Mutant(
        name="directory-of-before-a-snapshot",
        breaks="a snapshot that is installed while a new replica lists its index files ends the node",
        edits=(Edit("shard.segments.files:SegmentFiles.follow", "if directory == current():", "if True:"),),
        tests=("tests/shard/test_segment_keeper.py::test_a_snapshot_may_replace_the_directory_while_it_is_listed",),
    ),
    Mutant(
        name="next-leader-does-not-ask-who-builds",
        breaks="a new leader builds what the former one builds already: each change of leader doubles the work",
        edits=(Edit("shard.segments.builds:SegmentBuilds.elsewhere", "if any(answers):", "if False:"),),
        tests=("tests/shard/test_segment_keeper.py::test_a_build_goes_on_when_leadership_moves",),
    ),
    Mutant(
        name="total-forgets-what-is-dropped",
        breaks="the number of all documents keeps those of dropped collections",
        edits=(Edit("shard.opened_state:OpenedState._swap", "visible - gone.counted, size", "visible, size"),),
        tests=("tests/shard/test_costs.py::test_the_total_is_the_sum_of_the_collections",),
    ),
    Mutant(
        name="no-dedupe",
        breaks="a repeated write is executed again: a lost answer doubles its effect",
        edits=(Edit("shard.apply.execute:execute", "if known is not None:", "if isinstance(known, NeedleError):"),),
        sim=True,
        tests=(_MACHINE + "test_session_of_a_duplicate_is_not_executed_again",),
    ),
    Mutant(
        name="judged-after-the-session",
        breaks="a session remembers a write that could not be judged for want of room: replicas differ",
        edits=(
            Edit("shard.apply.execute:execute", "batch.read_ahead(command)", "pass"),
            Edit(
                "shard.apply.execute:_run",
                "if isinstance(command, Insert):",
                "if isinstance(command, Insert | Delete) and batch.read_ahead(command) or isinstance(command, Insert):",
            ),
        ),
        tests=("tests/shard/test_shortages.py::test_a_write_that_cannot_be_judged_now_is_executed_once_later",),
    ),
    Mutant(
        name="applied-to-a-replaced-state",
        breaks="entries are applied to a state that an installation replaced on the disk: a restart loses them",
        edits=(Edit("shard.state_machine:Replica.apply", "self._states.open_installed()", "pass"),),
        tests=("tests/shard/test_shortages.py::test_what_was_swapped_in_is_opened_before_anything_is_applied",),
    ),
    Mutant(
        name="replaced-state-deleted-under-searches",
        breaks="the state before an installation may be deleted while searches still read it",
        edits=(
            Edit("shard.states:States.open_installed", "self.damage = None", "self.damage = None; self._left = state"),
        ),
        tests=("tests/shard/test_shortages.py::test_a_state_that_searches_still_read_is_not_deleted_under_them",),
    ),
    Mutant(
        name="damage-passes-for-a-shortage",
        breaks="damage that is found while the disk is full is answered as a shortage, which is tried again",
        edits=(Edit("shard.states:States.found_damage", "(StorageError, *SHORTAGES)", "StorageError"),),
        tests=("tests/shard/test_damage.py::test_damage_that_cannot_be_written_down_for_now_is_damage_all_the_same",),
    ),
    Mutant(
        name="sessions-left-out-of-the-snapshot",
        breaks="an installed snapshot brings no dedupe table: replicas disagree on what was executed before",
        edits=(
            Edit(
                "shard.states:States.open_installed",
                "self._load(state)",
                "self._load(state); self.opened.sessions = SessionTable()",
            ),
        ),
        sim=True,
        tests=("tests/shard/test_snapshot.py::test_round_trip_carries_everything",),
    ),
    Mutant(
        name="sessions-forgotten-at-restart",
        breaks="the dedupe table is not read back: a restarted replica executes repeated writes again",
        edits=(
            Edit(
                "shard.opened_state:OpenedState._load",
                "self.sessions = SessionTable(sessions, answers)",
                "self.sessions = SessionTable()",
            ),
        ),
        sim=True,
    ),
    Mutant(
        name="retry-with-a-new-number",
        breaks="the client numbers a repeated write again: it is executed twice",
        edits=(
            Edit(
                "client.group:GroupClient.write",
                "self._place.body(self.group, make(session))",
                "lambda left: self._place.body(self.group, make(numbers.next()))(left)",
            ),
        ),
        sim=True,
        tests=("tests/client/test_group.py::test_a_lost_answer_is_asked_for_again_under_the_same_number",),
    ),
    Mutant(
        name="flipped-bits-are-served",
        breaks="neither pages nor documents are compared with what was written: what rotted on a disk is served",
        edits=(
            Edit(
                "shard.documents.sqlite_file:connect",
                "connection.set_busy_timeout(10_000)",
                "connection.execute('PRAGMA checksum_verification=OFF').fetchall()",
            ),
            Edit("shard.documents.row_check:check_rows", "!= hash_:", "is None:"),
        ),
        sim=True,
        tests=("tests/shard/test_damage.py::test_two_flipped_bits_anywhere_are_never_served",),
        minutes=1.0,
    ),
    Mutant(
        name="rotten-frames-are-moved",
        breaks="a bit that flips in SQLite's write-ahead log gets a right checksum with its page: served for good",
        edits=(Edit("shard.documents.wal_check:WalCheck.run", "if frames <= moved:", "if True:"),),
        tests=("tests/shard/test_wal_check.py::test_a_flipped_bit_anywhere_in_a_frame_is_found_before_it_is_moved",),
    ),
    Mutant(
        name="conditions-not-checked",
        breaks="compare-and-set and insert-if-absent always succeed",
        edits=(
            Edit(
                "shard.apply.execute:_check_versions",
                "if command.expected is None:",
                "if command.expected is not Ellipsis:",
            ),
        ),
        sim=True,
        tests=(_MACHINE + "test_refusals_change_nothing_and_name_the_reason",),
    ),
)
