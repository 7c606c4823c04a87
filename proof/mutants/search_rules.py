"""Bugs in searches and reads: segments and their files, filters, sessions."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_BUILDER = "tests/shard/test_sealed_segment.py::"
_KINDS = "tests/shard/test_index_kinds.py::"
_SEGMENTS = "tests/shard/test_segment_set.py::"
_KEEPER = "tests/shard/test_segment_keeper.py::"
_CHANGES = "tests/shard/test_index_changes.py::"
_FIELDS = "tests/shard/test_payload_index.py::"
_LISTS = "tests/shard/test_allow_lists.py::"
_FIELD_FILES = "tests/shard/test_field_files.py::"
_DECLARED = "tests/shard/test_declared_fields.py::"
_FIELD_DISK = "tests/shard/test_field_files_disk.py::"

MUTANTS = (
    Mutant(
        name="first-answer-for-all",
        breaks="each search of many in one call is given the hits of the first",
        edits=(
            Edit(
                "client.router.merge:merged_searches",
                "each[at] for each in decoded.values()",
                "each[0] for each in decoded.values()",
            ),
        ),
        sim=True,
        tests=("tests/client/test_searches.py::test_each_search_of_many_gets_its_own_hits",),
    ),
    Mutant(
        name="a-measured-beam-is-not-used",
        breaks="searches are as wide as the collection says, whatever the graph of a file needs",
        edits=(
            Edit(
                "shard.segments.sealed:SealedSegment._effort",
                "self.beam.width if measured else 0",
                "0",
            ),
        ),
        tests=("tests/shard/test_beams.py::test_each_preset_finds_what_it_should",),
    ),
    Mutant(
        name="a-graph-measured-by-its-own-vectors",
        breaks="the beam of a graph is measured by vectors that it has, which it finds whatever it misses of others",
        edits=(
            Edit(
                "shard.segments.graph_builder:GraphBuilder._insert_measured",
                "self._measure(waiting[-tail:][sample(tail)])",
                "self._measure(self._nodes()[sample(tail)])",
            ),
        ),
        tests=("tests/shard/test_beams.py::test_each_preset_finds_what_it_should",),
    ),
    Mutant(
        name="lengths-of-stored-rows-are-passed-over",
        breaks="exact searches of whole numbers under cosine take long vectors for near ones",
        edits=(
            Edit(
                "shard.segments.scoring:Scan._keys_of_stored",
                "np.sqrt(square_norms(wide))",
                "np.ones(len(wide), np.float32)",
            ),
        ),
        tests=("tests/shard/test_scoring.py::test_stored_rows_are_found_as_what_is_scored_would_be",),
    ),
    Mutant(
        name="codes-decide-what-is-nearest",
        breaks="what codes find nearest is given, though full vectors would show others nearer",
        edits=(
            Edit(
                "shard.segments.opened:OpenIndex.rescored",
                "max(k + RESCORE_MARGIN, beam if self.kind in CODES else 0)",
                "k",
            ),
        ),
        tests=(_KINDS + "test_candidates_are_scored_from_full_vectors",),
    ),
    Mutant(
        name="a-segment-scored-twice",
        breaks="documents of an index file are found twice",
        edits=(
            Edit(
                "shard.segments.view:VectorsView._candidates",
                "+= sealed.search(",
                "+= 2 * sealed.search(",
            ),
        ),
        sim=True,
        tests=(_KINDS + "test_candidates_are_scored_from_full_vectors",),
    ),
    Mutant(
        name="files-of-a-switch-one-by-one",
        breaks="a replica that lacks files of the index that was switched to searches by some of each",
        edits=(
            Edit(
                "shard.segments.collection_vectors:CollectionVectors._take_arrived", "if self._switching:", "if False:"
            ),
        ),
        tests=(_CHANGES + "test_a_replica_without_all_files_never_mixes_the_two_indexes",),
    ),
    Mutant(
        name="a-switch-that-mixes-two-indexes",
        breaks="all replicas go over when the first file of the new index is there, and search by some of each",
        edits=(
            Edit(
                "shard.index_change:is_staged",
                "return covered(there) == covered(manifest)",
                "return bool(there)",
            ),
            Edit("shard.index_change:next_stage", "covered(state.staged) if same else 0", "-1 if same else 0"),
        ),
        sim=True,
        tests=(_CHANGES + "test_what_does_not_fit_is_refused",),
    ),
    Mutant(
        name="a-file-of-the-index-of-before",
        breaks="a build that began before a switch is published after it",
        edits=(
            Edit(
                "shard.apply.indexing:_publish",
                "manifest is None or generation != batch.indexing(change).generation",
                "manifest is None",
            ),
        ),
        tests=(_CHANGES + "test_a_file_of_the_index_of_before_is_not_published_after_the_switch",),
    ),
    Mutant(
        name="a-graph-extended-by-another-metric",
        breaks="a graph whose codes are compared otherwise than its vectors gets new vectors at the wrong places",
        edits=(
            Edit(
                "shard.segments.graph_builder:graph_over",
                "index.hnsw.is_similarity = faiss_metric(spec.metric) == faiss.METRIC_INNER_PRODUCT",
                "pass",
            ),
        ),
        tests=(_KINDS + "test_recall",),
    ),
    Mutant(
        name="deletes-lost-when-a-segment-arrives",
        breaks="a built or merged segment serves rows that were deleted meanwhile",
        edits=(Edit("shard.segments.collection_vectors:CollectionVectors._replaced", ".only(part)", ""),),
        sim=True,
        tests=(_SEGMENTS + "test_results_do_not_depend_on_when_files_arrive",),
    ),
    Mutant(
        name="a-published-file-is-deleted-by-its-builder",
        breaks="who built a file and leads no more deletes it before its own log names it: nobody has it",
        edits=(Edit("shard.segments.keeper:SegmentKeeper._sweep", "vectors.opened()", "vectors.attached()"),),
        tests=(_KEEPER + "test_a_file_that_is_published_elsewhere_is_kept_until_the_log_names_it_here",),
    ),
    Mutant(
        name="search-ignores-deletes",
        breaks="a search finds deleted and replaced documents",
        edits=(
            Edit(
                "shard.segments.collection_vectors:CollectionVectors.tombstone",
                "self._staged_dead.extend(ordinals)",
                "pass",
            ),
        ),
        sim=True,
        tests=(_SEGMENTS + "test_search_equals_brute_force",),
    ),
    Mutant(
        name="filter-dropped",
        breaks="a filtered search returns documents that the filter excludes",
        edits=(Edit("shard.query:allowed_ordinals", "both(filter_json, bound, limits)", "both(b'', bound, limits)"),),
        sim=True,
        tests=(
            "tests/shard/test_payload_index.py::test_filtered_search_is_exact_and_sees_one_applied_index_while_writes_go_on",
        ),
    ),
    Mutant(
        name="allow-list-of-before",
        breaks="a filter that was asked before does not find what was written since",
        edits=(
            Edit(
                "shard.fields.allow_lists:AllowLists.find",
                "elif kept.changes == moment.changes:",
                "elif kept.changes <= moment.changes:",
            ),
        ),
        sim=True,
        tests=(_LISTS + "test_a_list_is_what_judging_anew_finds_at_any_moment",),
    ),
    Mutant(
        name="allow-list-of-later",
        breaks="a search by a former state is given a list without what died since",
        edits=(
            Edit(
                "shard.fields.allow_lists:AllowLists.find",
                "kept is None or kept.changes > moment.changes",
                "kept is None",
            ),
        ),
        sim=False,
        tests=(
            _LISTS + "test_a_list_is_what_judging_anew_finds_at_any_moment",
            _LISTS + "test_a_replica_remembers_no_list_that_differs_from_judging_anew",
        ),
    ),
    Mutant(
        name="range-takes-its-open-bound",
        breaks="$gt and $lt find documents whose value equals the bound",
        edits=(
            Edit(
                "shard.fields.value_columns:Column.between", "start = zone.lo if inside else zone.hi", "start = zone.lo"
            ),
        ),
        sim=False,
        tests=(_FIELDS + "test_every_bound_of_every_ordered_operator",),
    ),
    Mutant(
        name="index-hides-what-it-lacks",
        breaks="documents that an index does not have yet count as not matching instead of undecided",
        edits=(Edit("shard.fields.filter_match:_compared", "maybe | (universe - inside)", "maybe"),),
        sim=True,
        tests=(_FIELDS + "test_whatever_is_indexed_the_answer_is_what_the_docs_say",),
    ),
    Mutant(
        name="not-forgets-what-is-undecided",
        breaks="$not, $ne and $nin take what an index cannot tell for a match",
        edits=(Edit("shard.fields.field_index:negated", "universe - found.sure - maybe", "universe - found.sure"),),
        sim=False,
        tests=(_FIELDS + "test_whatever_is_indexed_the_answer_is_what_the_docs_say",),
    ),
    Mutant(
        name="instants-by-code-point",
        breaks="an instant is compared as text: another zone or fraction is missed in silence",
        edits=(Edit("base.instants:instant_key", "- offset", "- 0"),),
        sim=False,
        tests=("tests/base/test_filter_operators.py::test_an_instant_matches_however_it_was_written",),
    ),
    Mutant(
        name="apply-waits-for-indexing",
        breaks="apply needs the lock that a search holds while it builds an index",
        edits=(
            Edit(
                "shard.fields.payload_index:PayloadIndex.add",
                "self._tail.add(documents)",
                "with self._building: self._tail.add(documents)",
            ),
        ),
        sim=False,
        tests=(_FIELDS + "test_apply_never_waits_for_a_search",),
    ),
    Mutant(
        name="stale-field-index-is-taken",
        breaks="a kept field index of documents that a power cut took is used for those that come in their place",
        edits=(Edit("shard.fields.field_files:FieldFiles._find", "name.applied <= applied and", ""),),
        sim=False,
        tests=(_FIELD_FILES + "test_a_file_without_what_was_purged_is_not_taken_for_documents_of_before",),
    ),
    Mutant(
        name="damaged-field-index-is-taken",
        breaks="the checksum of a kept field index is not compared: filters answer by what a bad disk made of it",
        edits=(
            Edit(
                "shard.fields.run_format:decode",
                " or data[len(MAGIC) : start] != xxhash.xxh3_128_digest(body)",
                "",
            ),
        ),
        sim=False,
        tests=(_FIELD_FILES + "test_what_is_damaged_is_made_anew",),
    ),
    Mutant(
        name="kept-field-index-is-taken-for-whole",
        breaks="a field index from a file counts as one of all documents: what was written since it was saved, patches"
        " among it, is missed by filters after a restart",
        edits=(
            Edit(
                "shard.fields.payload_index:PayloadIndex._recall",
                "self._hold(one, state, None)",
                "self._hold(one, state._replace(end=max(state.end, self._end)), None)",
            ),
        ),
        sim=True,
        tests=(_FIELD_FILES + "test_a_file_does_not_serve_what_was_before_a_change",),
    ),
    Mutant(
        name="kept-field-index-of-another-collection",
        breaks="files of field indexes are found by the field alone: a collection answers by another one's values",
        edits=(
            Edit("shard.fields.field_files:place_of", "return collection_id,", "return 1,"),
            Edit("shard.fields.run_format:decode", "(collection_id, tuple(", "(head.collection_id, tuple("),
            Edit("shard.fields.field_files:FieldFiles._find", "(name.collection_id, name.field)", "(1, name.field)"),
        ),
        sim=False,
        tests=(_FIELD_FILES + "test_each_collection_has_its_own_files",),
    ),
    Mutant(
        name="closed-field-files-are-written",
        breaks="a file comes into a state directory that an installed snapshot deletes",
        edits=(Edit("shard.fields.field_files:FieldFiles.save", "self._closed or ", ""),),
        sim=False,
        tests=(_FIELD_FILES + "test_whoever_closes_waits_for_what_is_written_and_nothing_is_deleted_after",),
    ),
    Mutant(
        name="field-indexes-in-use-make-place",
        breaks="two indexes that have no room together are written in turn forever",
        edits=(Edit("shard.fields.field_files:FieldFiles._room", "if at not in held", ""),),
        sim=False,
        tests=(_FIELD_DISK + "test_what_is_in_use_makes_no_place",),
    ),
    Mutant(
        name="declared-field-takes-the-place-of-others",
        breaks="a field whose index is declared makes the catalog forget those that were declared before",
        edits=(Edit("catalog.collections:declare_field", "{*found.fields, path}", "{path}"),),
        sim=True,
        sharded=True,
        tests=("tests/cluster/test_declared_fields.py::test_the_catalog_keeps_what_is_declared",),
    ),
    Mutant(
        name="declared-field-makes-place",
        breaks="a declared index is given up for one that nobody declared",
        edits=(Edit("shard.fields.index_budget:IndexBudget._make_room", "and not one.declared", ""),),
        sim=False,
        tests=(_DECLARED + "test_a_declared_field_takes_the_place_of_others_and_gives_none",),
    ),
    Mutant(
        name="declared-index-is-ready-at-once",
        breaks="describe_collection calls a declared index ready that has no document yet",
        edits=(Edit("shard.fields.field:declared_of", "one.state.end >= one.goal", "True"),),
        sim=False,
        tests=(_DECLARED + "test_a_declared_field_is_indexed_without_a_search",),
    ),
    Mutant(
        name="session-token-ignored",
        breaks="an eventual read with a session answers from before the session's own writes",
        edits=(
            Edit(
                "server.service.reads:Reads.fresh",
                "if fresh.min_index > host.applied_index(group):",
                "if fresh.min_index < 0:",
            ),
        ),
        sim=True,
    ),
    Mutant(
        name="index-file-not-synced",
        breaks="an index file gets its final name before its content is on disk: after a power cut it is torn",
        edits=(Edit("shard.segments.builder:_write", "disk.sync(temporary)", "pass"),),
        sim=True,
        tests=(_BUILDER + "test_a_file_is_synced_before_it_has_its_name_and_the_directory_after",),
    ),
    Mutant(
        name="index-name-not-synced",
        breaks="the directory of a built index file is not synced: the log publishes a file that a power cut takes",
        edits=(Edit("shard.segments.builder:_write", "disk.sync(directory)", "pass"),),
        sim=True,
        tests=(_BUILDER + "test_a_file_is_synced_before_it_has_its_name_and_the_directory_after",),
    ),
    Mutant(
        name="first-filters-take-all-threads",
        breaks="searches that make field indexes occupy all search threads: no other search is answered meanwhile",
        edits=(
            Edit("shard.fields.builders:Builders.__init__", "max(1, search_threads // SHARE)", "16 * search_threads"),
        ),
        tests=("tests/server/test_first_filters.py::test_first_filters_on_many_fields_leave_a_thread",),
    ),
    Mutant(
        name="cut-file-is-searched",
        breaks="the size of a mapped index file is not compared before it is used: one that was cut ends the process",
        edits=(Edit("shard.segments.sealed:SealedSegment.check_size", "if size < self._file_bytes:", "if size < 0:"),),
        tests=("tests/shard/test_sealed_segment.py::test_a_file_that_was_made_shorter_is_not_read",),
    ),
    Mutant(
        name="download-not-synced",
        breaks="a fetched index file gets its final name before its content is on disk",
        edits=(Edit("shard.segments.files:finish_download", "disk.sync(part)", "pass"),),
        sim=True,
        tests=(_BUILDER + "test_a_download_is_synced_before_it_has_its_name_and_the_directory_after",),
    ),
    Mutant(
        name="recall-is-measured-against-itself",
        breaks="a search is asked again as it was, and always finds all that it finds",
        edits=(Edit("shard.recall:recall_of", "asked(exact=True)", "asked(exact=False)"),),
        tests=("tests/server/test_recall.py::test_it_is_the_share_of_the_exact_hits",),
    ),
    Mutant(
        name="recall-is-measured-whatever-else-waits",
        breaks="exact searches are asked in the background while callers wait for theirs",
        edits=(Edit("server.chores.recall:Recall.run", " or self._put_off()", ""),),
        tests=("tests/server/test_recall.py::test_it_takes_a_hundredth_of_a_core_and_waits_while_the_node_is_busy",),
    ),
    Mutant(
        name="recall-counts-only-what-the-index-reaches",
        breaks="of large collections what no search through the index reaches is not missed",
        edits=(Edit("shard.recall:_estimated", " + missed / share", ""),),
        tests=("tests/server/test_recall.py::test_of_more_vectors_than_are_scored_it_is_an_estimate_of_the_same",),
    ),
)
