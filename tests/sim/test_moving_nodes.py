"""What runs do to nodes and replicas takes effect: a fault that is always refused would prove nothing."""

from __future__ import annotations

import asyncio
import contextlib
import re

import msgspec
import pytest

from needle.server.upkeep.move_steps import STEP_SECONDS
from needle.server.upkeep.mover import NOT_ARRIVED
from proof.sim.faults import both, each
from proof.sim.machine import stream
from proof.sim.resizing import CATALOG_SHARE
from proof.sim.shards.happenings import Happening
from proof.sim.spec import Fault, Spec
from proof.sim.world import World

SECONDS = 40.0


def world_with(kind: str, nodes: int, *, sharded: bool = True, seconds: float = SECONDS) -> World:
    """A run that has faults of this kind only, at least one; it held."""
    for seed in range(1, 100):
        spec = Spec(seed=seed, nodes=nodes, seconds=seconds, sharded=sharded)
        numbers = tuple(fault.number for fault in spec.schedule() if fault.kind == kind and fault.at < seconds - 10)
        if not numbers:
            continue
        world = World(msgspec.structs.replace(spec, faults=numbers))
        if world.shape.replicas == 3:
            report = world.run()
            assert report.failure is None, report.failure
            return world
        world.stage.loop.close()
    raise AssertionError(f"no seed has {kind}")


@pytest.mark.campaign
def test_a_replica_moves_to_another_node() -> None:
    world = world_with("move-replica", nodes=5)
    groups = world.truth.groups()
    held = {(group, frozenset(now.holders(group).wanted)) for now in world.truth.topologies[1:] for group in groups}  # type: ignore[union-attr]
    assert len(held) > len(groups)
    assert not any(world.truth.leaving(group) for group in groups)
    assert all(len(info.replicas) == 3 for info in world.truth.now.shards)


@pytest.mark.campaign
def test_nodes_that_moved_at_once_find_each_other() -> None:
    world = world_with("move-many", nodes=3)
    assert world.faults.scattered
    moved = [name for name, at in world.truth.now.addresses().items() if at != f"{name}:7000"]
    assert len(moved) >= 2
    assert world.truth.now.addresses() == {name: one.address for name, one in world.fleet.machines.items()}


def test_replicas_leave_their_group_and_come_back() -> None:
    world = world_with("remove", nodes=3, seconds=20.0)
    sizes = [[len(now.holders(group).wanted) for group in world.truth.groups()] for now in world.truth.topologies[1:]]  # type: ignore[union-attr]
    assert any(2 in of_groups for of_groups in sizes)
    assert set(sizes[-1]) == {3}
    assert world.truth.members.confirmed


@pytest.mark.campaign
def test_what_replicas_leave_behind_is_deleted_and_they_come_back_to_nothing() -> None:
    for seed in range(12, 40):
        world = World(Spec(seed=seed, nodes=4 + seed % 2, seconds=SECONDS, sharded=True))
        report = world.run()
        assert report.failure is None, report.failure
        counts = [machine.counts for machine in world.fleet.machines.values()]
        if all(any(one[what] for one in counts) for what in ("replicas given up", "replicas taken again")):
            return
    raise AssertionError("no seed has it")


@pytest.mark.campaign
def test_a_new_machine_takes_the_place_of_a_lost_one_in_every_group() -> None:
    world = world_with("replace", nodes=3, sharded=False)
    members = world.operator.members()
    assert members != world.founders
    assert world.fleet.retired == set(world.founders) - set(members)
    assert all(sorted(world.truth.nodes_of(group)) == members for group in world.truth.groups())


def test_a_switch_whose_target_is_gone_is_told_before_any_step_has_failed() -> None:
    """In the moment after the decision, from which there is no way back, a majority of the target is cut off for less
    time than a step may take: health says what waits for whom, and the move arrives once they are back."""
    seconds = 25.0
    for seed in range(1, 30):
        spec = Spec(seed=seed, nodes=5, seconds=seconds, sharded=True)
        numbers = tuple(one.number for one in spec.schedule() if one.kind == "move-range" and one.at < seconds - 15)
        if not numbers:
            continue
        world = World(msgspec.structs.replace(spec, faults=numbers[:1]))
        told: list[str] = []
        begin = world.injector.more["move-range"]

        async def cut(fault: Fault, name: str, world: World = world, told: list[str] = told, begin=begin) -> None:  # type: ignore[no-untyped-def]
            decided = world.truth.after({"Release"})
            await begin(fault, name)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(15):
                    told += await _without_target(world, await decided)

        world.injector.more["move-range"] = cut
        report = world.run()
        assert report.failure is None, report.failure
        if NOT_ARRIVED in "; ".join(told):
            assert not any("(" in text for text in told), told  # by no step's error
            assert not world.truth.now.moves
            return
    raise AssertionError("no seed has it")


async def _without_target(world: World, decided: Happening) -> list[str]:
    """Cut a majority of the target off for less than STEP_SECONDS; what the source's leader says meanwhile."""
    source = world.fleet.leader(decided.source)
    names = [node for node in sorted(world.truth.wanted(decided.target)) if node != source][:2]
    links = [link for name in names for link in both(name, sorted(set(world.fleet.machines) - set(names)))]
    each(lambda link: world.stage.network.block(*link), links)
    found: list[str] = []
    try:
        for _ in range(int(0.9 * STEP_SECONDS / 0.1)):
            await asyncio.sleep(0.1)
            for node in world.fleet.nodes.values():
                found += node.waiting_moves(decided.source)
    finally:
        each(lambda link: world.stage.network.unblock(*link), links)
    return found


@pytest.mark.campaign
def test_a_replica_of_the_catalog_is_moved_by_its_name() -> None:
    for seed in range(1, 200):
        spec = Spec(seed=seed, nodes=6, seconds=SECONDS, sharded=True)
        faults = [one for one in spec.schedule() if one.kind == "move-by-hand" and one.at < SECONDS - 10]
        if not spec.resizes or not faults or stream(seed, "the catalog by hand").random() >= CATALOG_SHARE:
            continue
        numbers = tuple(one.number for one in faults)
        world = World(msgspec.structs.replace(spec, faults=numbers), keep_trace=True)
        report = world.run()
        assert report.failure is None, report.failure
        begun = [re.search(r"begins: the catalog from (\S+) to (\S+)", line) for line in world.trace.lines]
        if moves := [found for found in begun if found is not None]:
            source, target = moves[0].groups()
            assert any(target in now.catalog and source not in now.catalog for now in world.truth.topologies)
            return
    raise AssertionError("no seed has it")
