"""The driver of a group's members, its catalog and its Raft host made up: for what it takes a step, and when."""

from __future__ import annotations

import asyncio
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import msgspec

from catalog.catalog_util import topology
from client.fake_shards import virtually
from needle.base.errors import NeedleError, Unavailable
from needle.base.model import PeerStatus
from needle.catalog.state import execute
from needle.protocol import calls
from needle.protocol.catalog_commands import AssignReplicas, CatalogCommand
from needle.protocol.peer_calls import Levels, MemoryRoom, WhoAnswer
from needle.raft.messages import ConfState
from needle.server.beats import Beats
from needle.server.upkeep.replicas import FETCHING_MAX, LOOK_SECONDS, RETRY_SECONDS, Replicas

GROUP = 1


class World:
    """node-1 leads shard 0 with node-2; node-3 is dead, and node-4 is to take its place."""

    node_id = "node-1"

    def __init__(self) -> None:
        before, after = ["node-1", "node-2", "node-3"], ["node-1", "node-2", "node-4"]
        self.topology = self.truth = execute(topology(), 2, AssignReplicas(GROUP, before, after))[0]
        self.host, self.peers, self.shards = self, self, self
        self.stopped, self.leads, self.led_in = False, True, 7
        self.voters, self.learners = set(before), set[str]()
        self.lag = {"node-2": 0, "node-4": 900}
        self.change, self.applied = 10, 1000
        self.probed = set[str]()
        self.lost: dict[str, str] = {}
        self.memory: dict[str, MemoryRoom] = {}
        self.done: list[str] = []
        self.failure: NeedleError | None = None
        self.on_confirm: Any = None
        self.committed = self.last = 1000

    # --- the node
    @cached_property
    def beats(self) -> Beats:
        return Beats(self.now, lambda: self.host.stopped)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def confirmed(self, timeout: float) -> Any:
        if self.on_confirm is not None:
            self.on_confirm()
        return self.truth

    async def command(self, command: CatalogCommand, timeout: float) -> Any:
        self.done.append(type(command).__name__)
        self.topology = self.truth = execute(self.truth, self.truth.version + 1, command)[0]

    async def call(self, node: str, method: str, body: bytes, timeout: float) -> bytes:
        if node == "node-3":
            raise Unavailable("it is dead")
        who, levels = WhoAnswer(node, "", 1, "", 1.0, 1, 1, [], self.lost.get(node, "")), Levels(0, 1)
        levels = msgspec.structs.replace(levels, memory=self.memory.get(node))
        return calls.encode(msgspec.structs.replace(who, levels=levels))

    # --- its host
    def groups(self) -> list[int]:
        return [GROUP]

    def is_leader(self, group: int) -> bool:
        return self.leads

    def term(self, group: int) -> int:
        return self.led_in

    def conf(self, group: int) -> ConfState:
        return ConfState(tuple(sorted(self.voters)), tuple(sorted(self.learners)))

    def last_change(self, group: int) -> int:
        return self.change

    def applied_index(self, group: int) -> int:
        return self.applied

    def members(self, group: int) -> list[str]:
        return sorted(self.voters | self.learners)

    def status(self, group: int) -> Any:
        others = [node for node in self.members(group) if node != self.node_id]
        peers = [
            PeerStatus(
                id=node,
                address="",
                match_index=1000 - self.lag.get(node, 1000),
                state="replicate" if node in self.lag and node not in self.probed else "probe",
                recently_active=node in self.lag,
                is_learner=node in self.learners,
                lag_entries=max(0, self.committed - 1000 + self.lag.get(node, 1000)),
                lag_ms=0.0,
            )
            for node in others
        ]
        return SimpleNamespace(peers=peers, refused={}, last_index=self.last)

    async def read_index(self, group: int, timeout: float) -> int:
        self.done.append("read")
        return 1000

    async def change_membership(self, group: int, voters: Any, learners: Any, timeout: float, term: int) -> None:
        if self.failure is not None:
            self.done.append("failed")
            raise self.failure
        assert term == self.led_in
        self.voters, self.learners = set(voters), set(learners)
        self.done.append(f"{' '.join(voters)} + {' '.join(learners)}".replace("node-", "").strip())


