"""The catalog's commands about a rebalance: one at a time, and each step from the state that it was judged by."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import topology
from catalog.planning.planned_world import world
from needle.base.errors import InvalidArgument, NeedleError
from needle.base.ids import shard_group
from needle.base.model import WriteResult
from needle.catalog.planning.planner import plan
from needle.catalog.rebalances import CHECKED, WHY_CHARS_MAX
from needle.catalog.state import ENDINGS, execute
from needle.client.rebalancing import ended_in
from needle.protocol.catalog_commands import (
    EMPTIES,
    AskRebalance,
    AssignReplicas,
    CatalogCommand,
    DrainNode,
    StartRebalance,
    StepRebalance,
    decode,
    encode,
)
from needle.routing.jobs import Job, JobState, RebalanceConfig, Running
from needle.routing.planned_moves import FoundShard, MoveRange, MoveReplicas
from needle.routing.plans import WISHED_MAX, Wish
from needle.routing.stats import ClusterStats
from needle.routing.topology import NodeState, Topology
from needle.server.http.cluster_bodies import PlanRebalance

replace = msgspec.structs.replace


class Catalog:
    def __init__(self) -> None:
        self.now, self.index = topology(), 1

    def tell(self, command: CatalogCommand) -> WriteResult:
        self.index += 1
        before = self.now
        self.now, result = execute(before, self.index, decode(encode(command)))
        if isinstance(result, NeedleError):
            assert self.now is before
            raise result
        return result

    @property
    def job(self) -> Job:
        assert self.now.rebalance is not None
        return self.now.rebalance


def started(**config: object) -> Catalog:
    made = Catalog()
    made.tell(StartRebalance(Wish(), RebalanceConfig(**config)))  # type: ignore[arg-type]
    return made


def at_version(now: Topology, version: int) -> Topology:
    return replace(now, nodes=tuple(replace(one, knows=version) for one in now.nodes), cluster_version=version)


def ended_one_after_another(made: Catalog, count: int) -> list[tuple[int, JobState]]:
    """Each begins, and then ends in one of two ways; the ids and how."""
    told = []
    for n in range(count):
        state = JobState.DONE if n % 2 else JobState.FAILED
        made.tell(StartRebalance(Wish(), RebalanceConfig()))
        why = "" if n % 2 else "no node can take it " * 40
        made.tell(StepRebalance(replace(made.job, state=state, why=why, moved_bytes=n), made.job.revision))
        told.append((made.job.id, state))
    return told


def test_how_the_last_few_rebalances_ended_is_known_when_others_have_begun() -> None:
    made = Catalog()
    made.now = at_version(made.now, ENDINGS)
    told = ended_one_after_another(made, 20)
    assert [(one.id, one.state) for one in made.now.ended] == told[-17:-1]  # the last one is there whole
    first, last = made.now.ended[0].progress(), ended_in(made.now, told[-1][0])
    assert (first.state, first.moved_bytes, first.percent_complete) == (JobState.DONE, 3, 100.0)
    failed = ended_in(made.now, told[-2][0])
    assert failed.is_complete and failed.why.startswith("no node can take it") and len(failed.why) == 300
    assert last.state is JobState.DONE
    with pytest.raises(NeedleError, match=f"rebalance {told[0][0]} is not known: the last one is {told[-1][0]}"):
        ended_in(made.now, told[0][0])
    with pytest.raises(NeedleError, match=f"rebalance {told[-3][0]} is done, and another one was started"):
        made.tell(AskRebalance(told[-3][0], "pause"))
    size = len(msgspec.msgpack.encode(made.now.ended))
    assert size < 16 * 400


def test_while_nodes_of_the_release_before_are_there_nobody_keeps_how_rebalances_ended() -> None:
    made = Catalog()
    made.now = at_version(made.now, ENDINGS - 1)
    ended_one_after_another(made, 3)
    assert made.now.ended == ()


def test_a_node_is_emptied_from_the_entry_on_that_begins_it_and_not_by_one_that_is_refused() -> None:
    made = started()
    begin = StartRebalance(Wish(balance=False), RebalanceConfig(), empty="node-2")
    assert begin.needs() == EMPTIES
    with pytest.raises(NeedleError, match="rebalance 2 is about to begin"):
        made.tell(begin)
    made.tell(StepRebalance(replace(made.job, state=JobState.DONE), made.job.revision))
    with pytest.raises(NeedleError, match="'node-9'"):
        made.tell(StartRebalance(Wish(balance=False), RebalanceConfig(), empty="node-9"))
    assert made.job.id == 2 and all(info.state is NodeState.ACTIVE for info in made.now.nodes)
    assert made.tell(begin).version == made.job.id == made.index
    assert [info.id for info in made.now.nodes if info.state is NodeState.DRAINING] == ["node-2"]


def running(made: Catalog) -> Job:
    return replace(made.job, state=JobState.RUNNING)


def test_one_rebalance_at_a_time_and_the_next_one_after_its_end() -> None:
    made = started(batch_size=7)
    assert (made.job.id, made.job.state, made.job.config.batch_size) == (2, JobState.PENDING, 7)
    with pytest.raises(NeedleError, match="rebalance 2 is about to begin"):
        made.tell(StartRebalance(Wish(), RebalanceConfig()))
    made.tell(StepRebalance(replace(made.job, state=JobState.DONE), made.job.revision))
    with pytest.raises(NeedleError, match="rebalance 2 is done"):
        made.tell(StepRebalance(made.job, made.job.revision))
    with pytest.raises(NeedleError, match="cannot become paused"):
        made.tell(AskRebalance(2, "pause"))
    assert made.tell(StartRebalance(Wish(shards=5), RebalanceConfig())).version == made.job.id == made.index
    with pytest.raises(NeedleError, match=f"the last one is {made.job.id}"):
        made.tell(AskRebalance(2, "pause"))


def test_it_is_not_done_if_a_node_to_be_emptied_was_given_something_after_the_look() -> None:
    """An operator's command may come between what a coordinator saw and its last step."""
    made = started()
    nodes = tuple(replace(info, knows=CHECKED) for info in made.now.nodes)
    made.now = replace(made.now, nodes=nodes, cluster_version=CHECKED)
    made.tell(DrainNode("node-6", True))
    held = list(made.now.shards[0].wanted)
    made.tell(AssignReplicas(shard_group(0), held, ["node-6", *held[1:]]))
    done = replace(running(made), state=JobState.DONE)
    with pytest.raises(NeedleError, match="node-6 is to be emptied") as refused:
        made.tell(StepRebalance(done, made.job.revision))
    assert refused.value.details["field"] in ("revision", "before")  # the coordinator looks again
    made.now = replace(made.now, cluster_version=CHECKED - 1)  # its nodes may not know that rule
    made.tell(StepRebalance(done, made.job.revision))


