"""What runs do to nodes and replicas takes effect: a fault that is always refused would prove nothing."""

from __future__ import annotations

from proof.sim.spec import Spec
from proof.sim.world import World

SECONDS = 40.0


def world_with(kind: str, nodes: int, *, sharded: bool = True) -> World:
    """A run that has faults of this kind only, at least one; it held."""
    for seed in range(1, 100):
        spec = Spec(seed=seed, nodes=nodes, seconds=SECONDS, sharded=sharded)
        numbers = tuple(fault.number for fault in spec.schedule() if fault.kind == kind and fault.at < SECONDS - 10)
        world = World(Spec(seed=seed, nodes=nodes, seconds=SECONDS, sharded=sharded, faults=numbers))
        if numbers and world.shape.replicas == 3:
            report = world.run()
            assert report.failure is None, report.failure
            return world
        world.stage.loop.close()
    raise AssertionError(f"no seed has {kind}")


def test_a_replica_moves_to_another_node() -> None:
    world = world_with("move-replica", nodes=5)
    groups = world.truth.groups()
    held = {(group, frozenset(now.holders(group).wanted)) for now in world.truth.topologies[1:] for group in groups}  # type: ignore[union-attr]
    assert len(held) > len(groups)
    assert not any(world.truth.leaving(group) for group in groups)
    assert all(len(info.replicas) == 3 for info in world.truth.now.shards)


def test_nodes_that_moved_at_once_find_each_other() -> None:
    world = world_with("move-many", nodes=3)
    assert world.faults.scattered
    moved = [name for name, at in world.truth.now.addresses().items() if at != f"{name}:7000"]
    assert len(moved) >= 2
    assert world.truth.now.addresses() == {name: one.address for name, one in world.fleet.machines.items()}


def test_replicas_leave_their_group_and_come_back() -> None:
    world = world_with("remove", nodes=3)
    sizes = [[len(now.holders(group).wanted) for group in world.truth.groups()] for now in world.truth.topologies[1:]]  # type: ignore[union-attr]
    assert any(2 in of_groups for of_groups in sizes)
    assert set(sizes[-1]) == {3}
    assert world.truth.members.confirmed


def test_what_replicas_leave_behind_is_deleted_and_they_come_back_to_nothing() -> None:
    for seed in range(12, 40):
        world = World(Spec(seed=seed, nodes=4 + seed % 2, seconds=SECONDS, sharded=True))
        report = world.run()
        assert report.failure is None, report.failure
        counts = [machine.counts for machine in world.fleet.machines.values()]
        if all(any(one[what] for one in counts) for what in ("replicas given up", "replicas taken again")):
            return
    raise AssertionError("no seed has it")


def test_a_new_machine_takes_the_place_of_a_lost_one_in_every_group() -> None:
    world = world_with("replace", nodes=3, sharded=False)
    members = world.operator.members()
    assert members != world.founders
    assert world.fleet.retired == set(world.founders) - set(members)
    assert all(sorted(world.truth.nodes_of(group)) == members for group in world.truth.groups())
