"""Bugs of the planner, which decides what moves where, and in which order."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_CASES = "tests/catalog/planning/test_planner.py::"
_ANY = "tests/catalog/planning/test_any_plan.py::test_any_plan_is_legal_at_each_step_reaches_its_end_and_is_the_last"
_JOB = "tests/catalog/planning/test_rebalance.py::"
_STATE = "catalog.planning.schedule:State."
_SPREAD = "catalog.planning.spread:Spread."
_BY_HAND = "tests/catalog/planning/test_by_hand.py::"

_CATALOG = "tests/catalog/test_catalog_nodes.py::"

MUTANTS = (
    Mutant(
        name="catalog-of-an-even-number",
        breaks="four nodes hold the catalog where three let as many fail, and none of four can be given away",
        edits=(Edit("routing.replication:odd", "if count % 2 or count <= 2", "if count"),),
        tests=(_CATALOG + "test_any_catalog_comes_to_an_odd_number_on_nodes_that_stay",),
    ),
    Mutant(
        name="catalog-that-only-grows",
        breaks="the last nodes of a cluster that shrinks cannot leave its catalog",
        edits=(
            Edit(
                "catalog.planning.catalog_nodes:catalog_count",
                "size if balance else max(size, odd(min(now, staying, REPLICAS_MAX)))",
                "max(now, size)",
            ),
        ),
        tests=(_CATALOG + "test_nine_nodes_go_one_by_one_down_to_three",),
    ),
    Mutant(
        name="shards-that-stay-empty",
        breaks="under `range` a shard is added although no id is known at which another one could be cut",
        edits=(Edit("catalog.planning.planner:_Planning._spread_on_new", "self._space.even or", "self._space or"),),
        tests=(
            "tests/catalog/planning/test_plans_by_ids.py::test_where_nothing_is_known_no_shard_is_added_and_it_says_why",
        ),
    ),
    Mutant(
        name="calls-that-are-lost-in-a-cut",
        breaks="a range that is cut keeps its calls twice, or loses them: plans by calls go by wrong sums",
        edits=(Edit("catalog.planning.heat:_overlap", "if length else 0.0", "* 2"),),
        tests=(
            "tests/catalog/planning/test_plans_by_calls.py::test_calls_are_told_of_all_keys_once_and_no_call_is_lost",
        ),
    ),
    Mutant(
        name="calls-of-before-the-move",
        breaks="by calls of the map before, a successor plans ranges on and back again",
        edits=(Edit("server.upkeep.lasting_calls:LastingCalls.unsettled", "self._since + RATE_SECONDS - now", "0.0"),),
        tests=("tests/server/test_coordinator.py::test_a_successor_measures_calls_anew_when_the_map_has_stood_still",),
    ),
    Mutant(
        name="calls-measured-each-round",
        breaks="a rebalance plans by what shards tell while its ranges move: more moves than has to",
        edits=(Edit("server.upkeep.lasting_calls:LastingCalls.of", "if job and job == self._job", "if job < 0"),),
        tests=(
            "tests/server/test_coordinator.py::"
            "test_calls_are_measured_once_the_map_has_stood_still_and_not_while_it_changes",
        ),
    ),
    Mutant(
        name="plan-without-majorities",
        breaks="replicas of a shard without a majority are planned to move: the plan stands still at that move",
        edits=(Edit(_STATE + "_no_majority", "2 * len(able) > len(replicas)", "replicas"),),
        tests=(_ANY, _CASES + "test_nothing_is_asked_of_a_shard_without_a_majority"),
    ),
    Mutant(
        name="plan-without-a-catalog",
        breaks="moves are planned that the catalog cannot decide, because most of its nodes do not answer",
        edits=(Edit(_STATE + "why_not", "self.holders.get(CATALOG_GROUP, ())", "()"),),
        tests=(_CASES + "test_without_a_majority_of_the_catalog_nothing_can_be_decided",),
    ),
    Mutant(
        name="plan-that-waits-for-what-is-replaced",
        breaks="a node that is replaced anyway holds up the balance of its shards: the next plan is not empty",
        edits=(
            Edit(
                "catalog.planning.planner:_Planning._unsettled",
                "not in self._alive and self._nodes[node].usable",
                "not in self._alive",
            ),
        ),
        tests=(_CASES + "test_what_is_replaced_holds_up_no_move_for_the_balance",),
    ),
    Mutant(
        name="plan-beyond-the-disk",
        breaks="a replica goes to a node whose disk does not hold it",
        edits=(Edit(_STATE + "has_room", "free is None or free >= size", "True"),),
        tests=(_CASES + "test_ranges_fill_a_disk_and_no_more",),
    ),
    Mutant(
        name="plan-that-forgets-what-it-copies",
        breaks="what a move of ranges copies is not counted at its target: the next moves fill the disk",
        edits=(Edit(_STATE + "apply", "self._take(self.holders[group], sign * move.bytes)", "pass"),),
        tests=(_CASES + "test_ranges_fill_a_disk_and_no_more",),
    ),
    Mutant(
        name="plan-through-a-crowded-zone",
        breaks="on the way two replicas of a shard are in one zone while another one has room",
        edits=(
            Edit(_STATE + "_why_no_replicas", "if self.nodes[node].zone in others:", "if False:"),
            Edit("catalog.planning.schedule:_replica_moves", "zone[pair[0][1]] != zone[pair[1]]", "pair[1]"),
        ),
        tests=(_CASES + "test_replicas_change_their_nodes_zone_by_zone",),
    ),
    Mutant(
        name="plan-without-an-end",
        breaks="shards are evened out by a goal that is not the one that is asked for: each plan makes another one",
        edits=(Edit(_SPREAD + "_amount", "return min(heavy - high,", "return max(heavy - high,"),),
        tests=(_CASES + "test_an_added_shard_gets_its_share_and_no_more_moves",),
    ),
    Mutant(
        name="plan-that-leaves-a-retired-shard-its-empty-ranges",
        breaks="a shard is retired while it owns ranges without documents: the catalog refuses it",
        edits=(Edit(_SPREAD + "_empty", "if not piece.held)", "if not piece.held and piece.documents)"),),
        tests=(_CASES + "test_a_removed_shard_is_emptied_and_retired",),
    ),
    Mutant(
        name="plan-that-moves-what-moves",
        breaks="a range that is being moved is planned to move once more",
        edits=(Edit("catalog.planning.pieces:_under_way", "owner=target, held=True", "owner=target"),),
        tests=(_CASES + "test_what_is_under_way_is_waited_for",),
    ),
    Mutant(
        name="plan-that-retires-under-a-move",
        breaks="a shard is retired while a move that is under way still gives it something",
        edits=(Edit("catalog.planning.schedule:_candidates", "| goal.stuck", ""),),
        tests=(_CASES + "test_what_is_under_way_is_waited_for",),
    ),
    Mutant(
        name="plan-of-the-smallest-replica",
        breaks="nodes are evened out by the replicas that gain least: many more bytes move than need to",
        edits=(
            Edit("catalog.planning.placement:_Board._swing", "worthy = now - fuller", "worthy = True or now - fuller"),
        ),
        tests=(_CASES + "test_a_drained_node_moves_little_more_than_it_holds",),
    ),
    Mutant(
        name="split-of-every-shard",
        breaks="who splits one shard has the key ranges of all others moved, too",
        edits=(
            Edit(
                "catalog.planning.by_hand:halved",
                "pair = [split.shard, split.into]",
                "pair = sorted({piece.owner for piece in pieces} | {split.into})",
            ),
        ),
        tests=(_BY_HAND + "test_half_of_a_shard_goes_to_a_new_one_and_nothing_else_moves",),
    ),
    Mutant(
        name="split-into-a-shard-that-is-there",
        breaks="of two splits the second one takes the first one's new shard for its own, and evens out two strangers",
        edits=(Edit("catalog.rebalances:started", "wish.split.into != len(now.shards)", "False"),),
        tests=(_BY_HAND + "test_a_split_is_into_a_shard_that_is_not_there_when_it_is_decided",),
    ),
    Mutant(
        name="move-by-hand-with-all-others",
        breaks="who moves one replica has all nodes evened out and emptied, too",
        edits=(Edit("catalog.planning.planner:_Planning._wanted", "if self._wish.by_hand:", "if False:"),),
        tests=(_BY_HAND + "test_one_replica_goes_to_another_node_and_nothing_else_moves",),
    ),
    Mutant(
        name="zone-of-the-nodes-own-setting",
        breaks="a node that is started again is back in the zone of its setting, whatever an operator has said",
        edits=(Edit("routing.topology:NodeInfo.registered_as", "self.zone if self.zoned else said.zone", "said.zone"),),
        tests=(_BY_HAND + "test_a_zone_that_was_said_counts_until_the_nodes_own_does_again",),
    ),
    Mutant(
        name="rebalance-beyond-the-limit",
        breaks="more moves are started at a time than the operator allows",
        edits=(Edit("catalog.planning.rebalance:startable", "len(running) + len(chosen)", "len(chosen)"),),
        tests=(_JOB + "test_no_more_moves_run_than_the_limit",),
    ),
    Mutant(
        name="rebalance-cancelled-after-the-switch",
        breaks="a move is given up although the catalog may have decided it",
        edits=(
            Edit(
                "catalog.planning.rebalance:_cancelling",
                "if one.phase in _GIVEN_UP",
                "if one.phase is not Phase.CLEAN_UP",
            ),
        ),
        tests=(_JOB + "test_a_cancelled_one_gives_up_what_is_not_decided",),
    ),
    Mutant(
        name="unknown-is-empty",
        breaks="a shard without a leader counts as empty: it is filled, or given up with all that it holds",
        edits=(Edit("catalog.planning.planner:_apart", "frozenset(stats.unknown)", "frozenset()"),),
        tests=(
            _CASES + "test_a_shard_of_which_nobody_says_what_it_holds_is_not_empty",
            _CASES + "test_a_shard_that_is_to_go_keeps_all_it_has_while_nobody_says_what_that_is",
        ),
    ),
    Mutant(
        name="done-before-a-shard-is-known",
        breaks="a rebalance is done, or has failed, because a shard has no leader for a minute",
        edits=(Edit("catalog.planning.rebalance:look", "if plan.waiting:", "if False:"),),
        tests=("tests/server/test_coordinator.py::test_a_shard_without_a_leader_is_left_alone_while_the_others_go_on",),
    ),
)