def test_a_wish_is_bounded() -> None:
    with pytest.raises(NeedleError, match=f"at most {WISHED_MAX}"):
        Catalog().tell(StartRebalance(Wish(retire=tuple(range(WISHED_MAX + 1))), RebalanceConfig()))


@pytest.mark.parametrize("field", ["lost", "drain", "retire", "weights", "zones"])
def test_who_asks_for_a_plan_is_refused_too_many_names_before_they_are_looked_at(field: str) -> None:
    """A million of them took seconds of a thread that kept the interpreter, and over HTTP a part of that on the event
    loop."""
    names: dict[str, Any] = {f"n{at}": 1.0 if field == "weights" else "a" for at in range(WISHED_MAX + 1)}
    several = field in ("weights", "zones")
    said: Any = names if several else list(range(len(names))) if field == "retire" else list(names)
    made = world()
    with pytest.raises(InvalidArgument, match=f"wish = {WISHED_MAX + 1} is not allowed: at most {WISHED_MAX}"):
        plan(made.topology, made.stats(), Wish(**{field: said if several else tuple(said)}))
    with pytest.raises(msgspec.ValidationError, match=f"at most {WISHED_MAX} shards and nodes"):
        msgspec.convert({"wish": {field: said}}, PlanRebalance)


def test_who_has_not_seen_the_last_change_takes_no_step() -> None:
    made = started()
    seen = made.job
    made.tell(AskRebalance(seen.id, "pause"))
    with pytest.raises(NeedleError, match="was changed meanwhile"):
        made.tell(StepRebalance(replace(seen, state=JobState.RUNNING), seen.revision))
    assert made.job.state is JobState.PAUSED
    assert made.tell(AskRebalance(seen.id, "pause")).existed
    made.tell(AskRebalance(seen.id, "resume"))
    assert made.job.state is JobState.PENDING
    made.tell(StepRebalance(replace(made.job, why="x" * 5000), made.job.revision))
    assert len(made.job.why) == WHY_CHARS_MAX


