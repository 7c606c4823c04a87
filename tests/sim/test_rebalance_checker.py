"""The checker of rebalances sees each thing that must not be."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from catalog.catalog_util import topology
from needle.catalog.state import execute
from needle.protocol.catalog_commands import (
    AddShard,
    AssignReplicas,
    ConfirmReplicas,
    DrainNode,
    RemoveNode,
    RetireShard,
    StartMove,
)
from needle.routing.jobs import Ended, Job, JobState, RebalanceConfig, Running
from needle.routing.planned_moves import FoundShard, GiveUpShard, MoveRange, MoveReplicas
from needle.routing.plans import Replacement, ReplicaMove, ShardSplit, Wish
from needle.routing.topology import Topology
from proof.checkers.rebalances import LOOKS_MIN, Rebalances
from proof.checkers.violation import Violation

replace = msgspec.structs.replace
NOW = topology()
JOB = Job(id=5, wish=Wish(), config=RebalanceConfig(max_concurrent_moves=2), state=JobState.RUNNING)


def with_job(now: Topology, **changes: Any) -> Topology:
    return replace(now, rebalance=replace(JOB, **changes))


def judged(before: Topology, now: Topology, owned: int = 0) -> None:
    Rebalances(lambda shard: [(b"", None)] * owned).changed(before, now)


def test_how_the_last_one_ended_is_kept() -> None:
    at = replace(NOW, cluster_version=5)
    before = with_job(at, state=JobState.FAILED)
    assert before.rebalance is not None
    after = with_job(at, id=9)
    judged(before, replace(after, ended=(Ended.of(before.rebalance),)))
    done = Ended.of(replace(before.rebalance, state=JobState.DONE))
    for wrong in ((), (done,)):
        with pytest.raises(Violation, match="of the rebalances that ended so"):
            judged(before, replace(after, ended=wrong))
    with pytest.raises(Violation, match="of the rebalances that ended so"):
        judged(replace(after, ended=(done,)), after)


def of_ranges(id_: int, source: int = 0, target: int = 1) -> Running:
    move = MoveRange(source=source, target=target, ranges=((b"", b"a"),), documents=0, bytes=0)
    return Running(id=id_, move=move, nodes=())


def of_replicas(id_: int) -> Running:
    before = NOW.shards[0].replicas
    after = (*before[:2], "node-6")
    return Running(id=id_, move=MoveReplicas(group=1, before=before, after=after, documents=0, bytes=0), nodes=())


def test_one_at_a_time_and_the_end_is_the_end() -> None:
    judged(NOW, with_job(NOW))
    judged(with_job(NOW, state=JobState.DONE), with_job(NOW, id=9))
    for before, now in (
        (with_job(NOW), with_job(NOW, id=9)),
        (with_job(NOW, state=JobState.DONE), with_job(NOW, id=3)),
        (with_job(NOW, state=JobState.CANCELLED), with_job(NOW)),
        (with_job(NOW), NOW),
    ):
        with pytest.raises(Violation):
            judged(before, now)


def test_what_runs_at_once() -> None:
    known = with_job(NOW, running=(of_ranges(1), of_ranges(2)), stuck=1)
    judged(with_job(NOW, running=(of_ranges(1), of_ranges(2))), known)
    for running in ((of_ranges(1), of_ranges(2), of_ranges(3)), (of_ranges(1), of_replicas(2))):
        with pytest.raises(Violation):
            judged(with_job(NOW, running=running), with_job(NOW, running=running, stuck=1))


def test_what_begins_has_begun() -> None:
    assert NOW.map is not None
    moving = execute(NOW, 7, StartMove(1, NOW.map.epoch, NOW.map.ranges(0)[:1], 0, 1))[0]
    judged(with_job(NOW), with_job(moving, running=(of_ranges(7),)))
    for state, now, running in (
        (JobState.RUNNING, NOW, of_ranges(7)),
        (JobState.RUNNING, moving, of_ranges(8)),
        (JobState.RUNNING, moving, of_ranges(7, 1, 0)),
        (JobState.PAUSED, moving, of_ranges(7)),
        (JobState.RUNNING, replace(NOW, version=7), of_replicas(7)),
    ):
        with pytest.raises(Violation):
            judged(with_job(NOW), with_job(now, state=state, running=(running,)))
    gone = Running(id=7, move=GiveUpShard(shard=1), nodes=())
    judged(with_job(NOW), with_job(replace(NOW, version=7), running=(gone,)))


def test_what_goes_on_has_not_ended() -> None:
    assert NOW.map is not None
    moving = execute(NOW, 7, StartMove(1, NOW.map.epoch, NOW.map.ranges(0)[:1], 0, 1))[0]
    judged(with_job(moving, running=(of_ranges(7),)), with_job(NOW))
    with pytest.raises(Violation, match="goes on"):
        judged(with_job(moving, running=(of_ranges(7),)), with_job(moving))
    held = replace(NOW.shards[0], replicas=(*NOW.shards[0].replicas[:2], "node-6", "node-3"), leaving=("node-3",))
    leaving = replace(NOW, shards=(held, *NOW.shards[1:]))
    with pytest.raises(Violation, match="leaving"):
        judged(with_job(leaving, running=(of_replicas(7),)), with_job(leaving))
    before = with_job(moving, running=(of_ranges(7),), state=JobState.CANCELLING)
    judged(before, with_job(moving, state=JobState.CANCELLED, why="left to end by itself: shard 1 is silent"))
    with pytest.raises(Violation, match="goes on"):
        judged(before, with_job(moving, state=JobState.CANCELLED))


def test_who_is_cancelled_runs_nothing_and_has_waited() -> None:
    assert NOW.map is not None
    moving = execute(NOW, 7, StartMove(1, NOW.map.epoch, NOW.map.ranges(0)[:1], 0, 1))[0]
    runs = with_job(moving, running=(of_ranges(7),), state=JobState.CANCELLING, revision=3)
    with pytest.raises(Violation, match="still runs"):
        judged(runs, with_job(moving, running=(of_ranges(7),), state=JobState.CANCELLED))
    for steps in (LOOKS_MIN - 1, LOOKS_MIN):
        checker = Rebalances(lambda shard: [])
        checker.changed(with_job(moving, running=(of_ranges(7),)), runs)
        left = with_job(moving, state=JobState.CANCELLED, why="left to end by itself", revision=3 + steps)
        if steps < LOOKS_MIN:
            with pytest.raises(Violation, match="steps after its cancel"):
                checker.changed(runs, left)
        else:
            checker.changed(runs, left)


def test_who_has_failed_runs_nothing() -> None:
    judged(with_job(NOW), with_job(NOW, state=JobState.FAILED, why="a shard is gone"))
    assert NOW.map is not None
    moving = execute(NOW, 7, StartMove(1, NOW.map.epoch, NOW.map.ranges(0)[:1], 0, 1))[0]
    runs = with_job(moving, running=(of_ranges(7),))
    with pytest.raises(Violation, match="has failed, and still runs"):
        judged(runs, with_job(moving, running=(of_ranges(7),), state=JobState.FAILED))


def test_done_is_what_was_wished() -> None:
    done = JobState.DONE
    judged(with_job(NOW, wish=Wish(shards=4)), with_job(NOW, state=done, wish=Wish(shards=4)))
    draining = execute(NOW, 7, DrainNode("node-1", True))[0]
    for now, changes in (
        (execute(NOW, 7, AddShard(4, ["node-1"]))[0], {"wish": Wish(shards=5)}),
        (NOW, {"wish": Wish(shards=5)}),
        (NOW, {"wish": Wish(retire=(1,))}),
        (draining, {}),
        (NOW, {"running": (Running(id=1, move=FoundShard(shard=4, replicas=("node-1",)), nodes=()),)}),
    ):
        with pytest.raises(Violation, match="is done"):
            judged(with_job(now, **{**changes, "state": JobState.RUNNING}), with_job(now, state=done, **changes))


def test_each_shard_has_as_many_replicas_as_was_said() -> None:
    at = replace(NOW, replicas=4)
    begun, done = with_job(at), with_job(at, state=JobState.DONE, revision=1)
    seen = Rebalances(lambda shard: [])
    seen.changed(at, begun)
    with pytest.raises(Violation, match="is done, and shard 0 has 3 of 4 replicas"):
        seen.changed(begun, done)
    fewer = replace(NOW, replicas=2)
    seen = Rebalances(lambda shard: [])
    seen.changed(fewer, with_job(fewer))
    with pytest.raises(Violation, match="is done, and shard 0 has 3 of 2 replicas"):
        seen.changed(with_job(fewer), with_job(fewer, state=JobState.DONE, revision=1))
    enough = replace(NOW, replicas=3)
    seen = Rebalances(lambda shard: [])
    seen.changed(enough, begun := with_job(enough))
    shards = tuple(replace(one, replicas=one.replicas[:2]) if not one.shard else one for one in NOW.shards)
    seen.changed(begun, with_job(replace(enough, shards=shards), state=JobState.DONE, revision=1))  # by others, since


@pytest.mark.parametrize("wish", [Wish(lost=("node-1",)), Wish(weights={"node-1": 0.0, "node-2": 1.0})])
def test_what_was_lost_or_has_no_weight_holds_nothing(wish: Wish) -> None:
    held = [info.shard for info in NOW.serving if "node-1" in info.wanted]
    checker = Rebalances(lambda _: [])
    checker.changed(NOW, with_job(NOW, wish=wish))
    with pytest.raises(Violation, match=f"node-1, which it was to empty, holds shard {held[0]}"):
        checker.changed(with_job(NOW, wish=wish), with_job(NOW, wish=wish, state=JobState.DONE))
    others = Rebalances(lambda _: [])  # somebody has decided on these shards since
    others.changed(NOW, with_job(NOW, wish=Wish(weights={"node-1": 1.0}), state=JobState.DONE))
    shards = tuple(replace(info, replicas=info.replicas[::-1]) for info in NOW.shards)
    moved = replace(NOW, shards=shards)
    others.changed(with_job(NOW, wish=wish, id=6), with_job(moved, wish=wish, id=6, state=JobState.DONE))


def test_what_was_wished_by_hand_is_so_and_nothing_else_need_be() -> None:
    drained = execute(NOW, 6, DrainNode("node-1", True))[0]
    held = NOW.shards[0].replicas
    for wish, so in (
        (Wish(split=ShardSplit(shard=0, into=1)), True),
        (Wish(split=ShardSplit(shard=0, into=4)), False),
        (Wish(move=ReplicaMove(shard=0, source="node-6", target=held[0])), True),
        (Wish(move=ReplicaMove(shard=0, source=held[0], target="node-6")), False),
        (Wish(move=ReplicaMove(shard=0, source=held[0], target=held[1])), False),
    ):
        before, now = with_job(drained, wish=wish), with_job(drained, wish=wish, state=JobState.DONE)
        if so:
            judged(before, now)
        else:
            with pytest.raises(Violation, match="is done, and shard 0 is"):
                judged(before, now)


def test_a_retired_shard_owned_nothing() -> None:
    more = execute(NOW, 7, AddShard(4, ["node-1"]))[0]
    gone = execute(more, 8, RetireShard(4))[0]
    judged(more, gone)
    with pytest.raises(Violation, match="owns key ranges by its log"):
        judged(more, gone, owned=1)
    with pytest.raises(Violation, match="shards were known"):
        judged(more, NOW)


def test_who_is_replaced_gets_nothing_and_is_removed_in_the_end() -> None:
    wish, free = Wish(replace=Replacement(old="node-6", new="node-5")), NOW
    for number, info in enumerate(NOW.serving):
        if "node-6" in info.replicas:
            after = [one for one in info.replicas if one != "node-6"]
            free = execute(free, 7 + number, AssignReplicas(info.shard + 1, list(info.replicas), after))[0]
            free = execute(free, 20 + number, ConfirmReplicas(info.shard + 1, free.version))[0]
    gone = execute(free, 30, RemoveNode("node-6"))[0]
    assert gone is not free
    judged(with_job(free, wish=wish), with_job(gone, wish=wish, state=JobState.DONE))
    with pytest.raises(Violation, match="is not removed"):
        judged(with_job(free, wish=wish), with_job(free, wish=wish, state=JobState.DONE))
    judged(with_job(NOW, wish=wish), with_job(free, wish=wish, stuck=1))
    with pytest.raises(Violation, match="gets a replica"):
        judged(with_job(free, wish=wish), with_job(NOW, wish=wish, stuck=1))
