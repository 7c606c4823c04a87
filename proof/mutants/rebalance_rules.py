"""Bugs of rebalances: of their record in the catalog, and of the coordinator (docs/adr/0036)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_COMMANDS = "tests/catalog/planning/test_rebalance_commands.py::"
_COORDINATOR = "tests/server/test_coordinator.py::"
_JOB = "tests/catalog/planning/test_rebalance.py::"
_ANY = _COORDINATOR + "test_whoever_dies_whenever_it_comes_to_its_end"
_STEPPED = "catalog.rebalances:stepped"

_HELP = "tests/catalog/planning/test_beyond_help.py::"
_HEALING = "tests/server/test_healing.py::"
_REPLICATION = "tests/client/test_replication.py::"
_REPLACING = "tests/client/test_replacing.py::"

MUTANTS = (
    Mutant(
        name="rates-that-forget-nothing",
        breaks="a shard that was called once counts as hot for as long as its node runs",
        edits=(Edit("server.call_rates:Rate._forget", "self._counts[passed % SLOTS] = 0", "pass"),),
        tests=("tests/server/test_call_rates.py::test_a_rate_is_of_the_last_half_minute",),
    ),
    Mutant(
        name="sizes-of-before-the-switch",
        breaks="a range that has switched since its shards were measured counts at both, and more is moved",
        edits=(
            Edit("client.measuring:Measuring.measure", "info.leaving or was.get(info.shard) != info", "info.leaving"),
        ),
        tests=(_COORDINATOR + "test_in_a_large_cluster_only_what_changes_is_asked_again",),
    ),
    Mutant(
        name="waits-for-what-is-lost",
        breaks="a rebalance for a lost node with the only replica of a shard waits for its leader forever",
        edits=(
            Edit(
                "catalog.planning.planner:_Planning._waiting",
                "silent_shards - told",
                "silent_shards",
            ),
        ),
        tests=(_HELP + "test_one_that_learns_later_that_it_cannot_be_fails_with_that_sentence_and_what_it_has_done",),
    ),
    Mutant(
        name="beyond-help-though-one-is-only-silent",
        breaks="an operator is told to restore a backup of a shard that one silent node has whole",
        edits=(
            Edit("catalog.planning.beyond_help:not_rebuilt", "for node in left if node not in alive", "for node in ()"),
        ),
        tests=(_HELP + "test_a_shard_that_grew_onto_lost_nodes_is_not_beyond_help_while_who_has_it_is_silent",),
    ),
    Mutant(
        name="done-though-its-node-keeps-all",
        breaks="a node that was given weight 0 may be stopped, the command says, and still holds the replicas",
        edits=(Edit("catalog.planning.leftover:not_wished", "if info.id not in its_own", "if True"),),
        tests=(_HELP + "test_a_node_that_cannot_be_emptied_is_a_failure_of_what_is_about_it",),
    ),
    Mutant(
        name="about-all-nodes-since-its-own-is-gone",
        breaks="a rebalance for a node fails by another one of weight 0, once the node that it names is removed",
        edits=(
            Edit(
                "server.upkeep.coordinator:Coordinator._planned_with_healing",
                "wish, job, names)",
                "wish, job)",
            ),
        ),
        tests=(_COORDINATOR + "test_what_was_about_a_node_that_is_removed_is_not_about_another_one_of_weight_0",),
    ),
    Mutant(
        name="healed-by-who-is-cut-off",
        breaks="a leader on the small side of the nodes takes the others for gone and rebuilds their replicas",
        edits=(Edit("routing.gone:too_many", "return 2 * len(held) >= ", "return 0 * "),),
        tests=(_HEALING + "test_nothing_is_done_while_half_of_the_nodes_are_gone",),
    ),
    Mutant(
        name="dead-nodes-that-were-replaced-count",
        breaks="when half of the nodes have died one after the other, and were replaced, no more are",
        edits=(Edit("routing.gone:too_many", "held = missed(topology, known)", "held = sorted(known)"),),
        tests=(_HEALING + "test_dead_nodes_that_were_replaced_do_not_keep_the_next_one_from_being_replaced",),
    ),
    Mutant(
        name="healing-fails-by-a-removal",
        breaks="of two nodes that are healed one is removed, and the other one's replicas are not rebuilt",
        edits=(
            Edit(
                "server.upkeep.coordinator:Coordinator._planned_with_healing",
                "rebalance.of_now(wish, topology)",
                "wish",
            ),
        ),
        tests=(_COORDINATOR + "test_healing_of_two_nodes_goes_on_when_one_is_removed_meanwhile",),
    ),
    Mutant(
        name="removed-nodes-are-back",
        breaks="healing is cancelled when one of its nodes is removed, as if that were back",
        edits=(Edit("server.upkeep.healing:Healing._stop", "node in there and", ""),),
        tests=(_HEALING + "test_healing_goes_on_when_one_of_its_nodes_is_removed",),
    ),
    Mutant(
        name="failed-while-it-moves",
        breaks="a rebalance that cannot go on is over while its moves go on: nobody can cancel them or sees how far",
        edits=(
            Edit(
                "catalog.planning.rebalance:impossible",
                "_replace(job, why=why) if job.running else",
                "",
            ),
            Edit(
                "catalog.planning.rebalance:refused",
                "job.running and job.state is not JobState.CANCELLING",
                "False",
            ),
        ),
        tests=(
            _COORDINATOR + "test_one_that_cannot_be_any_more_fails_when_what_it_has_begun_is_over",
            _COORDINATOR + "test_a_move_that_is_refused_neither_holds_up_others_nor_fails_what_goes_on",
        ),
    ),
    Mutant(
        name="one-refusal-holds-up-all",
        breaks="a move that the catalog refuses keeps all others of its rebalance from beginning",
        edits=(Edit("server.upkeep.coordinator:Coordinator._take", "continue", "break"),),
        tests=(_COORDINATOR + "test_a_move_that_is_refused_neither_holds_up_others_nor_fails_what_goes_on",),
    ),
    Mutant(
        name="restarted-in-words-only",
        breaks="a function that gives a coroutine is called, and the coroutine never runs",
        edits=(Edit("client.restarting:_told_to_restart", "inspect.isawaitable(doing)", "False"),),
        tests=("tests/cluster/test_rolling_restart.py::test_no_call_fails_while_all_nodes_are_restarted",),
    ),
    Mutant(
        name="healing-counts-while-it-does-not-lead",
        breaks="a node that begins to lead takes its time as a follower for the time that others were gone",
        edits=(Edit("server.upkeep.healing:Healing.run", "self._gone.clear()\n            continue", "pass"),),
        tests=(_HEALING + "test_a_leader_that_cannot_confirm_it_neither_counts_nor_acts",),
    ),
    Mutant(
        name="nobody-is-ever-replaced",
        breaks="a shard stays one failure nearer to standing still until somebody types a command",
        edits=(Edit("server.upkeep.healing:ripe", "now - gone[node] >= after", "now - gone[node] < 0"),),
        tests=(
            "tests/sim/test_gone_for_good.py::test_the_cluster_makes_up_for_a_machine_that_is_gone",
            _HEALING + "test_a_node_that_is_gone_is_replaced_once_and_not_before_its_time",
        ),
    ),
    Mutant(
        name="healed-twice",
        breaks="a start that comes late rebuilds what others have rebuilt, or what is in maintenance",
        edits=(
            Edit("catalog.rebalances:started", "for node in wish.lost if command.healing else ():", "for node in ():"),
        ),
        tests=(_HEALING + "test_the_catalog_refuses_a_second_start",),
    ),
    Mutant(
        name="healing-goes-on-when-the-node-is-back",
        breaks="replicas of a node that is back are copied all the same",
        edits=(Edit("server.upkeep.healing:Healing._stop", "if job.healing else []", "if False else []"),),
        tests=(_HEALING + "test_a_node_that_is_back_keeps_what_has_not_arrived_elsewhere",),
    ),
    Mutant(
        name="silence-is-never-forgotten",
        breaks="a node that was away now and then for seconds is replaced",
        edits=(
            Edit(
                "server.upkeep.healing:still_gone",
                "if info.id not in alive}",
                "if info.id not in alive or info.id in before}",
            ),
        ),
        tests=(_HEALING + "test_who_was_away_for_less_begins_anew",),
    ),
    Mutant(
        name="step-from-an-old-state",
        breaks="of two coordinators both take the step: what runs twice is written down once, or nowhere",
        edits=(Edit(_STEPPED, "job.revision != command.revision", "job.revision < 0"),),
        tests=(_COMMANDS + "test_who_has_not_seen_the_last_change_takes_no_step",),
    ),
    Mutant(
        name="two-coordinators",
        breaks="all nodes of the catalog carry it out, each by what it saw: moves that run are forgotten",
        edits=(
            Edit("server.upkeep.coordinator:Coordinator._leads", "self._node.host.is_leader(CATALOG_GROUP)", "True"),
            Edit(
                _STEPPED,
                "job, made = _current(now, command.made.id), command.made",
                "made, known = command.made, _current(now, command.made.id)\n"
                "    job = _replace(known, revision=command.revision, running=made.running)",
            ),
        ),
        tests=(
            _COMMANDS + "test_who_has_not_seen_the_last_change_takes_no_step",
            _COORDINATOR + "test_who_does_not_lead_the_catalog_says_who_does",
        ),
        sim=True,
        growing=True,
        minutes=1.0,
    ),
    Mutant(
        name="cancelled-while-it-moves",
        breaks="a cancelled rebalance is over while its moves go on, and the next one begins beside them",
        edits=(Edit("catalog.planning.rebalance:_cancelling", "if not running:", "if running is not None:"),),
        tests=(_COORDINATOR + "test_a_cancelled_one_gives_ranges_back_and_waits_for_those_that_are_decided",),
        sim=True,
        growing=True,
        minutes=1.0,
    ),
    Mutant(
        name="cancelled-without-patience",
        breaks="a cancelled rebalance is over as soon as a shard is silent for a moment, and leaves its move to itself",
        edits=(Edit("catalog.planning.rebalance:_cancelling", "job.stuck + 1 < STUCK_MAX", "job.stuck < 0"),),
        tests=(),
        sim=True,
        growing=True,
        minutes=1.0,
    ),
    Mutant(
        name="move-without-a-record",
        breaks="a move begins and the record does not know it: a successor begins others beside it",
        edits=(Edit(_STEPPED, "running=running, why=", "running=made.running, why="),),
        tests=(_COMMANDS + "test_a_step_and_the_move_that_it_begins_are_one", _ANY),
    ),
    Mutant(
        name="record-without-a-move",
        breaks="a move is written down as begun, and never begins",
        edits=(Edit(_STEPPED, "decisions.append(command_of(", "str(command_of("),),
        tests=(_COMMANDS + "test_a_step_and_the_move_that_it_begins_are_one",),
        sim=True,
        sharded=True,
    ),
    Mutant(
        name="moves-done-before-they-are",
        breaks="replicas that are on their way count as moved: the next moves begin beside them, and it ends too early",
        edits=(
            Edit("catalog.planning.running:fate", "True if settled and not holders.leaving else None", "True"),
            Edit("catalog.planning.rebalance:look", "and unsettled:", "and False:"),
        ),
        tests=(_ANY,),
        sim=True,
        sharded=True,
    ),
    Mutant(
        name="done-beside-the-moves-of-others",
        breaks="a rebalance is done while others move ranges: the shard that was to go is left",
        edits=(Edit("catalog.planning.rebalance:look", "and unsettled:", "and False:"),),
        tests=(_JOB + "test_what_others_move_is_waited_for",),
    ),
    Mutant(
        name="pause-not-heeded",
        breaks="a paused rebalance goes on to begin moves",
        edits=(
            Edit("catalog.planning.rebalance:look", "job.over or job.state is JobState.PAUSED", "job.over"),
            Edit(_STEPPED, "made.state is not JobState.RUNNING", "made.state is None"),
        ),
        tests=(_JOB + "test_a_paused_one_starts_nothing_and_goes_on_when_told",),
    ),
    Mutant(
        name="given-up-in-words-only",
        breaks="a cancelled rebalance forgets the replicas that are on their way instead of taking them back",
        edits=(Edit(_STEPPED, "decisions.append(taken_back)", "str(taken_back)"),),
        tests=(_COMMANDS + "test_replicas_on_their_way_are_taken_back",),
    ),
    Mutant(
        name="two-rebalances",
        breaks="a rebalance begins over another one, whose moves nobody counts any more",
        edits=(Edit("catalog.rebalances:started", "check_over(now.rebalance)", "check_over(None)"),),
        tests=(_COMMANDS + "test_one_rebalance_at_a_time_and_the_next_one_after_its_end",),
    ),
    Mutant(
        name="sizes-that-only-grow",
        breaks="what was replaced or deleted still counts in a shard's size",
        edits=(
            Edit(
                "shard.opened_state:OpenedState._swap",
                "size += now.live_bytes - (0 if before is None else before.live_bytes)",
                "size += now.live_bytes",
            ),
        ),
        tests=("tests/shard/test_weights.py::test_what_documents_weigh_follows_each_batch",),
    ),
    Mutant(
        name="healing-behind-a-move-that-waits",
        breaks="while a rebalance waits, for a node in maintenance say, lost replicas are not rebuilt",
        edits=(Edit("server.upkeep.coordinator:Coordinator._planned_with_healing", "if not lost:", "if True:"),),
        tests=(_COORDINATOR + "test_what_is_lost_is_rebuilt_beside_a_move_that_waits",),
    ),
    Mutant(
        name="groups-that-nobody-can-lead",
        breaks="a shard goes to nodes in maintenance alone, and has no leader until one is back",
        edits=(Edit("routing.leadable:check_leadable", "set(nodes) <= _resting(now)", "not nodes"),),
        tests=("tests/catalog/test_catalog.py::test_replicas_do_not_go_to_nodes_in_maintenance_alone",),
    ),
    Mutant(
        name="done-by-an-old-look",
        breaks="a rebalance is done although a node that is to be emptied was given a replica after the last look",
        edits=(Edit("catalog.rebalances:_check_done", "not JobState.DONE", "not None"),),
        tests=(_COMMANDS + "test_it_is_not_done_if_a_node_to_be_emptied_was_given_something_after_the_look",),
    ),
    Mutant(
        name="drained-before-it-is-begun",
        breaks="a drain that is refused has the node emptied by the next rebalance all the same",
        edits=(Edit("client.rebalancing:RebalanceMethods.drain_node", "now.cluster_version >= EMPTIES", "False"),),
        tests=(
            "tests/client/test_rebalancing.py::test_a_drain_is_one_command_so_that_one_that_is_refused_changes_nothing",
        ),
    ),
    Mutant(
        name="drained-by-nobody",
        breaks="a rebalance that is to empty a node begins, and nothing leaves the node",
        edits=(Edit("catalog.state:_start_rebalance", "if empty:", "if False:"),),
        tests=(
            "tests/catalog/planning/test_rebalance_commands.py"
            "::test_a_node_is_emptied_from_the_entry_on_that_begins_it_and_not_by_one_that_is_refused",
        ),
    ),
    Mutant(
        name="replicas-that-count-when-they-are-there",
        breaks="a move of replicas shows no progress, no rate and no time left while it copies",
        edits=(Edit("catalog.planning.running:_now", "min(1.0, known.get(node, 0.0))", "0.0"),),
        tests=(_JOB + "test_replicas_on_their_way_count_by_what_their_leader_has_sent",),
    ),
    Mutant(
        name="replaced-and-not-forgotten",
        breaks="a node that was replaced stays in the cluster, and the next rebalance gives it replicas again",
        edits=(Edit(_STEPPED, "and made.wish.replace is not None:", "and False:"),),
        tests=(_REPLACING + "test_from_one_entry_on_the_old_node_gets_nothing_new_and_at_the_end_it_is_removed",),
    ),
    Mutant(
        name="replaced-node-takes-replicas",
        breaks="a node that is being replaced is given replicas by who plans meanwhile, or after a cancel",
        edits=(
            Edit(
                "catalog.state:_start_rebalance",
                "command.empty if command.wish.replace is None else command.wish.replace.old",
                "command.empty",
            ),
        ),
        tests=(_REPLACING + "test_from_one_entry_on_the_old_node_gets_nothing_new_and_at_the_end_it_is_removed",),
    ),
    Mutant(
        name="healed-beside-its-replacement",
        breaks="what a dead node held goes to nodes that nobody named, while another one is to take its place",
        edits=(Edit("catalog.planning.rebuilding:pending", "wish.replace.new in gone", "wish.replace.new"),),
        tests=(_COORDINATOR + "test_a_node_is_replaced_whoever_dies_whenever",),
    ),
    Mutant(
        name="rebuilt-in-the-way-of-a-replacement",
        breaks="the new node gets the place of a third one that is dead, or a replica lands in its zone",
        edits=(
            Edit("catalog.planning.rebuilding:rebuilt", "hurt -= held_by(topology, named.old).keys()", "hurt -= set()"),
        ),
        tests=(_COORDINATOR + "test_who_is_replaced_gives_all_to_the_new_node_while_a_third_one_is_rebuilt",),
    ),
    Mutant(
        name="weighed-before-it-is-begun",
        breaks="a weight or zone is changed although the rebalance that was to follow is refused",
        edits=(Edit("client.node_shares:ShareMethods._rebalance_by", "now.cluster_version >= EMPTIES", "False"),),
        tests=(_REPLACING + "test_a_weight_or_zone_that_begins_a_rebalance_is_changed_with_it_or_not_at_all",),
    ),
    Mutant(
        name="factor-that-plans-pass-over",
        breaks="a cluster that was to have fewer replicas keeps them, and its rebalance says that it is done",
        edits=(Edit("catalog.planning.planner:_Planning._copies", "if self._topology.replicas:", "if False:"),),
        growing=True,
        tests=(_REPLICATION + "test_replicas_are_added_and_taken_away_and_health_judges_by_the_new_number",),
    ),
    Mutant(
        name="factor-without-its-rebalance",
        breaks="the replication factor is set although the rebalance that was to follow is refused",
        edits=(
            Edit(
                "client.replication:ReplicationMethods.set_replication_factor",
                "check_over(now.rebalance)",
                "await self._shards.command(SetReplication(number), seconds)",
            ),
        ),
        tests=(_REPLICATION + "test_what_cannot_be_is_refused_and_changes_nothing",),
    ),
    Mutant(
        name="factor-above-the-nodes",
        breaks="a cluster is to have more replicas than it has nodes for, and is under-replicated forever",
        edits=(Edit("routing.replication:check_replication", "replicas > len(nodes := taking(now))", "False"),),
        tests=(_REPLICATION + "test_what_cannot_be_is_refused_and_changes_nothing",),
    ),
    Mutant(
        name="ends-that-are-forgotten",
        breaks="who follows a rebalance is told that nobody knows it, when another one has begun since its end",
        edits=(Edit("catalog.state:_start_rebalance", "now.cluster_version >= ENDINGS", "False"),),
        tests=(_COMMANDS + "test_how_the_last_few_rebalances_ended_is_known_when_others_have_begun",),
    ),
)