def run(world: World, *moments: tuple[float, Any]) -> Replicas:
    """Each of `moments` is done so many seconds after the one before."""
    driver = Replicas(world)  # type: ignore[arg-type]

    async def work() -> None:
        running = asyncio.get_running_loop().create_task(driver.run())
        for seconds, what in moments:
            await asyncio.sleep(seconds)
            what()
        world.stopped = True
        await running

    virtually(work())
    return driver


def nothing() -> None:
    pass


def test_a_replica_is_replaced_and_then_the_catalog_is_told() -> None:
    world = World()
    run_out = [
        (3.0, lambda: world.done.append("caught up")),
        (0.0, lambda: world.lag.update({"node-4": 3})),
        (5.0, nothing),
    ]
    driver = run(world, *run_out)
    expected = ["1 2 3 + 4", "caught up", "1 2 4 + 3", "1 2 4 +", "read", "ConfirmReplicas"]
    assert world.done == expected
    assert world.topology.shards[0].replicas == ("node-1", "node-2", "node-4")
    assert driver.why(GROUP) == ""


def test_who_was_restarted_while_nothing_is_written_counts() -> None:
    """Its leader probes it until the next entry; without it the group would have no majority for the change."""
    world = World()
    world.probed.add("node-2")
    run(world, (3.0, lambda: world.lag.update({"node-4": 3})), (5.0, nothing))
    assert world.topology.shards[0].replicas == ("node-1", "node-2", "node-4")


def test_what_it_waits_for_is_told() -> None:
    world = World()
    assert run(world, (3.0, nothing)).why(GROUP) == "node-4 has not caught up yet"


def test_a_replica_that_lacks_what_there_was_when_it_was_added_has_not_caught_up() -> None:
    world = World()
    world.lag["node-4"], world.change = 20, 990
    assert run(world, (3.0, nothing)).why(GROUP) == "node-4 has not caught up yet"


def test_a_busy_leader_gets_new_replicas_too() -> None:
    world = World()
    world.last = 3000  # of which most is under way to a majority
    world.lag["node-4"] = 150
    run(world, (5.0, nothing))
    assert world.done[-1] == "ConfirmReplicas"


def test_the_catalog_is_not_told_while_the_log_may_hold_another_change() -> None:
    world = World()
    world.voters, world.learners, world.change = {"node-1", "node-2", "node-4"}, set(), 1001
    assert "under way" in run(world, (3.0, nothing)).why(GROUP)
    assert world.done == []


def test_a_lost_node_gets_no_replica() -> None:
    world = World()
    world.lost["node-4"] = "its directory was emptied"
    assert run(world, (5.0, nothing)).why(GROUP) == "node-4 does not answer, is lost, or is short of memory"
    assert world.done == []


def test_a_node_that_is_short_of_memory_gets_no_new_copy() -> None:
    world = World()
    world.memory["node-4"] = MemoryRoom(90, 100, tight=True)
    assert "short of memory" in run(world, (5.0, nothing)).why(GROUP)
    assert world.done == []
    world.stopped = False
    run(world, (5.0, world.memory.clear), (5.0, nothing))
    assert world.learners == {"node-4"}


def test_nothing_is_done_for_what_the_catalog_does_not_want_any_more() -> None:
    world = World()
    back = AssignReplicas(GROUP, ["node-1", "node-2", "node-4"], ["node-1", "node-2", "node-3"])
    world.truth = execute(world.truth, 9, back)[0]  # this node has not heard of it
    assert "does not know yet" in run(world, (5.0, nothing)).why(GROUP)
    assert world.done == []


def test_nothing_is_done_by_a_leader_that_was_away_meanwhile() -> None:
    world = World()

    def away() -> None:
        world.led_in += 2

    world.on_confirm = away
    run(world, (5.0, nothing))
    assert world.done == []


def test_a_step_that_fails_is_tried_again_later_and_later() -> None:
    world = World()
    world.failure = Unavailable("nobody answers")
    driver = run(world, (10 * RETRY_SECONDS, nothing))
    assert driver.why(GROUP) == "nobody answers"
    assert 2 <= len(world.done) <= 4


