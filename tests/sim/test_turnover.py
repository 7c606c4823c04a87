"""The simulated operator replaces, empties and restarts nodes and splits shards while others die at each step."""

import msgspec
import pytest

from catalog.catalog_util import topology
from needle.base.ids import shard_group
from needle.catalog.state import execute
from needle.protocol.catalog_commands import AddShard, AdvanceMove, AssignReplicas, RetireShard, StartMove
from needle.protocol.move_commands import Freeze
from needle.raft.messages import ConfState
from needle.routing.jobs import Job, JobState, RebalanceConfig, Running
from needle.routing.planned_moves import MoveRange
from needle.routing.plans import Wish
from needle.routing.topology import MoveState, Topology
from proof.sim.runner import run
from proof.sim.shards.happenings import ALL, changes, configured, step_of
from proof.sim.spec import (
    BY_HAND_KINDS,
    GROW_KINDS,
    LOSS_KINDS,
    LOSS_NUMBER,
    RESIZE_KINDS,
    TURNOVER_KINDS,
    Spec,
)

NOW = topology()
GROUPS = [0, 1, 2, 3, 4]


def told(before: Topology, now: Topology) -> list[tuple[str, int, int]]:
    found = list(changes(before, now, GROUPS))
    assert {one.what for one in found} <= set(ALL)
    return [(one.what, one.source, one.target) for one in found]


@pytest.mark.campaign
def test_nodes_are_replaced_emptied_and_restarted_while_others_die_at_steps() -> None:
    spec = Spec(seed=119, nodes=5, seconds=60, sharded=True)
    kinds = {*TURNOVER_KINDS, *BY_HAND_KINDS, "at-a-step"}
    numbers = tuple(fault.number for fault in spec.schedule() if fault.kind in kinds)
    report, trace = run(msgspec.structs.replace(spec, faults=numbers), keep_trace=True)
    assert report.failure is None
    for what in ("no node of the cluster any more", "is split", "dies (rolling restart", "dies (at a step"):
        assert any(what in line for line in trace), what
    assert any("rolling-restart of" in line and line.endswith("is done") for line in trace)


def test_seeds_in_which_shards_come_and_go_draw_all_of_it() -> None:
    specs = [Spec(seed=seed, sharded=True) for seed in range(1, 60)]
    growing = [spec.schedule() for spec in specs if spec.resizes]
    assert {fault.kind for faults in growing for fault in faults} >= {*GROW_KINDS, *LOSS_KINDS}
    lost = [faults for faults in growing if any(fault.number == LOSS_NUMBER for fault in faults)]
    assert 0 < len(lost) < len(growing)
    others = {fault.kind for spec in specs if not spec.resizes for fault in spec.schedule()}
    assert not others & ({*GROW_KINDS, "die"} - {"join"})


def test_what_happens_to_shards_and_key_ranges_is_told_by_step() -> None:
    assert NOW.map is not None
    more = execute(NOW, 7, AddShard(4, ["node-1"]))[0]
    assert told(NOW, more) == [("founded", 5, 5)]
    assert told(more, execute(more, 8, RetireShard(4))[0]) == [("retired", 5, 5)]
    moving = execute(NOW, 7, StartMove(1, NOW.map.epoch, NOW.map.ranges(0)[:1], 0, 1))[0]
    assert told(NOW, moving) == [("move copying", 1, 2)]
    frozen = execute(moving, 8, AdvanceMove(7, MoveState.FREEZING))[0]
    assert told(moving, frozen) == [("move freezing", 1, 2)]
    step = step_of(frozen, shard_group(0), Freeze(7))
    assert (step.what, step.source, step.target, step.move) == ("Freeze", 1, 2, 7)
    assert step_of(NOW, 3, Freeze(7)).source == 3  # of a move that the catalog has forgotten


def test_what_happens_to_replicas_and_rebalances_is_told_by_step() -> None:
    before = list(NOW.shards[0].replicas)
    assigned = execute(NOW, 7, AssignReplicas(1, before, [*before[:2], "node-6"]))[0]
    assert told(NOW, assigned) == [("assigned", 1, 1)]
    for conf, what in (
        (ConfState(voters=("a",), learners=("b",)), "learner"),
        (ConfState(voters=("a",), voters_outgoing=("b",)), "joint"),
        (ConfState(voters=("a",)), "voters"),
    ):
        assert configured(1, conf).what == what
    job = Job(id=5, wish=Wish(), config=RebalanceConfig(), state=JobState.RUNNING)
    move = MoveRange(source=0, target=1, ranges=((b"", b"a"),), documents=0, bytes=0)
    with_job = msgspec.structs.replace(NOW, rebalance=job)
    running = msgspec.structs.replace(
        NOW, rebalance=msgspec.structs.replace(job, running=(Running(id=6, move=move, nodes=()),))
    )
    assert told(NOW, with_job) == [("job", 0, 0)]
    assert told(with_job, running) == [("begun", 1, 2)]
    assert told(running, with_job) == [("ended", 1, 2)]


@pytest.mark.parametrize(("seed", "kind"), [pytest.param(40, "wipe", marks=pytest.mark.campaign), (31, "die")])
def test_a_machine_loses_its_disks_or_dies_while_a_rebalance_is_under_way(seed: int, kind: str) -> None:
    spec = Spec(seed=seed, nodes=4, seconds=30, sharded=True)
    faults = [fault for fault in spec.schedule() if fault.kind in RESIZE_KINDS or fault.number == LOSS_NUMBER]
    numbers = tuple(fault.number for fault in faults)
    report, trace = run(msgspec.structs.replace(spec, faults=numbers), keep_trace=True)
    assert report.failure is None and report.faults[kind] == 1
    assert any("while a rebalance is under way" in line for line in trace)
