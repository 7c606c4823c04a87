"""What a rebalance says of what nobody can rebuild, of what it has done, and of what it was not about."""

from __future__ import annotations

import msgspec
import pytest

from catalog.planning.planned_world import World, world
from needle.catalog.planning.planner import plan
from needle.catalog.planning.rebalance import STUCK_MAX, finished, look
from needle.catalog.state import execute
from needle.protocol.catalog_commands import AssignReplicas, ConfirmReplicas, DrainNode, WeighNode
from needle.routing.jobs import Job, JobState, RebalanceConfig
from needle.routing.planned_moves import MoveReplicas
from needle.routing.plans import Plan, Wish
from needle.routing.stats import ClusterStats


def without(stats: ClusterStats, *shards: int) -> ClusterStats:
    """Nobody says what these hold."""
    known = tuple(one for one in stats.shards if one.shard not in shards)
    return msgspec.structs.replace(stats, shards=known, unknown=shards)


def held(made: World, shard: int, *nodes: str) -> None:
    """Have these nodes hold a shard."""
    before = made.topology.shards[shard].wanted
    for command in (AssignReplicas(shard + 1, list(before), list(nodes)), ConfirmReplicas(shard + 1, made.index)):
        made.index += 1
        made.topology = execute(made.topology, made.index, command)[0]
        if isinstance(command, AssignReplicas):
            made.topology = execute(made.topology, made.index + 1, ConfirmReplicas(shard + 1, made.index))[0]
            made.index += 1
    assert made.topology.shards[shard].replicas == nodes


def one_replica_on(node: str) -> World:
    """Of shard 0; the others have three each, some of them there."""
    made = world()
    held(made, 0, node)
    return made


def test_a_lost_node_with_the_only_replica_is_told_with_what_helps_and_the_others_are_planned() -> None:
    made = one_replica_on("node-2")
    made.dead = {"node-2"}
    found = plan(made.topology, without(made.stats(), 0), Wish(lost=("node-2",), balance=False))
    (said,) = found.beyond_help
    assert said.startswith("shard 0 cannot be rebuilt, because its only replica is on node-2: start node-2 again")
    assert "`needle restore` a backup" in said and "`needle recover`" in said
    assert not found.waiting and any(isinstance(move, MoveReplicas) for move in found.moves)
    assert said in found.missing() and f"not possible: {said}" in found.in_words()
    made.dead = set()
    (said,) = plan(made.topology, made.stats(), Wish(lost=("node-2",), balance=False)).beyond_help
    assert "node-2 answers, so `needle node drain node-2`" in said


def test_what_is_only_silent_is_waited_for_and_so_is_a_shard_that_may_have_a_majority() -> None:
    made = world()
    nodes = made.topology.shards[1].wanted
    made.dead = set(nodes[:2])
    stats = without(made.stats(), 1)
    for lost in ((), nodes[:1]):
        found = plan(made.topology, stats, Wish(lost=lost))
        assert found.waiting and not found.beyond_help
        both = f"have to be named together, so if {nodes[1]} will not come back either, "
        both += f"`needle rebalance --lost {nodes[0]} --lost {nodes[1]}`"
        assert (both in found.waiting[0]) is bool(lost) and ("--lost" in found.waiting[0]) is bool(lost)
    found = plan(made.topology, stats, Wish(lost=nodes[:2]))
    assert any(one.startswith("shard 1 cannot be rebuilt, because 2 of its 3 replicas") for one in found.beyond_help)
    led = plan(made.topology, made.stats(), Wish(lost=nodes[:2]))  # its voters are others than the catalog says yet
    assert not any(one.startswith("shard 1 ") for one in led.beyond_help)


def grown_by_hand() -> World:
    """Shard 0 is on node-1, and was to go to node-2 and node-3, too, which are lost before they have its log."""
    made = one_replica_on("node-1")
    made.index += 1
    made.topology = execute(made.topology, made.index, AssignReplicas(1, ["node-1"], ["node-1", "node-2", "node-3"]))[0]
    return made