def test_a_step_and_the_move_that_it_begins_are_one() -> None:
    made = started(batch_size=50, throttle_rate=0.5)
    move = FoundShard(shard=4, replicas=("node-1", "node-2", "node-3"))
    with pytest.raises(NeedleError, match="state = 'pending'"):
        made.tell(StepRebalance(made.job, made.job.revision, move))
    made.tell(StepRebalance(running(made), made.job.revision, move))
    assert made.now.shards[4].replicas == move.replicas
    assert [(one.id, one.move) for one in made.job.running] == [(made.index, move)]

    assert made.now.map is not None
    ranges = tuple(made.now.map.ranges(0)[:2])
    second = MoveRange(source=0, target=4, ranges=ranges, documents=10, bytes=100)
    with pytest.raises(NeedleError, match="not at once"):  # its target is being founded, as far as the step says
        made.tell(StepRebalance(running(made), made.job.revision, second, 1, made.now.map.epoch))
    assert not made.now.moves
    free = replace(made.job, running=())
    with pytest.raises(NeedleError, match="which is old"):
        made.tell(StepRebalance(free, made.job.revision, second, 1, made.now.map.epoch + 1))
    made.tell(StepRebalance(free, made.job.revision, second, 1, made.now.map.epoch))
    (info,) = made.now.moves
    assert (info.id, info.batch_size, info.throttle_rate) == (made.index, 50, 0.5)
    assert made.job.running[0].nodes == move.replicas
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made.now), type=Topology) == made.now


def test_no_more_moves_than_the_limit_begin() -> None:
    made = started(max_concurrent_moves=1)
    assert made.now.map is not None
    for source in (0, 1):
        ranges = tuple(made.now.map.ranges(source)[:1])
        move = MoveRange(source=source, target=2, ranges=ranges, documents=0, bytes=0)
        step = StepRebalance(running(made), made.job.revision, move, source, made.now.map.epoch)
        if source == 0:
            made.tell(step)
        else:
            with pytest.raises(NeedleError, match="at most 1 moves"):
                made.tell(step)


def test_replicas_on_their_way_are_taken_back() -> None:
    made = started()
    before = made.now.shards[0].replicas
    move = MoveReplicas(
        group=shard_group(0), before=before, after=(*before[:2], "node-6"), documents=1, bytes=1, why=""
    )
    made.tell(StepRebalance(running(made), made.job.revision, move))
    (one,) = made.job.running
    assert set(made.now.shards[0].wanted) == {*before[:2], "node-6"}
    made.tell(AskRebalance(made.job.id, "cancel"))
    with pytest.raises(NeedleError, match="give_up = 1"):
        made.tell(StepRebalance(made.job, made.job.revision, give_up=1))
    made.tell(StepRebalance(made.job, made.job.revision, give_up=one.id))
    assert set(made.now.shards[0].wanted) == set(before)
    assert not made.job.running
    assert made.job.state is JobState.CANCELLING


