"""When the cluster replaces a node that is gone by itself, and when it does not."""

from __future__ import annotations

import asyncio
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import pytest

from catalog.catalog_util import node, topology
from client.fake_shards import virtually
from needle.base.errors import ConnectionLost, InvalidArgument, NeedleError, NotLeader, Unavailable
from needle.base.model import WriteResult
from needle.catalog.planning import planner
from needle.catalog.state import execute
from needle.protocol import calls
from needle.protocol.catalog_commands import (
    AskRebalance,
    AssignReplicas,
    CatalogCommand,
    ConfirmReplicas,
    MaintainNode,
    RegisterNode,
    RemoveNode,
    StartRebalance,
)
from needle.protocol.peer_calls import WhoAnswer
from needle.routing.jobs import JobState, RebalanceConfig
from needle.routing.plans import Plan, Wish
from needle.routing.stats import ClusterStats, NodeStats
from needle.routing.topology import Topology
from needle.server.beats import Beats
from needle.server.upkeep.healing import Healing

AFTER = 60.0


class World:
    """Six nodes with four shards of three replicas; node-1 leads the catalog. dead: nodes that do not answer. cut: no
    majority of the catalog answers node-1."""

    node_id = "node-1"
    catalog = object()

    def __init__(self, now: Topology | None = None) -> None:
        self.truth = now or topology()
        self.host = SimpleNamespace(is_leader=lambda _: self.leads, stopped=False)
        self.caller = self.shards = self.coordinator = self
        self.leads, self.cut = True, False
        self.dead = set[str]()
        self.unmeasured = False
        self.done: list[CatalogCommand] = []

    @cached_property
    def beats(self) -> Beats:
        return Beats(self.now, lambda: self.host.stopped)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def confirmed(self, timeout: float) -> Topology:
        if self.cut:
            raise NotLeader("no majority has confirmed it")
        return self.truth

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        info = next(info for info in self.truth.nodes if info.address == address)
        if info.id in self.dead:
            raise ConnectionLost(f"{info.id} does not answer")
        return calls.encode(WhoAnswer(info.id, address, info.incarnation, "", 1.0, 1, 1))

    async def plan(self, wish: Wish, timeout: float) -> Plan:
        if self.unmeasured:
            raise Unavailable("what shard 1 holds is not known")
        nodes = tuple(NodeStats(node=info.id, alive=info.id not in self.dead) for info in self.truth.nodes)
        return planner.plan(self.truth, ClusterStats(nodes=nodes), wish)

    async def command(self, command: CatalogCommand, timeout: float) -> WriteResult:
        await self.confirmed(timeout)
        self.truth, result = execute(self.truth, self.truth.version + 1, command)
        if isinstance(result, NeedleError):
            raise result
        self.done.append(command)
        return result

    def decide(self, command: CatalogCommand) -> None:
        self.truth, result = execute(self.truth, self.truth.version + 1, command)
        assert not isinstance(result, NeedleError), result

    def replaced(self, gone: str) -> None:
        """Others hold what a dead node held."""
        for info in self.truth.serving:
            if gone in info.wanted:
                spare = next(node for node in self.truth.addresses() if node not in {*info.wanted, *self.dead})
                after = [spare if one == gone else one for one in info.wanted]
                self.decide(AssignReplicas(info.shard + 1, list(info.wanted), after))
                self.decide(ConfirmReplicas(info.shard + 1, self.truth.version))
        assert not self.truth.hosted_by(gone) and gone not in self.truth.catalog

    def told(self) -> list[str]:
        """What was decided, in words."""
        return [
            f"replace {' '.join(one.wish.lost)}" if isinstance(one, StartRebalance) else one.ask
            for one in self.done
            if isinstance(one, StartRebalance | AskRebalance)
        ]


def run(world: World, *moments: tuple[float, Any], after: float = AFTER, throttle: float = 0.1) -> World:
    """Each of `moments` is done so many seconds after the one before."""

    async def work() -> None:
        world.host.stopped = False
        running = asyncio.get_running_loop().create_task(Healing(world, after, throttle).run())  # type: ignore[arg-type]
        for seconds, what in moments:
            await asyncio.sleep(seconds)
            what()
        world.host.stopped = True
        await running

    virtually(work())
    return world


def nothing() -> None:
    pass


def test_a_node_that_is_gone_is_replaced_once_and_not_before_its_time() -> None:
    world = World()
    world.dead.add("node-2")
    before: list[Any] = []
    run(world, (AFTER - 1, lambda: before.extend(world.done)), (20.0, nothing), (600.0, nothing))
    assert before == [] and world.told() == ["replace node-2"]
    job = world.truth.rebalance
    assert job is not None and job.healing and not job.wish.balance


def test_a_second_node_does_not_wait_because_the_first_was_replaced_lately() -> None:
    """Of the same nodes nothing is begun over and over; another one's shards have few replicas, too."""
    world = World()
    world.dead.add("node-2")

    def ended() -> None:
        job = world.truth.rebalance
        assert job is not None
        world.decide(AskRebalance(job.id, "cancel"))

    half = AFTER / 2
    run(world, (half, lambda: world.dead.add("node-5")), (half + 10, ended), (half - 5, nothing))
    assert world.told() == ["replace node-2", "replace node-2 node-5"]
    run(world, (0.0, ended), (AFTER - 10, nothing))
    assert world.told() == ["replace node-2", "replace node-2 node-5"]