def test_a_shard_that_grew_onto_lost_nodes_is_not_beyond_help_while_who_has_it_is_silent() -> None:
    made, wish = grown_by_hand(), Wish(lost=("node-2", "node-3"), balance=False)
    made.dead = {"node-1", "node-2", "node-3"}
    found = plan(made.topology, without(made.stats(), 0), wish)
    (said,) = [one for one in found.unmet if one.startswith("shard 0 ")]
    assert "2 of its 3 replicas are on node-2, node-3, and node-1," in said and "Start node-1 first" in said
    assert "restore" not in said and "recover" not in said and not any("shard 0" in one for one in found.waiting)
    assert not any(one.startswith("shard 0 ") for one in found.beyond_help)
    ended = rounds(
        Job(id=1, wish=wish, config=RebalanceConfig(), state=JobState.RUNNING, moves=2),
        msgspec.structs.replace(found, moves=()),
    )
    assert ended.state is JobState.FAILED and said in ended.why  # others may begin

    made.dead = {"node-2", "node-3"}
    led = plan(made.topology, made.stats(), wish)  # it was the only voter, and leads again
    assert not any(one.startswith("shard 0 ") for one in (*led.beyond_help, *led.waiting))
    assert any(
        one.startswith("shard 0 serves without 2 of its 3 replicas, those of node-2, node-3: ")
        and "`needle shard replicas 0 node-1 NODE...`" in one
        for one in led.unmet
    )
    instead = AssignReplicas(1, ["node-1", "node-2", "node-3"], ["node-1", "node-4", "node-5"])  # which helps
    made.topology = execute(made.topology, made.index + 1, instead)[0]
    helped = plan(made.topology, made.stats(), wish)
    assert not any("shard 0 " in one for one in (*helped.beyond_help, *helped.unmet, *helped.waiting))
    made = grown_by_hand()
    made.dead = {"node-2", "node-3"}
    unled = plan(made.topology, without(made.stats(), 0), wish)  # it is back, and a majority is missing
    assert any(one.startswith("shard 0 cannot be rebuilt") for one in unled.beyond_help)
    assert not any(one.startswith("shard 0 ") for one in unled.unmet)


@pytest.mark.parametrize("lost", [("node-1", "node-2"), ("node-2", "node-3")])
def test_while_replicas_move_those_of_before_may_still_be_the_voters(lost: tuple[str, ...]) -> None:
    made = world()
    held(made, 0, "node-1", "node-2", "node-3")
    move = AssignReplicas(1, ["node-1", "node-2", "node-3"], ["node-4", "node-2", "node-3"])
    made.topology = execute(made.topology, made.index + 1, move)[0]
    stats = without(made.stats(), 0)
    found = plan(made.topology, stats, Wish(lost=lost))
    assert not any(one.startswith("shard 0 ") for one in found.beyond_help)
    said = [one for one in found.unmet if one.startswith("shard 0 has no leader: 2 of its 4 replicas are on node-2, ")]
    assert bool(said) is (lost == ("node-2", "node-3"))
    assert all("node-4, node-1 may be most of those that vote" in one and "`needle restore`" in one for one in said)
    three = plan(made.topology, stats, Wish(lost=("node-1", "node-2", "node-3")))  # of any voters one at most is left
    assert any(one.startswith("shard 0 cannot be rebuilt") for one in three.beyond_help)


def rounds(job: Job, made: Plan) -> Job:
    """Until it is over, with nothing running."""
    for _ in range(STUCK_MAX + 1):
        job = look(job, made, [], {}, {}).job
        if job.over:
            return job
    raise AssertionError(f"no end: {job}")


