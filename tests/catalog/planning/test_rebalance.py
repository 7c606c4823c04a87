"""A rebalance as a state machine: what starts when, what ends it, and that any successor brings it to the same end."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.planning.planned_world import MIB, Begun, World, info, join, world
from needle.base.errors import InvalidArgument
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, shard_group
from needle.catalog.planning.planner import plan
from needle.catalog.planning.rebalance import (
    NOTHING,
    STUCK_MAX,
    Round,
    cancel,
    check_invariants,
    finished,
    look,
    pause,
    progress,
    resume,
    takers,
)
from needle.catalog.planning.running import Seen, now_running, unsettled
from needle.catalog.state import execute
from needle.protocol.catalog_commands import AssignReplicas, StartMove
from needle.routing.jobs import Job, JobState, Phase, RebalanceConfig, Running
from needle.routing.planned_moves import Move, MoveRange, MoveReplicas
from needle.routing.plans import Plan, Wish
from needle.routing.stats import imbalance
from needle.routing.topology import MoveInfo, MoveState


@dataclass
class Coordinator:
    """As a node would do it, on paper: each round begins with the job as it was stored last."""

    made: World
    job: Job
    running: list[tuple[Running, Begun]] = field(default_factory=list)
    number: int = 0

    def plan(self) -> Plan:
        return plan(self.made.topology, self.made.stats(), self.job.pressing())

    def holders(self) -> dict[GroupId, tuple[NodeId, ...]]:
        groups = [CATALOG_GROUP, *(shard_group(one.shard) for one in self.made.topology.serving)]
        known = {group: self.made.topology.holders(group) for group in groups}
        return {group: one.all for group, one in known.items() if one is not None}

    def look(self) -> Round:
        """A round: start what it says."""
        self.job = msgspec.msgpack.decode(msgspec.msgpack.encode(self.job), type=Job)  # nothing else outlives a node
        free = {one.node: one.free for one in self.made.stats().nodes}
        holders = self.holders()
        made = look(self.job, self.plan(), [one for one, _ in self.running], free, holders)
        self.job = made.job
        for move in made.start:
            self.number += 1
            one = Running(id=self.number, move=move, nodes=takers(move, holders)[0])
            self.running.append((one, self.made.begin(move)))
        check_invariants([one for one, _ in self.running], self.job.config.max_concurrent_moves)
        return made

    def finish(self, at: int) -> Move:
        """One of those that run, to its end."""
        one, begun = self.running.pop(at % len(self.running))
        self.made.end(one.move, begun)
        self.job = finished(self.job, one.move)
        return one.move


def coordinator(made: World, wish: Wish, limit: int = 4) -> Coordinator:
    return Coordinator(made, Job(id=1, wish=wish, config=RebalanceConfig(max_concurrent_moves=limit)))


def test_no_more_moves_run_than_the_limit() -> None:
    made = coordinator(world(), Wish(shards=5, range_bytes_max=40 * MIB), limit=3)
    made.look()  # the shard comes first
    made.finish(0)
    assert len(made.look().start) == 3
    assert made.look().start == ()
    made.finish(1)
    assert len(made.look().start) == 1


def test_moves_of_others_that_use_its_limit_do_not_make_it_fail() -> None:
    made = coordinator(world(), Wish(shards=5))
    job, moves = made.job, plan(made.made.topology, made.made.stats(), Wish(shards=5))
    for _ in range(2 * STUCK_MAX):
        led = look(job, moves, [], {}, {}, "", job.config.max_concurrent_moves)
        job = led.job
        assert (led.start, job.stuck, job.over) == ((), 0, False)
    assert "moves that others began" in job.why
    assert look(job, moves, [], {}, {}).start


def test_an_even_cluster_is_done_at_once() -> None:
    made = coordinator(world(), Wish())
    assert made.look().job.state is JobState.DONE
    assert progress(made.job, made.plan(), [], 0.0).percent_complete == 100.0


def test_what_others_move_is_waited_for() -> None:
    """A plan counts it as moved: a shard that is to go, and takes part in a move of others, would be left there."""
    made = coordinator(world(), Wish())
    made.look()
    waiting = msgspec.structs.replace(made.job, state=JobState.RUNNING)
    nothing = plan(made.made.topology, made.made.stats(), Wish())
    shard_map = made.made.topology.map
    assert shard_map is not None
    before = made.made.topology
    moving = execute(before, 99, StartMove(1, shard_map.epoch, shard_map.ranges(0), 0, 1))[0]
    for topology, ends in ((moving, False), (before, True)):
        led = look(waiting, nothing, [], {}, {}, unsettled(topology))
        assert led.job.over is ends
        assert ("is under way" in led.job.why) is not ends
    leaving = execute(before, 99, AssignReplicas(1, list(before.shards[0].replicas), ["node-6", "node-5", "node-4"]))[0]
    assert "the replicas of shard 0 on" in unsettled(leaving)


def test_a_paused_one_starts_nothing_and_goes_on_when_told() -> None:
    made = coordinator(world(), Wish(shards=5))
    made.job = pause(made.job)
    assert made.look().start == ()
    made.job = resume(made.job)
    assert made.look().start


def test_a_cancelled_one_gives_up_what_is_not_decided() -> None:
    made = coordinator(world(), Wish(shards=5, range_bytes_max=40 * MIB), limit=4)
    made.look()
    made.finish(0)
    made.look()
    phases = (Phase.COPY, Phase.CATCH_UP, Phase.SWITCH, Phase.CLEAN_UP)
    made.running = [
        (msgspec.structs.replace(one, phase=phase), begun)
        for (one, begun), phase in zip(made.running, phases, strict=True)
    ]
    made.job = cancel(msgspec.structs.replace(made.job, running=tuple(one for one, _ in made.running)))
    asked = made.look()
    assert asked.start == ()
    assert asked.give_up == tuple(one.id for one, _ in made.running[:2])
    made.running.clear()
    assert made.look().job.state is JobState.CANCELLED
    assert cancel(made.job) is made.job
    for ask in (pause, resume):
        with pytest.raises(InvalidArgument, match="cancelled"):
            ask(made.job)


def test_one_that_cannot_go_on_says_why_and_fails_in_the_end() -> None:
    made = coordinator(world(nodes=3), Wish(drain=("node-1",)))
    for _ in range(STUCK_MAX - 1):
        made.look()
        while made.running:
            made.finish(0)
    assert made.job.state is JobState.RUNNING
    assert "no other node can take it" in made.job.why
    for _ in range(3):
        made.look()
    assert made.job.state is JobState.FAILED


def test_progress_counts_what_is_copied_so_far() -> None:
    made = coordinator(world(), Wish(shards=5))
    made.look()
    made.finish(0)
    made.look()
    running = [msgspec.structs.replace(one, copied=one.move.bytes // 2) for one, _ in made.running]
    told = progress(made.job, made.plan(), running, 10.0)
    assert 0 < told.percent_complete < 100
    assert told.eta == (told.total_bytes - told.moved_bytes) / 10
    paused = msgspec.structs.replace(made.job, state=JobState.PAUSED)
    assert progress(paused, made.plan(), running, 10.0).eta is None, "the rate fell, and what was left grew"
    assert set(told.phases) == {one.id for one in running}


def test_a_cancelled_one_is_not_all_done() -> None:
    made = coordinator(world(), Wish(shards=5))
    made.look()
    made.finish(0)  # the new shard is there; nothing was copied
    planned = made.job.planned_bytes
    told = progress(msgspec.structs.replace(made.job, state=JobState.CANCELLED), NOTHING, [], 0.0)
    assert planned and (told.percent_complete, told.moved_bytes, told.total_bytes) == (0, 0, planned)


@pytest.mark.parametrize("state", [MoveState.CANCELLING, MoveState.GIVEN_UP])
def test_what_is_taken_back_does_not_count_as_copied(state: MoveState) -> None:
    move = MoveRange(source=0, target=1, ranges=((0, 9),), documents=10, bytes=1000)
    there = MoveInfo(id=5, nonce=1, ranges=((0, 9),), source=0, target=1, state=state)
    topology = msgspec.structs.replace(world().topology, moves=(there,))
    one = Running(id=5, move=move, nodes=(), copied=300)
    (now,) = now_running([one], Seen(topology=topology, voters={}, learners={}, copied={}))
    assert (now.phase, now.copied) == (Phase.CLEAN_UP, 0)


@pytest.mark.parametrize("wrong", [{"max_concurrent_moves": 0}, {"batch_size": 0}, {"throttle_rate": -1}])
def test_a_config_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        RebalanceConfig(**wrong)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_any_rebalance_ends_whoever_goes_on_with_it(data: st.DataObject) -> None:
    """Moves end in any order, several at a time; each round may be another coordinator's; it is paused and goes on."""
    made = world(documents=400)
    made.edges = [key for key, _ in made.documents[::4]]
    join(made, *(info(n) for n in range(7, 7 + data.draw(st.integers(0, 3)))))
    wish = data.draw(
        st.sampled_from(
            [
                Wish(shards=6, range_bytes_max=100 * MIB),
                Wish(shards=2),
                Wish(drain=("node-1", "node-2")),
                Wish(shards=3, drain=("node-4",), replicas=2),
                Wish(),
            ]
        )
    )
    made.closed = set(wish.drain)
    first = plan(made.topology, made.stats(), wish)
    run = coordinator(made, wish, data.draw(st.integers(1, 5)))
    for _ in range(200):
        run.look()
        if run.job.over:
            break
        if data.draw(st.integers(0, 9)) == 0:
            run.job = resume(pause(run.job))
        for _ in range(data.draw(st.integers(1, 4))):
            if run.running:
                run.finish(data.draw(st.integers(0, 9)))
    assert run.job.state is (JobState.DONE if not first.unmet else JobState.RUNNING), (
        run.job,
        first.unmet,
        run.plan().in_words(),
    )
    assert not run.running, (wish, run.job, first.unmet)
    assert imbalance(made.sizes().values()) < 0.2, made.sizes()
    assert not [one for one in made.topology.serving if made.closed & set(one.replicas)]
    assert run.job.moved_bytes < 1.5 * first.bytes + 64 * MIB, (wish, run.job.moved_bytes, first.bytes)


