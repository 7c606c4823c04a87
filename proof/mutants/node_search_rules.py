"""Bugs in reads of several shards of a node in one call."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_NODE = "tests/server/test_node_searches.py::"
_READS = "tests/server/test_node_reads.py::"
_SEVERAL = "tests/shard/test_several.py::"
_EARLY = "tests/server/test_early_node_search.py::"

MUTANTS = (
    Mutant(
        name="a-shard-of-a-node-merged-twice",
        breaks="a node that searches several shards in one call takes the hits of each twice",
        edits=(
            Edit(
                "shard.several:_nearer",
                "for place, (_, part) in parts.items():",
                "for place, (_, part) in 2 * [*parts.items()]:",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_NODE + "test_answers_are_those_of_each_shard_alone",),
    ),
    Mutant(
        name="a-shard-of-a-node-left-out",
        breaks="a node that searches several shards in one call gives the hits of the first only",
        edits=(
            Edit(
                "shard.several:_nearer",
                "for place, (_, part) in parts.items():",
                "for place, (_, part) in [*parts.items()][:1]:",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_NODE + "test_answers_are_those_of_each_shard_alone",),
    ),
    Mutant(
        name="a-part-of-a-nodes-search-left-out",
        breaks="of a search that a node makes in parts, what the last of them has found is no hit",
        edits=(
            Edit(
                "server.service.node_searches:merged",
                "batches, owners = [one.batches[at] for one in found], [one.owners(at) for one in found]",
                "batches, owners = [found[0].batches[at]], [found[0].owners(at)]",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_EARLY + "test_what_is_found_in_parts_is_merged",),
    ),
    Mutant(
        name="a-search-of-a-node-sees-less-than-is-confirmed",
        breaks="what several shards of a node have found counts, though their rounds ask for a later state",
        edits=(
            Edit(
                "server.service.node_searches:_seen",
                "if applied >= confirmed:",
                "if applied >= 0:",
            ),
        ),
        tests=(_EARLY + "test_only_what_the_round_confirms_counts",),
    ),
    Mutant(
        name="a-leased-search-of-a-node-before-it-has-applied",
        breaks="several shards of a node are searched by their leases, whatever they have applied",
        edits=(
            Edit(
                "server.service.node_searches:NodeSearches._confirming",
                "if max(least, known[0]) <= known[1]:",
                "if True:",
            ),
        ),
        tests=(_EARLY + "test_who_has_not_applied_what_a_lease_or_the_session_asks_for_is_read_alone",),
    ),
    Mutant(
        name="hits-of-a-shard-that-does-not-count",
        breaks="hits of a shard that has not seen enough stand where those of the other shards of its node would",
        edits=(
            Edit(
                "server.service.node_searches:NodeSearches._early",
                "all(seen.keys() >= {*one.places} for one in found)",
                "True",
            ),
        ),
        tests=(_EARLY + "test_where_a_hit_does_not_count_all_that_were_searched_with_it_are_read_alone",),
    ),
    Mutant(
        name="a-search-of-a-node-for-other-ranges",
        breaks="a search of several shards of a node does not ask their logs what they own",
        edits=(Edit("shard.searching:Searches.find", "_searched(view, first, claim)", "_searched(view, first, None)"),),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_SEVERAL + "test_who_does_not_own_what_is_asked_for_or_lacks_the_collection_or_stops_gives_no_hits",),
    ),
    Mutant(
        name="a-replica-is-searched-while-it-is-closed",
        breaks="a search of several replicas begins with one that is about to be closed",
        edits=(Edit("shard.several:_search", "if of.stopping:", "if False:"),),
        tests=(_SEVERAL + "test_who_does_not_own_what_is_asked_for_or_lacks_the_collection_or_stops_gives_no_hits",),
    ),
    Mutant(
        name="hits-of-a-node-as-near-as-the-last-by-place",
        breaks="of hits of several shards that are as near as the last one, those of the first shards are taken",
        edits=(Edit("shard.several:_cut", "(ids[row[1]][row[2]].id, row[1])", "row[1]"),),
        tests=(_SEVERAL + "test_the_answer_is_that_of_each_alone_merged",),
    ),
    Mutant(
        name="hits-of-a-shard-that-is-not-named",
        breaks="hits of shards that the node does not say to have searched are taken",
        edits=(Edit("client.router.merge:hits_of", "or not part.seen.keys() >= {*of}", ""),),
        tests=(_NODE + "test_hits_count_only_for_shards_that_were_searched",),
    ),
    Mutant(
        name="a-node-answers-for-other-ranges",
        breaks="the ranges on which a node has searched a shard are not compared with the map",
        edits=(
            Edit(
                "client.router.by_node:_told",
                "    _check(owned, shards, answer)\n",
                "",
            ),
        ),
        tests=(_NODE + "test_an_answer_for_other_ranges_is_not_used",),
    ),
    Mutant(
        name="a-shard-of-a-node-answers-for-another",
        breaks="a node that reads several shards in one call gives the answer of the first for each",
        edits=(
            Edit(
                "server.service.node_reads:NodeReads.read",
                "for one in found:",
                "for one in [(found[at][0], found[0][1], found[at][2]) for at in range(len(found))]:",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        tests=(_READS + "test_answers_are_those_of_each_shard_alone",),
    ),
    Mutant(
        name="a-read-of-a-node-for-other-ranges",
        breaks="what a node has read of a shard counts, whichever map the shard was read by",
        edits=(
            Edit(
                "client.router.by_node:_read",
                "    _check(owned, shards, answer)\n",
                "",
            ),
        ),
        tests=(_READS + "test_an_answer_for_other_ranges_is_not_used",),
    ),
    Mutant(
        name="an-eventual-search-of-a-node-forgets-its-session",
        breaks="a search of several shards of a node in one call sees less than its session has seen",
        edits=(
            Edit(
                "server.service.early:confirming",
                "index = fresh.min_index",
                "index, fresh = 0, Freshness(fresh.mode)",
            ),
            Edit("server.service.node_reads:check_applied", "if applied < wanted:", "if False:"),
        ),
        tests=(_EARLY + "test_an_eventual_search_is_refused_by_a_replica_that_lags_behind_its_session",),
    ),
    Mutant(
        name="an-eventual-read-of-the-one-node-that-has-the-call",
        breaks="shards that several nodes hold are read at the only one that has the call, and nobody else is asked",
        edits=(Edit("client.router.by_node:_of_replicas", "min(2, len(at))", "min(2, len(able))"),),
        tests=(_READS + "test_a_node_that_is_late_or_fails_is_passed_over",),
    ),
)