def test_another_leader_goes_on() -> None:
    world = World()
    world.voters, world.learners = {"node-1", "node-2", "node-4"}, {"node-3"}
    world.lag["node-4"] = 0
    run(world, (5.0, nothing))
    assert world.done == ["1 2 4 +", "read", "ConfirmReplicas"]
    assert msgspec.structs.replace(world.topology.shards[0], assigned=0).leaving == ()


class Worlds(World):
    """node-1 leads many shards with node-2 and node-3; node-4, or for some node-5, is to take node-3's place."""

    def __init__(self, shards: int, fresh: dict[int, str]) -> None:
        super().__init__()
        before = ("node-1", "node-2", "node-3")
        made = topology(shards=shards)
        shard_infos = tuple(msgspec.structs.replace(info, replicas=before, founders=before) for info in made.shards)
        made = msgspec.structs.replace(made, shards=shard_infos)
        self.all = range(1, shards + 1)
        for group in self.all:
            after = ["node-1", "node-2", fresh.get(group, "node-4")]
            made = execute(made, made.version + 1, AssignReplicas(group, list(before), after))[0]
        self.topology = self.truth = made
        self.of = {group: (set(before), set[str]()) for group in self.all}
        self.confirms = 0
        self.asked: list[str] = []
        self.silent = {"node-3"}
        self.closed = set[int]()
        self.lag = {"node-2": 0}

    def groups(self) -> list[int]:
        return [group for group in self.all if group not in self.closed]

    def _see(self, group: int) -> None:
        if group in self.closed:
            raise Unavailable("it is closed")
        self.voters, self.learners = self.of[group]

    def is_leader(self, group: int) -> bool:
        self._see(group)
        return self.leads

    def conf(self, group: int) -> ConfState:
        self._see(group)
        return super().conf(group)

    def members(self, group: int) -> list[str]:
        self._see(group)
        return super().members(group)

    def status(self, group: int) -> Any:
        self._see(group)
        found = super().status(group)
        active = [msgspec.structs.replace(peer, recently_active=peer.id not in self.silent) for peer in found.peers]
        return SimpleNamespace(peers=active, refused={}, last_index=self.last)

    async def confirmed(self, timeout: float) -> Any:
        self.confirms += 1
        return await super().confirmed(timeout)

    async def call(self, node: str, method: str, body: bytes, timeout: float) -> bytes:
        self.asked.append(node)
        if node in self.silent:
            await asyncio.sleep(timeout)
            raise Unavailable("nobody answers")
        return await super().call(node, method, body, timeout)

    async def change_membership(self, group: int, voters: Any, learners: Any, timeout: float, term: int) -> None:
        self._see(group)
        await super().change_membership(group, voters, learners, timeout, term)
        self.of[group] = (self.voters, self.learners)

    def with_new(self) -> list[int]:
        return [group for group in self.all if self.of[group][1] & {"node-4", "node-5"}]


def test_many_groups_ask_the_new_node_and_the_catalog_once() -> None:
    world = Worlds(60, {})

    def first_round() -> None:
        assert (world.confirms, world.asked) == (1, ["node-4"])
        assert len(world.with_new()) == FETCHING_MAX

    run(world, (LOOK_SECONDS + 0.1, first_round), (10 * LOOK_SECONDS, nothing))
    assert world.confirms == 1  # those that wait for others do not ask the catalog meanwhile


def test_a_new_replica_that_does_not_answer_holds_up_no_other_group() -> None:
    world = Worlds(4, {1: "node-5", 2: "node-5"})

    def dies() -> None:
        assert world.with_new() == [1, 2]
        world.silent.add("node-5")

    run(world, (LOOK_SECONDS + 0.1, dies), (10.0, nothing))
    assert world.with_new() == [1, 2, 3, 4]


def test_a_group_that_is_closed_meanwhile_gives_its_place_to_others() -> None:
    world = Worlds(4, {})
    run(world, (LOOK_SECONDS + 0.1, lambda: world.closed.update({1, 2})), (5.0, nothing))
    assert world.with_new() == [1, 2, 3, 4]
