"""Bugs of clients: what is sent again, what its caller is told, and what Python's values become."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_UNANSWERED = "tests/client/test_unanswered.py::"
_BATCHER = "tests/shard/test_search_batcher.py::"
_TYPES = "tests/client/test_types.py::"
_DIRECTORY = "tests/client/test_directory.py::"
_ALIASES = "tests/cluster/test_aliases.py::"

_RESTARTING = "tests/client/test_restarting.py::"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="silent-replica-counts-when-another-goes-into-maintenance",
        breaks="a node is let into maintenance whose shard has no majority once it is stopped",
        edits=(Edit("client.doing_without:_unable", "elif not peer.recently_active:", "elif peer is None:"),),
        tests=("tests/client/test_doing_without.py::test_what_it_costs_to_do_without_a_node",),
    ),
    Mutant(
        name="restart-that-costs-a-majority",
        breaks="a node is restarted while its shard has no majority without it",
        edits=(Edit("client.restarting:why_not", "if 2 * (len(status.voters) - 1 - len(unable))", "if 0 and 2 * (0)"),),
        tests=(_RESTARTING + "test_a_node_stays_up_while_a_group_needs_it",),
    ),
    Mutant(
        name="catalogs-leader-restarted-first",
        breaks="leadership of the catalog moves with each node that is restarted",
        edits=(Edit("client.restarting:in_order", "CATALOG_GROUP in led,", "CATALOG_GROUP not in led,"),),
        tests=(_RESTARTING + "test_the_catalogs_leader_is_the_last_and_those_that_lead_nothing_the_first",),
    ),
    Mutant(
        name="former-leader-speaks-for-its-group",
        breaks="who led when it was asked last is taken for the leader, and knows nothing of the others",
        edits=(Edit("client.group:GroupClient.leaders_status", 'found.state == "Leader" or', "True or"),),
        tests=(_RESTARTING + "test_who_leads_no_more_does_not_speak_for_the_group",),
    ),
    Mutant(
        name="attempt-has-a-fifth",
        breaks="a request is given up after a fifth of its time and sent again: a slow search is begun over and over",
        edits=(
            Edit(
                "client.group:GroupClient._ask_leader",
                "answer = await self.unanswered.call(address, method, body, left)",
                "answer = await self.unanswered.call(address, method, body, attempts.whole / 500)",
            ),
        ),
        tests=(_UNANSWERED + "test_a_slow_search_is_asked_once_and_has_the_whole_time",),
    ),
    Mutant(
        name="paused-leader-waited-for",
        breaks="a request stays with a paused leader until its time is over, though another one leads",
        edits=(Edit("client.attempts:Unanswered._outdated", "if asked.address != leader:", "if False:"),),
        tests=(_UNANSWERED + "test_a_paused_leader_is_left_for_the_next_one_and_a_write_keeps_its_number",),
    ),
    Mutant(
        name="refusal-after-unknown",
        breaks="a write that may have been executed ends with an error that says that nothing happened",
        edits=(Edit("client.group:GroupClient.write", "if attempts.unknown and", "if False and"),),
        tests=(_UNANSWERED + "test_after_an_attempt_of_unknown_fate_no_error_says_that_nothing_happened",),
    ),
    Mutant(
        name="fault-of-a-node-told-of-an-earlier-attempt",
        breaks="a catalog without room says `nothing was changed` of a command that may have been executed before",
        edits=(Edit("client.shards:ClusterShards.command", "(error.of_the_node or isinstance", "(isinstance"),),
        tests=(
            "tests/server/test_shortages.py::test_a_fault_of_the_node_says_nothing_of_an_earlier_attempt_at_the_catalog",
        ),
    ),
    Mutant(
        name="fault-of-a-node-passed-on",
        breaks="a node that has no such call hides that an earlier copy of a catalog command may be in the log",
        edits=(
            Edit(
                "server.service.catalog:CatalogCalls.catalog",
                "open_fate and error.of_the_node",
                "open_fate and False",
            ),
        ),
        tests=(
            "tests/server/test_answers_of_others.py::"
            "test_a_node_that_passes_a_command_on_keeps_that_an_earlier_copy_may_be_in_the_log",
        ),
    ),
    Mutant(
        name="negative-timeout-sent",
        breaks="a request is sent with the time that it does not have any more, and refused as malformed",
        edits=(
            Edit(
                "client.group:GroupClient._ask_leader",
                "if left <= attempts.spare:\n                    continue",
                "if left < -99:\n                    continue",
            ),
        ),
        tests=(_UNANSWERED + "test_a_search_for_the_leader_that_takes_all_the_time_sends_no_negative_timeout",),
    ),
    Mutant(
        name="alias-half-switched",
        breaks="a shard that has refused what an alias meant before is asked for the same again by the newer map",
        edits=(
            Edit("client.meaning:Meaning.check", "if not self.holds(now):", "if False:"),
            Edit("client.meaning:Meaning.epoch", "and self.holds(now)", ""),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_ALIASES + "test_who_knew_another_meaning_does_nothing_by_it",),
    ),
    Mutant(
        name="alias-keeps-its-epoch",
        breaks="shards serve who goes by what an alias meant before",
        edits=(Edit("catalog.collections:_refusing_older", "now.map.epoch + 1", "now.map.epoch"),),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_ALIASES + "test_an_alias_is_a_name_and_its_change_makes_an_epoch",),
    ),
    Mutant(
        name="a-change-begins-again-in-another-collection",
        breaks="a change by a filter that was done in part begins again where its alias leads by then, and says ok",
        edits=(
            Edit("client.where:WhereWork._failure", "if changed or unknown:", "if unknown:"),
            Edit("client.where:WhereWork.begin", "if self._count and", "if False and"),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_ALIASES + "test_a_change_that_is_done_in_part_says_so_and_is_not_begun_again[filter]",),
    ),
    Mutant(
        name="alias-makes-cycles",
        breaks="an alias may lead to an alias, and so to itself",
        edits=(Edit("catalog.collections:check_alias", "(other := now.alias(leads_to)) is not None", "other := None"),),
        tests=(_ALIASES + "test_what_cannot_be_is_refused",),
    ),
    Mutant(
        name="vectors-of-others",
        breaks="a shard that is asked about some of the documents gives them the vectors of the first ones",
        edits=(Edit("client.router.deletion:Part.command", "place[name] * width", "0 * width"),),
        tests=("tests/client/test_changes_by_filter.py::test_each_document_gets_its_own_vector_wherever_it_is",),
    ),
    Mutant(
        name="offset-before-the-merge",
        breaks="of the hits of all shards none is left out: a page of hits is the first one again",
        edits=(Edit("client.router.merge:narrowed", "left[request.offset :", "left[0 :"),),
        tests=("tests/client/test_searches.py::test_rows_stay_together",),
    ),
    Mutant(
        name="late-searches-begun",
        breaks="searches whose time is over are still done, and those of callers who wait come later",
        edits=(Edit("shard.search_batcher:SearchBatcher._start", "waiting[2] <= now:", "waiting[2] < 0:"),),
        tests=(_BATCHER + "test_what_is_over_or_abandoned_before_it_begins_costs_no_work",),
    ),
    Mutant(
        name="overload-not-refused",
        breaks="searches that cannot begin in their time are queued, and fail when it is over",
        edits=(Edit("shard.search_batcher:SearchBatcher.begin", "> timeout:", "> timeout + 1e9:"),),
        tests=(_BATCHER + "test_a_search_that_cannot_begin_in_its_time_is_refused_at_once",),
    ),
    Mutant(
        name="first-of-an-id-wins",
        breaks="of documents with one id in a batch the first is kept",
        edits=(
            Edit(
                "protocol.commands:last_of_each_id",
                "{name: at for at, name in enumerate(ids)}",
                "{ids[at]: at for at in range(len(ids) - 1, -1, -1)}",
            ),
        ),
        tests=(
            "tests/client/test_group.py::test_of_documents_with_one_id_the_last_counts_wherever_the_batch_is_split",
        ),
    ),
    Mutant(
        name="mapping-taken-for-ids",
        breaks='delete({"lang": "de"}) deletes the document "lang"',
        edits=(Edit("client.values:check_ids", " | Mapping)", ")"),),
        tests=(_TYPES + "test_what_is_no_list_of_ids_is_refused",),
    ),
    Mutant(
        name="imaginary-part-dropped",
        breaks="a vector of complex numbers is stored without their imaginary part",
        edits=(
            Edit("client.values:_holds_numbers", "array.dtype.kind in _NUMBER_KINDS", 'array.dtype.kind in "biufc"'),
        ),
        tests=(_TYPES + "test_what_is_no_vector",),
    ),
    Mutant(
        name="removed-nodes-dialled",
        breaks="a client goes on asking nodes that hold nothing of a shard any more, and never those that came",
        edits=(Edit("client.directory:Directory.addresses", "now is not self._listed_of", "self._listed_of is None"),),
        tests=(_DIRECTORY + "test_nodes_are_those_of_the_newest_topology",),
    ),
    Mutant(
        name="swapped-addresses-not-noticed",
        breaks="a client whose topology is older than a swap of addresses asks the wrong node until its time is over",
        edits=(Edit("client.group:GroupClient._after", "if known == address:", "if known == leader:"),),
        tests=("tests/client/test_moved_nodes.py::test_nodes_that_swapped_addresses_are_found",),
    ),
    Mutant(
        name="deaf-clients",
        breaks="a client that rests while all nodes that it knows are replaced finds nobody afterwards",
        edits=(Edit("client.following:Following._look", "if known is not None:", "if known is None:"),),
        tests=("tests/client/test_following.py::test_it_hears_of_another_topology_and_asks_no_more_once_it_is_closed",),
    ),
)