def test_who_has_copied_twice_what_was_planned_comes_no_nearer_than_the_threshold() -> None:
    """Beside a shard that stayed too heavy, two others gave each other one document for good: a plan to the goal never
    came to its end, and the rebalance went on by the same wish."""
    job = Job(id=1, wish=Wish(), config=RebalanceConfig(), state=JobState.RUNNING, planned_bytes=10, moved_bytes=20)
    assert job.pressing().goal == job.wish.goal < job.wish.threshold
    late = msgspec.structs.replace(job, moved_bytes=21)
    assert late.pressing() == msgspec.structs.replace(job.wish, goal=job.wish.threshold)
    assert msgspec.structs.replace(late, state=JobState.PENDING).pressing() == job.wish
    own = msgspec.structs.replace(late, wish=Wish(range_threshold=0.1))
    assert own.pressing().goal == 0.1


def test_replicas_on_their_way_count_by_what_their_leader_has_sent() -> None:
    topology = world().topology
    before = topology.shards[0].wanted
    new = next(info.id for info in topology.nodes if info.id not in before)
    after = (*before[:2], new)
    move = MoveReplicas(group=1, before=before, after=after, documents=10, bytes=1000)
    one, voters = Running(id=5, move=move, nodes=(new,)), frozenset(before)

    def seen(voters: frozenset[str], learners: tuple[str, ...], share: float) -> tuple[Phase, int, int]:
        now = Seen(
            topology=topology,
            voters={1: voters},
            learners={1: frozenset(learners)},
            copied={},
            fetched={1: {new: share}},
        )
        (made,) = now_running([one], now)
        job = Job(id=1, wish=Wish(), config=RebalanceConfig(), state=JobState.RUNNING)
        return made.phase, made.copied, progress(job, NOTHING, [made], 0.0).moved_documents

    assert seen(voters, (), 0.0) == (Phase.PREPARE, 0, 0)
    assert seen(voters, (new,), 0.25) == (Phase.COPY, 250, 2)
    assert seen(voters, (new,), 1.0) == (Phase.CATCH_UP, 1000, 10)
    assert seen(voters | {new}, (), 0.0) == (Phase.SWITCH, 1000, 10)
    assert seen(frozenset(after), (), 0.0) == (Phase.CLEAN_UP, 1000, 10)