def test_a_step_changes_neither_the_wish_nor_what_runs() -> None:
    made = started(max_concurrent_moves=1)
    strange = Running(id=7, move=FoundShard(shard=4, replicas=("node-1",)), nodes=())
    for changes in (
        {"wish": Wish(shards=9)},
        {"config": RebalanceConfig(max_concurrent_moves=100)},
        {"running": (strange,)},
    ):
        with pytest.raises(NeedleError, match="the same wish and limits"):
            made.tell(StepRebalance(replace(made.job, **changes), made.job.revision))


def test_limits_that_cannot_be_are_refused_before_they_are_a_command() -> None:
    good = encode(StartRebalance(Wish(), RebalanceConfig(batch_size=77)))
    assert good.count(bytes([77])) == 1
    with pytest.raises(NeedleError, match="batch_size"):
        decode(good.replace(bytes([77]), bytes([0])))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"threshold": math.inf}, "threshold"),
        ({"threshold": 1e300}, "threshold"),
        ({"goal": math.nan}, "goal"),
        ({"heat": math.nan}, "heat"),
        ({"heat": 5.0}, "heat"),
        ({"range_threshold": math.inf}, "range_threshold"),
        ({"range_bytes_max": 1}, "range_bytes_max"),
        ({"catalog_nodes": -1}, "catalog_nodes"),
        ({"weights": {"node-1": math.nan}}, "weight of node-1"),
        ({"zones": {"node-1": "x" * 257}}, "zone of node-1"),
    ],
)
def test_a_wish_by_which_no_plan_can_be_made_is_refused(changes: dict[str, object], field: str) -> None:
    """Kept in the catalog it would end each node that comes to lead it."""
    made, wish = Catalog(), Wish(**changes)  # type: ignore[arg-type]
    with pytest.raises(NeedleError, match=field):
        made.tell(StartRebalance(wish, RebalanceConfig()))
    with pytest.raises(NeedleError, match=field):
        plan(made.now, ClusterStats(shards=(), nodes=()), wish)


def test_a_step_with_numbers_that_cannot_be_is_refused() -> None:
    made = started()
    for changes in ({"moved_bytes": (1 << 64) - 1}, {"moved_documents": -1}, {"stuck": -1}, {"planned_bytes": 1 << 63}):
        with pytest.raises(NeedleError, match=next(iter(changes))):
            made.tell(StepRebalance(replace(made.job, **changes), made.job.revision))
    assert made.now.map is not None
    ranges = tuple(made.now.map.ranges(0)[:1])
    heavy = MoveRange(source=0, target=1, ranges=ranges, documents=1, bytes=(1 << 64) - 1)
    with pytest.raises(NeedleError, match="bytes"):
        made.tell(StepRebalance(running(made), made.job.revision, heavy, 1, made.now.map.epoch))
    move = FoundShard(shard=4, replicas=("node-1", "node-2", "node-3"))
    made.tell(StepRebalance(running(made), made.job.revision, move))
    twice = replace(made.job, running=made.job.running * 2)
    with pytest.raises(NeedleError, match="the same or less"):
        made.tell(StepRebalance(twice, made.job.revision))


def test_what_has_nothing_under_way_is_cancelled_at_once() -> None:
    """It must not wait for shards to answer, which may never be."""
    made = started()
    made.tell(StepRebalance(running(made), made.job.revision))
    made.tell(AskRebalance(made.job.id, "cancel"))
    assert made.job.state is JobState.CANCELLED
    made.tell(StartRebalance(Wish(), RebalanceConfig()))


def test_replicas_whose_order_was_changed_meanwhile_are_taken_back_all_the_same() -> None:
    made = started()
    before = made.now.shards[0].replicas
    after = (*before[:2], "node-6")
    move = MoveReplicas(group=shard_group(0), before=before, after=after, documents=1, bytes=1)
    made.tell(StepRebalance(running(made), made.job.revision, move))
    made.tell(AssignReplicas(shard_group(0), list(after), list(reversed(after))))
    made.tell(AskRebalance(made.job.id, "cancel"))
    made.tell(StepRebalance(made.job, made.job.revision, give_up=made.job.running[0].id))
    assert set(made.now.shards[0].wanted) == set(before)