def test_it_is_as_slow_as_the_settings_say() -> None:
    for throttle in (0.0, 2.5):
        world = World()
        world.dead.add("node-2")
        run(world, (AFTER + 30, nothing), throttle=throttle)
        job = world.truth.rebalance
        assert job is not None and job.config == RebalanceConfig(throttle_rate=throttle)


def test_who_was_away_for_less_begins_anew() -> None:
    world = World()
    world.dead.add("node-2")
    run(
        world,
        (AFTER - 10, world.dead.clear),
        (10.0, lambda: world.dead.add("node-2")),
        (AFTER - 10, nothing),
    )
    assert world.told() == []


def test_nothing_is_done_while_half_of_the_nodes_are_gone() -> None:
    """It may be the leader itself that is cut off."""
    world = World()
    world.dead |= {"node-2", "node-5", "node-6"}
    run(world, (10 * AFTER, nothing))
    assert world.told() == []
    world.dead -= {"node-5", "node-6"}
    assert run(world, (2 * AFTER, nothing)).told() == ["replace node-2"]


def test_dead_nodes_that_were_replaced_do_not_keep_the_next_one_from_being_replaced() -> None:
    world = World()
    for gone in ("node-5", "node-6"):
        world.dead.add(gone)
        world.replaced(gone)
    world.dead.add("node-2")
    assert run(world, (2 * AFTER, nothing)).told() == ["replace node-2"]


def test_it_says_why_nothing_is_replaced_while_too_many_are_gone(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.dead |= {"node-2", "node-3", "node-4"}
    run(world, (2 * AFTER, nothing))
    said = [one.getMessage() for one in caplog.records if "without replacement" in one.getMessage()]
    assert len(said) == 1 and "node-2, node-3, node-4" in said[0] and "node-1 that is cut off" in said[0]


def test_healing_goes_on_when_one_of_its_nodes_is_removed() -> None:
    """It holds nothing any more: it is not back."""
    world = World()
    world.dead |= {"node-2", "node-5"}

    def removed() -> None:
        world.replaced("node-5")
        world.decide(RemoveNode("node-5"))

    run(world, (2 * AFTER, removed), (100.0, nothing))
    assert world.told() == ["replace node-2 node-5"]


def test_a_leader_that_cannot_confirm_it_neither_counts_nor_acts() -> None:
    world = World()
    world.cut = True
    world.dead.add("node-2")
    run(world, (10 * AFTER, lambda: setattr(world, "cut", False)), (AFTER - 10, nothing))
    assert world.told() == []
    world = World()
    world.leads = False
    world.dead.add("node-2")
    run(world, (10 * AFTER, lambda: setattr(world, "leads", True)), (AFTER - 10, nothing))
    assert world.told() == []


def test_a_plan_that_cannot_be_made_now_is_made_at_the_next_look() -> None:
    """A shard of the node may have no leader just then; the time does not begin again for that."""
    world = World()
    world.unmeasured = True
    world.dead.add("node-2")
    run(world, (2 * AFTER, lambda: setattr(world, "unmeasured", False)), (AFTER / 2, nothing))
    assert world.told() == ["replace node-2"]


def test_a_node_that_is_back_keeps_what_has_not_arrived_elsewhere() -> None:
    world = World()
    world.dead.add("node-2")
    run(world, (2 * AFTER, world.dead.clear), (20.0, nothing))
    assert world.told() == ["replace node-2", "cancel"]
    assert world.truth.rebalance is not None and world.truth.rebalance.state is JobState.CANCELLED


def test_maintenance_and_zero_keep_it_from_acting() -> None:
    world = World(execute(topology(), 2, MaintainNode("node-2", True))[0])
    world.dead.add("node-2")
    assert run(world, (10 * AFTER, nothing)).told() == []
    other = World()
    other.dead.add("node-2")
    assert run(other, (10 * AFTER, nothing), after=0.0).told() == []


def test_maintenance_stops_what_has_begun() -> None:
    world = World()
    world.dead.add("node-2")

    def enter() -> None:
        world.truth = execute(world.truth, world.truth.version + 1, MaintainNode("node-2", True))[0]

    run(world, (2 * AFTER, enter), (20.0, nothing))
    assert world.told() == ["replace node-2", "cancel"]


def test_without_another_node_nothing_begins() -> None:
    world = World(topology(shards=2, nodes=3))
    world.dead.add("node-2")
    assert run(world, (10 * AFTER, nothing)).told() == []
    world.truth = execute(world.truth, 2, RegisterNode(node(4)))[0]
    assert run(world, (2 * AFTER, nothing)).told() == ["replace node-2"]


def test_another_rebalance_ends_first() -> None:
    world = World()
    world.truth = execute(world.truth, 2, StartRebalance(Wish(), RebalanceConfig()))[0]
    world.dead.add("node-2")
    run(world, (10 * AFTER, nothing))
    assert world.told() == []


def test_the_catalog_refuses_a_second_start() -> None:
    """Of two that take themselves for its leader, or of one whose command comes late."""
    now = topology()
    start = StartRebalance(Wish(lost=("node-2",), balance=False), RebalanceConfig(), True)
    now, _ = execute(now, 2, start)
    assert isinstance(execute(now, 3, start)[1], InvalidArgument)
    joined, _ = execute(topology(), 2, RegisterNode(node(7)))
    late = StartRebalance(Wish(lost=("node-7",), balance=False), RebalanceConfig(), True)
    result = execute(joined, 3, late)[1]  # it holds nothing: somebody has replaced it
    assert isinstance(result, InvalidArgument)
    with pytest.raises(InvalidArgument, match="holds nothing"):
        raise result
