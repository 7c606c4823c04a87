"""Bugs of sharded clusters: moves of key ranges (docs/adr/0010), and dropped collections."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_LOST = "tests/multiraft/test_lost_directories.py::"
_EXECUTED = "tests/catalog/test_executed.py::"
_DROPS = "tests/cluster/test_dropped_collections.py::"
_MOVING = "tests/shard/test_moving.py::"
_WRITES = "tests/client/test_moving_writes.py::"
_HELD = "tests/server/test_mover.py::test_a_move_that_would_lose_one_of_two_documents_waits_until_one_is_deleted"
_MAINTENANCE = "tests/server/test_maintenance.py::"
_MOVER = "tests/server/test_mover.py::"
_EXPIRED = "tests/server/test_expired_leaders.py::"
_RECONCILE = "server.catalog.collections:Reconciler._reconcile"

MUTANTS = (
    Mutant(
        name="move-without-freeze",
        breaks="the source takes writes for ranges that it has frozen: they are missing in the copy",
        edits=(
            Edit("shard.apply.holdings:Fence.__init__", "difference(holdings.owned, frozen)", "list(holdings.owned)"),
        ),
        sim=True,
        sharded=True,
        tests=(_MOVING + "test_writes_are_refused_where_the_log_says_so",),
    ),
    Mutant(
        name="leadership-sent-back-to-a-full-disk",
        breaks="a shard that left a full disk goes back to its preferred leader, which refuses its writes",
        edits=(Edit("server.upkeep.leaders:LeaderSpread._willing", "and told.room is not False", ""),),
        tests=("tests/server/test_shortages.py::test_a_leader_without_room_makes_way_for_one_that_has_it",),
    ),
    Mutant(
        name="a-leader-with-an-expired-certificate-stays",
        breaks="nobody can connect to who leads: it goes on over the connections that were open, and no call arrives",
        edits=(Edit("server.upkeep.roomier_leaders:RoomierLeaders.run", "or node.expired", ""),),
        tests=(_EXPIRED + "test_it_hands_over_all_that_it_leads_to_whom_callers_reach",),
    ),
    Mutant(
        name="leadership-handed-to-an-expired-certificate",
        breaks="an expired leader's shards go to another node that nobody can connect to either",
        edits=(Edit("server.upkeep.roomier_leaders:RoomierLeaders._has_room", "and not told.hinders", ""),),
        tests=(_EXPIRED + "test_it_hands_over_all_that_it_leads_to_whom_callers_reach",),
    ),
    Mutant(
        name="leadership-sent-back-to-an-expired-certificate",
        breaks="a shard that left a node whose certificate has expired goes back there, since the catalog prefers it",
        edits=(Edit("server.upkeep.leaders:LeaderSpread._willing", "and not told.hinders", ""),),
        tests=(_EXPIRED + "test_it_gets_back_nothing_though_the_catalog_prefers_it",),
    ),
    Mutant(
        name="an-expired-certificate-is-not-told-of",
        breaks="who would hand leadership to a node does not hear that nobody can connect to it",
        edits=(
            Edit("server.service.operations:Operations._led_by", "EXPIRED if node.expired else", '"" if True else'),
        ),
        tests=(_EXPIRED + "test_it_says_so_when_it_is_asked",),
    ),
    Mutant(
        name="leadership-goes-around",
        breaks="a node with a full disk asks for another leader at every look, not once a minute",
        edits=(Edit("server.upkeep.roomier_leaders:RoomierLeaders.look", "group not in self._tried and", ""),),
        tests=("tests/server/test_shortages.py::test_leadership_is_handed_over_at_a_pace",),
    ),
    Mutant(
        name="maintenance-ends-with-the-process",
        breaks="a node that was restarted during maintenance takes leadership at once",
        edits=(Edit("server.upkeep.maintenance:Maintenance.follow", "or since not in (0, self._left)", ""),),
        tests=(_MAINTENANCE + "test_a_node_is_in_maintenance_while_the_catalog_says_so",),
    ),
    Mutant(
        name="maintenance-left-by-the-catalog-only",
        breaks="the only node that could lead the catalog waits for the catalog to let it",
        edits=(Edit("server.upkeep.maintenance:Maintenance.set", "0 if on else self._since()", "0"),),
        tests=(_MAINTENANCE + "test_who_leaves_is_out_before_the_catalog_has_a_leader",),
    ),
    Mutant(
        name="nobody-left-to-lead",
        breaks="all nodes of a shard are in maintenance, and none may lead it",
        edits=(Edit("routing.leadable:check_led", "others and others <= resting", "False"),),
        tests=("tests/catalog/test_catalog.py::test_maintenance_is_of_the_catalog_until_it_is_ended",),
    ),
    Mutant(
        name="own-before-freeze",
        breaks="the target owns the ranges while the source still takes writes and answers reads for them",
        edits=(
            Edit(
                "server.upkeep.mover:Mover._hand_over",
                "await self._steps.propose(info, Freeze(info.id, info.attempt))",
                "await self._copier.copy(info, copy, self._node.topology); "
                "await self._steps.tell_target(info, Confirm(info.id, copy.step, info.attempt)); "
                "await self._steps.tell_target(info, Own(info.id, copy.step, 0, info.attempt)); "
                "await self._steps.propose(info, Freeze(info.id, info.attempt))",
            ),
        ),
        sim=True,
        sharded=True,
        tests=(_MOVER + "test_a_move_copies_all_whatever_happens_meanwhile",),
    ),
    Mutant(
        name="version-base-not-raised",
        breaks="the target gives versions that the source gave before: a compare-and-set takes one for the other (ABA)",
        edits=(Edit("shard.apply.moves:_own", "max(holdings.base, command.floor)", "holdings.base"),),
        sim=True,
        sharded=True,
        tests=(_MOVING + "test_versions_grow_across_the_move",),
    ),
    Mutant(
        name="move-forgets-deletes",
        breaks="what the source deletes after it was copied comes back in the target",
        edits=(
            Edit(
                "server.upkeep.range_copy:RangeCopier._copy_collection",
                "for first in range(0, len(deleted), self._rows_max):",
                "for first in range(0):",
            ),
        ),
        tests=(_MOVER + "test_a_move_copies_all_whatever_happens_meanwhile",),
    ),
    Mutant(
        name="dead-rows-purged-while-copying",
        breaks="the rows that tell what was deleted since they were copied are gone: deletes come back",
        edits=(Edit("shard.upkeep:Upkeep.purge", "0 if fence is not None and fence.copies else DOOMED", "DOOMED"),),
        tests=(_MOVING + "test_what_died_while_it_was_copied_is_not_purged",),
    ),
    Mutant(
        name="claims-not-checked",
        breaks="a shard answers readers of another map: documents are missed, or found twice",
        edits=(Edit("shard.apply.holdings:check_claim", "if claim is None:", "if claim is not Ellipsis:"),),
        sim=True,
        sharded=True,
        tests=(_MOVING + "test_a_reader_with_another_map_is_refused",),
    ),
    Mutant(
        name="imported-documents-visible",
        breaks="a search sees documents that the shard does not own yet, or not any more",
        edits=(
            Edit(
                "shard.live_collection:LiveCollection._hide",
                "BitMap.union(BitMap(), *hidden.values())",
                "BitMap()",
            ),
        ),
        sim=True,
        sharded=True,
        tests=(_MOVING + "test_a_range_moves_and_every_document_is_visible_in_one_place",),
    ),
    Mutant(
        name="hidden-forgotten-at-restart",
        breaks="a restarted replica shows what it hid",
        edits=(Edit("shard.live_collection:LiveCollection.hide", "if (found :=", "if not (found :="),),
        sim=True,
        sharded=True,
        tests=(_MOVING + "test_batching_restarts_power_loss_and_snapshots_change_nothing",),
    ),
    Mutant(
        name="refusal-not-kept",
        breaks="a late copy of a write that the fence refused is executed once its range is back",
        edits=(
            Edit(
                "shard.apply.execute:execute",
                "batch.sessions.record(numbered, result)",
                "isinstance(result, StaleEpoch) or batch.sessions.record(numbered, result)",
            ),
        ),
        tests=(_MOVING + "test_writes_are_refused_where_the_log_says_so",),
    ),
    Mutant(
        name="silent-shards-count-as-dropped",
        breaks="a drop is acknowledged while a shard has not confirmed it: writes into the collection go on there",
        edits=(Edit("client.router.collections:drop", "if silent:", "if silent is None:"),),
        tests=(_DROPS + "test_a_drop_is_acknowledged_only_when_every_shard_has_confirmed_it",),
    ),
    Mutant(
        name="creation-of-an-earlier-term",
        breaks="a leader makes a collection by what the catalog said in an earlier term: a dropped one is back",
        edits=(Edit(_RECONCILE, "host.term(group) != term", "host.term(group) < 0"),),
        tests=(_DROPS + "test_a_creation_confirmed_in_an_earlier_term_is_not_proposed",),
    ),
    Mutant(
        name="unknown-collections-dropped",
        breaks="a shard deletes what its catalog does not list, also if that is new, or restored from an older copy",
        edits=(
            Edit(
                _RECONCILE,
                "if dropped_as(name) in newest.dropped",
                "if name",
            ),
        ),
        tests=(_DROPS + "test_what_the_catalog_does_not_know_is_kept_and_reported",),
    ),
    Mutant(
        name="another-founding-followed",
        breaks="nodes of a cluster follow a catalog that was made again and knows none of their documents",
        edits=(Edit("server.cluster_files:check_founding", "heard.founding != now.founding", "heard is now"),),
        tests=(_DROPS + "test_a_catalog_that_was_made_anew_is_not_followed",),
    ),
    Mutant(
        name="shards-given-to-a-name",
        breaks="a node whose directory was emptied founds the shards again that its name had: its votes are forgotten",
        edits=(
            Edit(
                "server.catalog.adoption:Adoption._open_and_close",
                "me.incarnation != node.cluster.incarnation",
                "me.id != node.node_id",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
    ),
    Mutant(
        name="lost-replicas-answer",
        breaks="a node that knows that it lost data goes on reading its shards to whoever asks it",
        edits=(Edit("multiraft.engine:Engine.serving", "if found.lost:", "if found.lost and not self.lost:"),),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_LOST + "test_an_emptied_or_older_directory_neither_acknowledges_nor_votes",),
    ),
    Mutant(
        name="catalog-commands-twice",
        breaks="a copy of a catalog command that comes late is executed again: what was dropped since is back",
        edits=(Edit("catalog.executed:execute_once", "if known is not None:", "if isinstance(known, NeedleError):"),),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_EXECUTED + "test_a_copy_that_comes_late_changes_nothing_and_is_answered_as_the_first",),
    ),
    Mutant(
        name="forgotten-catalog-commands-executed",
        breaks="a copy of a catalog command that comes very late, when its answer is forgotten, is executed again",
        edits=(Edit("catalog.executed:execute_once", "identity.since < executed.floor", "identity.since < 0"),),
        tests=(_EXECUTED + "test_what_may_be_forgotten_is_refused_and_the_table_is_bounded",),
    ),
    Mutant(
        name="replicas-set-at-once",
        breaks="an older administrator's command has nodes give up replicas that their group still counts on",
        edits=(
            Edit(
                "server.service.catalog:CatalogCalls._check_command",
                "elif isinstance(command, catalog_commands.SetReplicas):",
                "elif command is None:",
            ),
        ),
        tests=("tests/server/test_service.py::test_calls_that_do_not_fit_the_map_are_refused",),
    ),
    Mutant(
        name="replicas-of-no-cluster-start",
        breaks="a node that lost its cluster.json starts, belongs to no cluster, and waits for one forever",
        edits=(Edit("server.cluster_files:load_cluster", "found is None or found.uid == 0", "False"),),
        tests=("tests/server/test_no_cluster_file.py::test_a_node_that_has_replicas_but_no_cluster_does_not_start",),
    ),
    Mutant(
        name="older-addresses-of-the-catalog-count",
        breaks="the catalog's word of where a node was counts again over where it said since that it is: it is cut off",
        edits=(Edit("server.catalog.adoption:Adoption._learn_news", "if before.get(node) != at", "if at"),),
        tests=(
            "tests/server/test_address_book.py::test_what_a_node_said_itself_is_newer_than_what_the_catalog_has_of_it",
        ),
    ),
    Mutant(
        name="imports-out-of-step",
        breaks="a page of a driver that is no longer the driver is imported after newer ones",
        edits=(Edit("shard.apply.moves:_check_open", "transfer.step != step", "step < 0"),),
        tests=(_MOVING + "test_a_page_of_another_driver_is_refused",),
    ),
    Mutant(
        name="two-keys-of-an-id-moved-together",
        breaks="under custom routing a move drops a document whose id the target has under another shard key",
        edits=(Edit("shard.apply.moves:_import", "command.whole and not taken.isdisjoint(names)", "False"),),
        tests=(_MOVING + "test_an_import_never_takes_the_place_of_the_same_id_under_another_shard_key", _HELD),
    ),
    Mutant(
        name="two-moves-of-an-id-merged",
        breaks="under custom routing what one move brings takes the place of what another one brings to the same shard",
        edits=(Edit("shard.apply.moves:_may_replace", "move == command.move or not command.whole", "move > 0"),),
        tests=(_MOVING + "test_an_import_never_takes_the_place_of_what_another_move_brings",),
    ),
    Mutant(
        name="delete-spread-anew",
        breaks="under a custom strategy shards that have executed a delete are asked again under a new number: "
        "what was written meanwhile is lost",
        edits=(
            Edit(
                "client.router.by_ids:spread_by_ids",
                "map(one, part.spread(owned))",
                "map(one, deletion.begin(collection, owned))",
            ),
            Edit("client.router.deletion:Deletion.begin", "if not self._done:", "if owned.map:"),
        ),
        sim=True,
        sharded=True,
        tests=(
            _WRITES + "test_a_delete_of_which_one_shard_refuses_its_part_is_not_asked_again_of_the_others",
            _WRITES + "test_a_delete_that_one_shard_has_done_is_repeated_for_the_others_only",
        ),
    ),
    Mutant(
        name="delete-within-not-judged",
        breaks="a delete that names ranges is executed by a shard that does not own them: a document that is there is "
        "not found, and stays",
        edits=(Edit("shard.apply.holdings:within", "not fence.takes(ranges)", "not ranges"),),
        tests=(_MOVING + "test_a_delete_within_ranges_leaves_other_keys_and_is_refused_unless_all_of_them_are_owned",),
    ),
    Mutant(
        name="deletes-by-id-of-another-map",
        breaks="under a custom strategy a delete misses a document that moves between the shards it asks",
        edits=(Edit("shard.apply.execute:_addressed", "command.owned not in (0, batch.fence.fingerprint)", "False"),),
        tests=(_MOVING + "test_under_a_custom_strategy_the_stored_document_decides_and_deletes_name_the_map",),
    ),
    Mutant(
        name="late-copies-are-executed",
        breaks="a copy of a write that its client has acknowledged comes late to the node that routes it, and is done "
        "again: what was written since is overwritten",
        edits=(Edit("server.service.numbered_writes:NumberedWrites.find", "session.seq < known.acked", "not known"),),
        tests=(
            "tests/client/test_partial_writes.py::test_a_late_copy_of_a_write_that_was_answered_is_not_executed_again",
        ),
    ),
    Mutant(
        name="commands-get-into-the-log-as-they-come",
        breaks="what a caller nests behind the fields of a command is skipped where it is checked, and not where it is "
        "applied: each node ends, again at each start",
        edits=(
            Edit(
                "server.service.documents:ShardDocuments._write",
                "return await host.propose(group, data, deadline.left())",
                "return await host.propose(group, call.command, deadline.left())",
            ),
        ),
        tests=("tests/server/test_write_freshness.py::test_what_is_proposed_holds_nothing_beyond_its_fields",),
    ),
    Mutant(
        name="proposed-after-its-time",
        breaks="a write is proposed after its caller has given up: it waited for several things, and each had all the "
        "time there was",
        edits=(Edit("server.service.served:Deadline.left", "if left <= 0:", "if False:"),),
        tests=("tests/server/test_write_freshness.py::test_all_that_a_write_waits_for_has_one_deadline",),
    ),
    Mutant(
        name="a-leaders-bug-ends-its-followers",
        breaks="a leader that answers a follower with an error of its own ends it: one node after the other goes",
        edits=(
            Edit(
                "server.replica:HostedReplica._catch_up", "except NeedleError as error", "except Unavailable as error"
            ),
        ),
        tests=("tests/server/test_answers_of_others.py::test_background_work_goes_on_whatever_the_leader_answers",),
    ),
    Mutant(
        name="parts-of-batches-weigh-nothing",
        breaks="what is written of batches that nobody repeats stays in memory without bound",
        edits=(
            Edit("server.service.numbered_writes:NumberedWrites.settled", "1 + len(write.written) // ROWS_KEPT", "1"),
        ),
        tests=(
            "tests/client/test_partial_writes.py::"
            "test_what_nobody_acknowledges_is_kept_within_bounds_also_where_nothing_or_only_a_part_was_written",
        ),
    ),
    Mutant(
        name="given-up-passes-for-refused",
        breaks="a node that stops while it routes a write says that nothing happened: its client writes it again "
        "through another node, and overwrites what came in between",
        edits=(Edit("rpc.failures:cancelled", "if is_droppable:", "if True:"),),
        tests=(
            "tests/client/test_stopping_node.py::"
            "test_a_write_that_a_stopping_node_gave_up_is_not_written_again_through_another",
        ),
    ),
)
