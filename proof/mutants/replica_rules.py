"""Bugs of replicas that go to other nodes (docs/adr/0031)."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_STEPS = "tests/catalog/test_replica_steps.py::"
_DRIVER = "tests/server/test_replicas.py::"
_CATALOG = "tests/catalog/test_catalog.py::"
_NEXT = "catalog.replica_steps:next_step"
_REPAIR = "tests/multiraft/test_repair.py::"
_FILES = "tests/server/test_given_up.py::"
_GIVEN_UP = "server.upkeep.given_up:"
_TAKE = "server.upkeep.replicas:Replicas._take"

MUTANTS = (
    Mutant(
        name="replica-votes-before-it-has-the-log",
        breaks="a new replica takes the place of a voter before it has caught up: writes wait until it has",
        edits=(Edit(_NEXT, "missing & frozenset(now.caught_up) & ", "missing & "),),
        tests=(
            _STEPS + "test_a_lost_replica_is_replaced_by_way_of_a_learner",
            _STEPS + "test_each_step_is_safe",
            _DRIVER + "test_a_replica_is_replaced_and_then_the_catalog_is_told",
        ),
    ),
    Mutant(
        name="a-catalog-that-cannot-be-written-is-not-replaced",
        breaks="a snapshot is written into the damaged file: the node ends, at each start",
        edits=(
            Edit(
                "catalog.machine:CatalogMachine.install_snapshot",
                "with suppress(CorruptDocuments), self._exclusive(installing=True):",
                "with self._exclusive(installing=True):",
            ),
        ),
        tests=(_CATALOG + "test_a_snapshot_mends_a_catalog_whose_damage_shows_only_when_it_is_written",),
    ),
    Mutant(
        name="voters-without-a-majority",
        breaks="the voters are changed to a set of which no majority answers: the group stands still for good",
        edits=(Edit("catalog.replica_steps:_possible", "2 * len(able) > len(voters)", "able"),),
        tests=(
            _STEPS + "test_a_majority_that_does_not_answer_is_not_made_the_voters",
            _STEPS + "test_each_step_is_safe",
        ),
    ),
    Mutant(
        name="replica-given-up-while-it-counts",
        breaks="a node closes its replica as soon as the catalog names another one, while the group counts on its vote",
        edits=(
            Edit(
                "catalog.state:_assign_replicas",
                "tuple(node for node in held.all if node not in after)",
                "()",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        nodes=5,
        tests=(_CATALOG + "test_a_node_holds_its_replica_until_the_others_are_confirmed",),
    ),
    Mutant(
        name="members-by-an-old-catalog",
        breaks="a leader that has not heard of the catalog's last decision brings back a node that has given up its "
        "replica",
        edits=(Edit(_TAKE, "confirmed is None or confirmed != holders", "confirmed is None"),),
        tests=(_DRIVER + "test_nothing_is_done_for_what_the_catalog_does_not_want_any_more",),
    ),
    Mutant(
        name="members-by-a-leader-that-was-away",
        breaks="what the catalog confirmed in an earlier term is proposed in a later one, after others have led",
        edits=(Edit(_TAKE, "host.term(group) != look.term or not host.is_leader(group)", "not host.is_leader(group)"),),
        tests=(_DRIVER + "test_nothing_is_done_by_a_leader_that_was_away_meanwhile",),
    ),
    Mutant(
        name="replicas-confirmed-at-once",
        breaks="the catalog is told that nodes may give up their replicas without a look at the group's members: they "
        "close what the group counts on",
        edits=(Edit("catalog.replica_steps:next_step", "if now.settled:", "if not now.changing:"),),
        sim=True,
        sharded=True,
        minutes=1.0,
        nodes=5,
        tests=(
            _STEPS + "test_a_lost_replica_is_replaced_by_way_of_a_learner",
            "tests/sim/test_moving_nodes.py::test_a_replica_moves_to_another_node",
        ),
    ),
    Mutant(
        name="replica-votes-at-once",
        breaks="a new replica becomes a voter in the change that should make it a learner: it has nothing yet",
        edits=(
            Edit(
                _NEXT,
                "_possible(now, now.voters, (now.learners - surplus) | joining)",
                "_replace(now, joining, now.voters - wanted)",
            ),
            Edit("catalog.replica_steps:_possible", "2 * len(able) > len(voters)", "able"),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        nodes=5,
        tests=(
            _STEPS + "test_a_lost_replica_is_replaced_by_way_of_a_learner",
            _DRIVER + "test_a_replica_is_replaced_and_then_the_catalog_is_told",
        ),
    ),
    Mutant(
        name="replica-removed-before-another-votes",
        breaks="a voter leaves its group before the new one is a voter: the next failure stops the group",
        edits=(
            Edit(
                _NEXT,
                "_possible(now, now.voters, (now.learners - surplus) | joining)",
                "_possible(now, now.voters & wanted | {now.leader}, (now.learners - surplus | joining) - now.voters)",
            ),
        ),
        tests=(
            _STEPS + "test_a_lost_replica_is_replaced_by_way_of_a_learner",
            _STEPS + "test_each_step_is_safe",
            _DRIVER + "test_a_replica_is_replaced_and_then_the_catalog_is_told",
        ),
    ),
    Mutant(
        name="stale-replicas-confirmed",
        breaks="what a leader said of an earlier decision counts for a later one: nodes give up what is needed",
        edits=(
            Edit(
                "catalog.state:_confirm_replicas",
                "held.assigned != command.assigned or not held.leaving",
                "not held.leaving",
            ),
        ),
        sim=True,
        sharded=True,
        minutes=1.0,
        nodes=5,
        tests=(_CATALOG + "test_a_node_holds_its_replica_until_the_others_are_confirmed",),
    ),
    Mutant(
        name="confirmed-while-the-log-holds-a-change",
        breaks="the catalog is told that nodes may go while a change of the members waits in the leader's log",
        edits=(
            Edit(
                "server.upkeep.replicas:Replicas._members", "or host.applied_index(group) < host.last_change(group)", ""
            ),
        ),
        tests=(_DRIVER + "test_the_catalog_is_not_told_while_the_log_may_hold_another_change",),
    ),
    Mutant(
        name="silent-replica-holds-up-others",
        breaks="shards get no new replicas while a new replica of two others does not answer",
        edits=(Edit("server.upkeep.replicas:Replicas._step", " & frozenset(now.live) - frozenset(now.caught_up)", ""),),
        tests=(_DRIVER + "test_a_new_replica_that_does_not_answer_holds_up_no_other_group",),
    ),
    Mutant(
        name="given-up-with-term-and-vote",
        breaks="a replica that is given up forgets its term and vote: taken again, the node votes a second time",
        edits=(
            Edit(
                "multiraft.host:Host.forget_state",
                "bootstrap=GIVEN_UP)",
                "bootstrap=GIVEN_UP, hard_state=type(log.hard_state)())",
            ),
        ),
        sim=True,
        sharded=True,
        nodes=5,
        tests=(_REPAIR + "test_a_state_that_was_deleted_on_purpose_is_fetched_and_term_and_vote_are_kept",),
    ),
    Mutant(
        name="given-up-alone",
        breaks="who founded a group alone, and gave it up, can never hold it again: the node stops",
        edits=(Edit("multiraft.host:Host.forget_state", "not log.given_up", "False"),),
        tests=(_REPAIR + "test_who_founded_a_group_alone_and_gave_it_up_can_hold_it_again",),
    ),
    Mutant(
        name="given-up-and-told-as-damage",
        breaks="a shard that comes back to a node which gave it up is told of as a log that was damaged",
        edits=(Edit("multiraft.repair:Opener._mend", "log.given_up and applied == 0", "False and applied == 0"),),
        tests=(_REPAIR + "test_a_state_that_was_deleted_on_purpose_is_fetched_and_term_and_vote_are_kept",),
    ),
    Mutant(
        name="given-up-once-and-never-damaged",
        breaks="a replica that came back whole, and lost its state later, says that it was given up",
        edits=(Edit("multiraft.repair:Opener.open", "if log.given_up:", "if False:"),),
        tests=(_REPAIR + "test_a_replica_whose_files_were_not_deleted_after_all_is_whole_and_later_damage_is_told",),
    ),
    Mutant(
        name="given-up-by-a-catalog-that-is-new",
        breaks="a catalog that was made again says that a node holds nothing, and the last copy is deleted",
        edits=(Edit(_GIVEN_UP + "GivenUp._let_go", "check_founding(node.node_id, node.topology, now)", "pass"),),
        tests=(_FILES + "test_a_catalog_that_was_made_again_deletes_nothing",),
    ),
    Mutant(
        name="given-up-before-others-have-it",
        breaks="files are deleted although those that hold the shard now lack what was written",
        edits=(Edit(_GIVEN_UP + "why_not_elsewhere", "leader.commit_index < commit", "False"),),
        tests=(_FILES + "test_it_stays_until_the_others_have_all_that_it_had",),
    ),
    Mutant(
        name="given-up-while-it-is-opened",
        breaks="a shard that comes back between the question and the deletion loses its files while it is open",
        edits=(Edit(_GIVEN_UP + "GivenUp._give_up", "self._is_held(shard) or ", ""),),
        tests=(_FILES + "test_a_shard_that_comes_back_meanwhile_keeps_its_files",),
    ),
    Mutant(
        name="given-up-for-ever",
        breaks="files of replicas that are given up stay, and fill the disk",
        edits=(Edit(_GIVEN_UP + "GivenUp.look", "if closed:", "if not closed:"),),
        sim=True,
        sharded=True,
        nodes=5,
        tests=(_FILES + "test_what_others_hold_and_what_is_retired_goes_and_what_it_holds_stays",),
    ),
    Mutant(
        name="replicas-are-not-compared",
        breaks="a leader takes whatever digests its replicas have for the same",
        edits=(Edit("server.chores.comparing:Comparing._judge", "if len(set(digests.values())) > 1:", "if False:"),),
        tests=(
            "tests/server/test_comparing.py::test_a_replica_that_differs_is_told_of_until_it_is_as_the_others",
            "tests/sim/test_runs.py::test_the_product_finds_a_replica_that_applies_an_entry_otherwise",
        ),
    ),
    Mutant(
        name="catalogs-are-not-compared",
        breaks="what another replica of the catalog has at the same entry is taken for another form, and ignored",
        edits=(Edit("server.chores.comparing_catalog:CatalogCompared.mark", "if not self.form:", "if self.form:"),),
        tests=(
            "tests/server/test_comparing.py::test_a_replica_of_the_catalog_that_differs_is_told_of_until_it_has_the_others",
            "tests/sim/test_runs.py::test_the_product_finds_a_replica_of_the_catalog_that_applies_an_entry_otherwise",
        ),
    ),
    Mutant(
        name="catalogs-are-compared-at-different-entries",
        breaks="a replica of the catalog is asked for an entry, and says what it has by now",
        edits=(
            Edit(
                "server.chores.comparing_catalog:CatalogCompared.answer",
                "catalog.compared.at(index)",
                "catalog.compared.at(catalog.compared.newest)",
            ),
        ),
        tests=(
            "tests/server/test_comparing.py::test_a_replica_of_the_catalog_that_went_on_has_nothing_to_say_of_an_entry",
        ),
    ),
    Mutant(
        name="replicas-are-compared-at-different-entries",
        breaks="the entry at which replicas are compared is applied together with others, grouped as it happens",
        edits=(Edit("shard.apply.execute:runs", "in ALONE:", "in ALONE - {Compare}:"),),
        tests=("tests/server/test_comparing.py::test_a_replica_keeps_a_few_notes_and_each_of_its_own_entry",),
    ),
    Mutant(
        name="closed-under-a-reader",
        breaks="a shard that is given up while cancelled work still reads in its thread ends the node",
        edits=(
            Edit(
                "shard.documents.read_connections:ReadConnections._idle_one",
                "connection = connect(self._path)",
                "connection = connect(self._path); self._idle.append(connection)",
            ),
        ),
        tests=(
            "tests/shard/test_read_connections.py::test_a_connection_that_a_thread_reads_by_is_closed_once_it_has_read",
        ),
    ),
)