def test_one_that_learns_later_that_it_cannot_be_fails_with_that_sentence_and_what_it_has_done() -> None:
    made = one_replica_on("node-2")
    made.dead = {"node-2"}
    wish = Wish(lost=("node-2",), balance=False)
    first = plan(made.topology, without(made.stats(), 0), wish)
    made.closed = {"node-2"}
    job = Job(id=1, wish=wish, config=RebalanceConfig(), state=JobState.RUNNING)
    for move in first.moves:
        job = finished(job, move)
    made.run(first.moves)
    after = plan(made.topology, without(made.stats(), 0), wish)
    assert not after.moves
    ended = rounds(job, after)
    assert ended.state is JobState.FAILED and first.beyond_help[0] in ended.why
    assert ended.why.startswith(f"{len(first.moves)} moves done, ") and "not done: shard 0 cannot" in ended.why
    nothing_done = rounds(msgspec.structs.replace(job, moves=0), after)
    assert nothing_done.why.startswith("shard 0 cannot be rebuilt")


# --- what else stays as it is ----------------------------------------------------------------------------------------
def weightless(nodes: int = 3) -> World:
    """Each shard is on node-1 to node-3, of which node-3 has weight 0 and nobody could take its replicas."""
    made = world(nodes=nodes)
    made.topology = execute(made.topology, made.index + 1, WeighNode("node-3", 0.0))[0]
    made.index += 1
    return made


def carried_out(made: World, wish: Wish) -> Plan:
    made.run(plan(made.topology, made.stats(), wish).moves)
    return plan(made.topology, made.stats(), wish)


@pytest.mark.parametrize("wish", [Wish(retire=(3,)), Wish(balance=False), Wish(replicas=2)])
def test_what_was_asked_for_is_done_though_another_node_cannot_be_emptied(wish: Wish) -> None:
    made = weightless()
    left = carried_out(made, wish)
    assert not left.moves and not left.unmet, left
    ended = rounds(Job(id=1, wish=wish, config=RebalanceConfig(), state=JobState.RUNNING, moves=2), left)
    assert ended.state is JobState.DONE
    if wish.replicas is None:
        assert "left as it is: node-3 keeps its replica of" in ended.why
        assert any(line.startswith("stays as it is: node-3 keeps its replica of") for line in left.in_words())
    else:
        assert not left.besides and ended.why == ""


@pytest.mark.parametrize("wish", [Wish(), Wish(weights={"node-3": 0.0}), Wish(drain=("node-3",), shards=5)])
def test_a_node_that_cannot_be_emptied_is_a_failure_of_what_is_about_it(wish: Wish) -> None:
    """A wish that names nothing is about all that the catalog says: weights are."""
    made = weightless()
    left = carried_out(made, wish)
    assert not left.besides and any(one.startswith("node-3 keeps its replica of") for one in left.unmet)
    ended = rounds(Job(id=1, wish=wish, config=RebalanceConfig(), state=JobState.RUNNING, moves=2), left)
    assert ended.state is JobState.FAILED
    assert ended.why.startswith("2 moves done, ") and "not done: node-3 keeps its replica" in ended.why


def test_who_is_to_be_emptied_by_the_catalog_is_what_every_wish_is_about() -> None:
    made = world(nodes=3)
    made.topology = execute(made.topology, made.index + 1, DrainNode("node-3", True))[0]
    left = carried_out(made, Wish(shards=5))
    assert not left.besides and any(one.startswith("node-3 keeps its replica of") for one in left.unmet)


def test_a_move_that_only_empties_another_node_and_cannot_be_made_now_is_besides_it() -> None:
    made = weightless(nodes=6)
    where = [info.shard for info in made.topology.serving if "node-3" in info.wanted]
    made.capacity = {node.id: 1 for node in made.topology.nodes if node.id != "node-3"}
    left = plan(made.topology, made.stats(), Wish(balance=False))
    assert where and not left.unmet and left.besides


def test_that_there_are_too_many_replicas_is_not_besides_it_whoever_is_to_give_one_up() -> None:
    """A rebalance to two replicas was done, and all shards had three as before."""
    made = weightless()
    made.dead = {"node-1"}
    wish = Wish(replicas=2)
    left = plan(made.topology, made.stats(), wish)
    assert not left.moves and not left.besides
    assert any(one.startswith("remove the replica of shard 0 on node-3: one too many") for one in left.unmet)
    ended = rounds(Job(id=1, wish=wish, config=RebalanceConfig(), state=JobState.RUNNING), left)
    assert ended.state is JobState.FAILED
