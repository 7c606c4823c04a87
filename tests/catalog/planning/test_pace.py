"""How fast moves may copy, and how long a plan takes at least."""

from __future__ import annotations

import math

import msgspec
import pytest

from needle.catalog.planning import rebalance
from needle.routing.copy_rates import RANGE_DOCUMENTS, REPLICA_BYTES, CopyRates
from needle.routing.jobs import OVER, Job, JobState, Phase, RebalanceConfig, Running
from needle.routing.pace import STEPS_SECONDS, expected_seconds, rate_max, rest_of
from needle.routing.planned_moves import MoveRange, MoveReplicas, PreferLeader
from needle.routing.plans import Wish

SLOW = RebalanceConfig(batch_size=100, throttle_rate=0.5)
FAST = RebalanceConfig(throttle_rate=0.0)
TWO = MoveReplicas(group=3, before=("a", "b"), after=("b", "c", "d"), documents=2000, bytes=2 * REPLICA_BYTES)
RANGE = MoveRange(source=0, target=1, ranges=((b"", b"m"),), documents=RANGE_DOCUMENTS, bytes=1 << 20)
LEADER = PreferLeader(group=4, before=("a", "b"), after=("b", "a"))


def job(state: JobState = JobState.RUNNING, config: RebalanceConfig = SLOW) -> Job:
    running = (Running(id=8, move=RANGE, nodes=("c",)), Running(id=9, move=TWO, nodes=("c", "d")))
    return Job(id=5, wish=Wish(), config=config, state=state, running=running)


@pytest.mark.parametrize("state", [state for state in JobState if state not in {*OVER, JobState.PAUSED}])
def test_a_new_replica_rests_as_long_as_ranges_of_as_many_documents(state: JobState) -> None:
    assert rest_of(job(state), 3, "c") == rest_of(job(state), 3, "d") == 1000 / 100 * 0.5


def test_a_new_replica_waits_while_its_rebalance_is_paused_whatever_its_pace() -> None:
    for config in (SLOW, FAST):
        paused = job(JobState.PAUSED, config)
        assert rest_of(paused, 3, "c") == rest_of(paused, 3, "d") == math.inf
        assert rest_of(paused, 3, "b") == rest_of(paused, 2, "c") == 0.0  # a follower that was away


@pytest.mark.parametrize(
    ("known", "group", "node"),
    [
        (job(), 3, "b"),  # it has the shard, and was away
        (job(), 3, "a"),
        (job(), 2, "c"),  # of key ranges
        (job(config=FAST), 3, "c"),
        (msgspec.structs.replace(job(), running=()), 3, "c"),
        (None, 3, "c"),
        *((job(state), 3, "c") for state in OVER),
    ],
)
def test_nothing_else_rests(known: Job | None, group: int, node: str) -> None:
    assert rest_of(known, group, node) == 0.0


def test_progress_tells_the_rate_of_what_copies() -> None:
    told = rebalance.progress(job(), rebalance.NOTHING, job().running, 0.0)
    assert rate_max(TWO, SLOW) == 2 * REPLICA_BYTES / 10
    assert told.moves[9] == f"{TWO.in_words()}, at most 5.7 MiB/s"
    assert told.moves[8].endswith(", at most 51.2 KiB/s")
    caught_up = [msgspec.structs.replace(one, phase=Phase.CATCH_UP) for one in job().running]
    for running, config in ((caught_up, SLOW), (job().running, FAST)):
        told = rebalance.progress(job(config=config), rebalance.NOTHING, running, 0.0)
        assert told.moves == {8: RANGE.in_words(), 9: TWO.in_words()}


@pytest.mark.parametrize(
    ("moves", "config", "seconds"),
    [
        ([], SLOW, 0.0),
        ([TWO], FAST, STEPS_SECONDS + 1.0),
        ([TWO], SLOW, STEPS_SECONDS + 1.0 + 5.0),
        ([RANGE], SLOW, STEPS_SECONDS + 1.0 + RANGE_DOCUMENTS / 100 * 0.5),
        ([TWO, RANGE, LEADER], FAST, STEPS_SECONDS + 1.0),
        ([TWO, RANGE, LEADER], msgspec.structs.replace(FAST, max_concurrent_moves=1), 3 * STEPS_SECONDS + 2.0),
        ([TWO, TWO, LEADER], msgspec.structs.replace(FAST, max_concurrent_moves=2), 2 * STEPS_SECONDS + 1.0),
    ],
)
def test_a_plan_takes_as_long_as_its_moves_side_by_side(moves, config, seconds) -> None:  # type: ignore[no-untyped-def]
    assert expected_seconds(moves, config) == pytest.approx(seconds)


def test_a_plan_goes_by_what_this_cluster_has_shown() -> None:
    slow = CopyRates(replica_bytes=REPLICA_BYTES / 10)
    assert expected_seconds([TWO, RANGE], FAST, slow) == pytest.approx(STEPS_SECONDS + 10.0)
    slow = CopyRates(range_documents=RANGE_DOCUMENTS / 20)
    assert expected_seconds([TWO, RANGE], FAST, slow) == pytest.approx(STEPS_SECONDS + 20.0)
