"""The driver of a move against two replicas: writes go on, answers get lost, other drivers take over or interfere."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import spec, topology
from client.fake_shards import virtually
from harness.told import told
from needle.base.errors import ConnectionLost, NeedleError, StaleEpoch, Unavailable
from needle.base.model import WriteResult
from needle.catalog.state import execute
from needle.protocol import calls, commands
from needle.protocol.catalog_commands import AdvanceMove, CancelMove, CatalogCommand, StartMove
from needle.protocol.commands import Asked, Command, CreateCollection, Delete, Once
from needle.protocol.move_commands import (
    Confirm,
    Forget,
    Freeze,
    Import,
    ImportRequests,
    Mark,
    Own,
    PrepareMove,
    Release,
)
from needle.protocol.peer_calls import MOVE, MoveAnswer, MoveCall
from needle.routing.jobs import Job, JobState, RebalanceConfig, Running
from needle.routing.planned_moves import MoveRange
from needle.routing.plans import Wish
from needle.routing.strategy import RANGE, ShardStrategy, routing_key
from needle.routing.topology import CollectionInfo, MoveState, Topology
from needle.server.beats import Beats
from needle.server.upkeep.mover import Mover
from needle.shard.state_machine import Replica
from shard.replica_util import Log, open_replica, put

NAMES = [f"{letter}{n}" for letter in "mn" for n in range(12)]
MADE = CollectionInfo(id=7, spec=spec("default", 3))


class World:
    """Two shards of two on one node, a catalog, and what happens between any two steps of a driver."""

    def __init__(self, directory: Path, rng: random.Random, strategy: ShardStrategy = RANGE) -> None:
        self.rng = rng
        made = topology(shards=2, factor=1, nodes=1, strategy=strategy)
        self.topology = msgspec.structs.replace(made, collections=(MADE,))
        self.replicas: dict[int, Replica] = {1: open_replica(directory / "0"), 2: open_replica(directory / "1")}
        self.logs = {1: Log(), 2: Log()}
        self.index = 100
        self.truth: dict[str, int] = {}
        self.keys = random.Random(7)  # of its own: what else is drawn does not depend on it
        self.asked: list[tuple[Once, int]] = []
        """Requests with idempotency keys that the source has executed, and the version that each has made."""
        self.trouble = 0.0
        self.writes = True
        self.silent = False
        """Whether the target answers."""
        self.searches = 0.0
        """Of the source, a second."""
        self.given_up = False
        """Whether the driver's node holds the source no more."""
        self.known: Topology | None = None
        """What the driver's node has heard of the catalog, if that is not the newest."""
        self.round = 0.001
        """Seconds that each entry of a log takes, and asking the catalog."""
        self.seen: Callable[[object, bool], None] = lambda command, done: None
        """Told of each command to a shard, before and after it is executed."""
        for group in (1, 2):
            self.apply(group, CreateCollection(MADE.stored_spec))

    def apply(self, group: int, command: Command) -> Any:
        result = self.replicas[group].apply(self.logs[group].add(command))[-1]
        if isinstance(result, NeedleError):
            raise result
        return result

    def write(self) -> None:
        """A client's write to the source, if its log takes it."""
        name = self.rng.choice(NAMES)
        try:
            if self.rng.random() < 0.4:
                self.apply(1, Delete(MADE.stored_name, [name]))
                self.truth.pop(name, None)
            else:
                row = [[self.rng.random()] * 3]
                write = put([name], row, collection=MADE.stored_name)
                once = Once(Asked(self.keys.randbytes(16), self.keys.randbytes(16)), 0, write)
                self.truth[name] = self.apply(1, once).version
                self.asked.append((once, self.truth[name]))
        except NeedleError as error:
            assert error.details["owned"] is False

    async def confirming(self) -> None:
        """Until the catalog has confirmed what it says."""
        await asyncio.sleep(self.round)

    async def between(self) -> None:
        await asyncio.sleep(self.round)
        for _ in range(self.rng.choice([0, 0, 1, 3]) if self.writes else 0):
            self.write()
        if self.rng.random() < 0.1:
            self.replicas[1].checkpoint()

    # --- what a driver sees -------------------------------------------------------------------------------------------
    def node(self) -> Any:
        def is_leader(group: int) -> bool:
            if group not in node.groups:
                raise Unavailable(f"group {group} has no replica on node-1")
            return True

        host = SimpleNamespace(stopped=False, is_leader=is_leader, propose=self.propose)
        shards = SimpleNamespace(
            group=lambda shard: SimpleNamespace(ask_leader=self.ask), command=self.command, sync=self.sync
        )
        world = self

        class Node:
            node_id = "node-1"
            looks = 0
            """How often it has used a thread."""

            @cached_property
            def beats(self) -> Beats:
                return Beats(self.now, lambda: self.host.stopped)

            def now(self) -> float:
                return asyncio.get_running_loop().time()

            @property
            def groups(self) -> dict[int, Any]:
                rates = SimpleNamespace(writes=lambda now: 0.0, searches=lambda now: world.searches)
                return {} if world.given_up else {1: SimpleNamespace(replica=world.replicas[1], calls=rates)}

            @property
            def topology(self) -> Any:
                return world.topology if world.known is None else world.known

            async def blocking(self, work: Callable[..., Any], *arguments: Any) -> Any:
                self.looks += 1
                return work(*arguments)

            async def confirmed(self, timeout: float) -> Any:
                await world.confirming()
                return world.topology

        node: Any = Node()
        pool = SimpleNamespace(run=node.blocking)
        node.ports = SimpleNamespace(clock=SimpleNamespace(wall=lambda: 0.0), apply_pool=pool)
        node.host, node.shards = host, shards
        return node

    async def propose(self, group: int, data: bytes, timeout: float) -> Any:
        await self.between()
        command = commands.decode_logged(data)
        self.seen(command, False)
        result = self.apply(group, command)
        self.seen(command, True)
        self.lose()
        return result

    async def ask(self, method: str, body: Callable[[float], bytes], timeout: float) -> bytes:
        assert method == MOVE
        await self.between()
        call = calls.decode(body(1.0), MoveCall)
        self.lose()
        command = commands.decode(call.command)
        self.seen(command, False)
        if self.silent:
            await asyncio.sleep(self.rng.choice([0.0, timeout]))
            raise ConnectionLost("the target does not answer")
        self.apply(2, command)
        self.seen(command, True)
        self.lose()
        fence = self.replicas[2].fence
        found = fence.holdings.transfer(call.move) if fence is not None else None
        assert found is not None
        return calls.encode(MoveAnswer(found.phase, found.step, found.at, found.cursors))

    async def command(self, command: CatalogCommand, timeout: float) -> WriteResult:
        await self.between()
        self.index += 1
        self.topology, result = execute(self.topology, self.index, command)
        self.lose()
        if isinstance(result, NeedleError):
            raise result
        return result

    async def sync(self, shard: int, version: int, timeout: float, *, by_log: bool = False) -> None:
        raise AssertionError("both shards have the collection")

    def lose(self) -> None:
        if self.rng.random() < self.trouble:
            raise ConnectionLost("the answer was lost")

    def arrived(self, move: int) -> bool:
        """Whether the source has released what it moved."""
        fence = self.replicas[1].fence
        transfer = fence.holdings.transfer(move) if fence is not None else None
        return transfer is not None and transfer.phase in ("released", "over")

    def visible(self, group: int) -> dict[str, int]:
        return {one.id: one.version for one in self.replicas[group].get(MADE.stored_name, NAMES, False)}


@pytest.mark.parametrize("seed", range(15))
def test_a_move_copies_all_whatever_happens_meanwhile(tmp_path: Path, seed: int) -> None:
    async def work() -> None:
        rng = random.Random(seed)
        world = World(tmp_path, rng)
        for _ in range(60):
            world.write()
        assert world.topology.map is not None
        start = StartMove(1, 1, [(b"m", b"n\xff")], 0, 1)
        await world.command(start, 1.0)
        move = world.topology.moves[0].id
        world.trouble = rng.choice([0.0, 0.01, 0.05])
        rows = rng.choice([1, 3, 100])
        drivers = [Mover(world.node(), rows) for _ in range(rng.choice([1, 1, 2]))]
        tasks = [asyncio.create_task(driver.run()) for driver in drivers]
        deadline = asyncio.get_running_loop().time() + 100
        while world.topology.moves:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
            if rng.random() < 0.05:  # the driver dies, another one begins
                tasks.pop(0).cancel()
                if not tasks:
                    tasks.append(asyncio.create_task(Mover(world.node(), rows).run()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert world.topology.map.owner(b"m5") == 1
        assert world.visible(2) == world.truth
        assert world.visible(1) == {}
        assert world.replicas[1].count() == 0
        fence = world.replicas[1].fence
        left = fence.holdings.transfer(move) if fence is not None else None
        assert left is not None and left.phase == "over", "what it left behind is deleted, too"
        for once, version in world.asked:  # a caller that missed the answer asks the shard that owns it now
            known = world.apply(2, once)
            assert known.version == version
        assert world.visible(2) == world.truth
        last = max(world.truth.values(), default=0)
        again = world.apply(2, put(["m1"], [[1, 1, 1]], collection=MADE.stored_name))
        assert again.version > last
        for replica in world.replicas.values():
            replica.verify()

    virtually(work())


@pytest.mark.parametrize("cancelled", [False, True])
def test_requests_with_keys_that_go_on_coming_hold_up_neither_a_move_nor_its_cancel(
    tmp_path: Path, cancelled: bool
) -> None:
    """On slow cores some came between any two steps, so that what the source remembers of them was never all copied."""

    class Busy(World):
        async def between(self) -> None:
            await super().between()
            asked = Asked(self.keys.randbytes(16), self.keys.randbytes(16))
            self.apply(1, Once(asked, 0, put(["a1"], [[1, 1, 1]], collection=MADE.stored_name)))

    async def work() -> None:
        world = Busy(tmp_path, random.Random(4))
        world.round = 0.1
        for _ in range(60):
            world.write()
        await world.command(StartMove(1, 1, [(b"m", b"n\xff")], 0, 1), 1.0)
        if cancelled:

            def cancel(command: object, done: bool) -> None:
                if isinstance(command, ImportRequests) and world.topology.moves[0].state is MoveState.COPYING:
                    world.topology, _ = execute(world.topology, world.index + 1, CancelMove(world.topology.moves[0].id))

            world.seen = cancel
        running = asyncio.create_task(Mover(world.node(), 100).run())
        await until(lambda: not world.topology.moves)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert world.visible(1 if cancelled else 2) == world.truth and world.visible(2 if cancelled else 1) == {}

    virtually(work())


def test_who_gives_the_source_up_while_it_copies_stops_and_the_next_one_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "needle")

    async def work() -> None:
        world = World(tmp_path, random.Random(1))
        for _ in range(60):
            world.write()
        world.writes = False
        await world.command(StartMove(1, 1, [(b"m", b"n\xff")], 0, 1), 1.0)
        for step in (PrepareMove, Import, Mark, Freeze):

            def give_up(command: object, done: bool, step: type = step) -> None:
                world.given_up |= isinstance(command, step)

            world.seen = give_up
            driver = asyncio.create_task(Mover(world.node(), 1).run())
            await until(lambda: world.given_up)
            await asyncio.sleep(2.0)
            assert not driver.done(), driver.exception()
            driver.cancel()
            await asyncio.gather(driver, return_exceptions=True)
            world.given_up, world.seen = False, lambda command, done: None
        driver = asyncio.create_task(Mover(world.node(), 1).run())
        await until(lambda: not world.topology.moves)
        driver.cancel()
        await asyncio.gather(driver, return_exceptions=True)
        assert world.visible(2) == world.truth and world.visible(1) == {}

    virtually(work())
    assert [one["phase"] for one in told(caplog, "move_phase")] == ["freezing", "switched", "done"]
    assert not told(caplog, "move_switched"), "nobody has seen all of the switch"


def test_who_drove_all_of_a_switch_says_what_took_its_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "needle")

    async def work() -> None:
        world = World(tmp_path, random.Random(1))
        world.writes, world.round = False, 0.1
        await world.command(StartMove(1, 1, [(b"m", b"n\xff")], 0, 1), 1.0)
        driver = asyncio.create_task(Mover(world.node(), 100).run())
        await until(lambda: not world.topology.moves)
        driver.cancel()
        await asyncio.gather(driver, return_exceptions=True)

    virtually(work())
    (line,) = told(caplog, "move_switched")
    assert (line["move"], line["shard"], line["target"]) == (101, 0, 1)
    assert line["steps"] == "freeze 100.0 ms, rest 100.0 ms, release 100.0 ms, own 100.0 ms, map 100.0 ms"


@pytest.mark.parametrize("others", [0, 30])
def test_writes_wait_for_four_rounds_of_a_switch_however_many_collections_there_are(
    tmp_path: Path, others: int
) -> None:
    """The rest of the copy with its confirmation, beside a look at the catalog; the release; the target's; the map."""

    async def work() -> None:
        world = World(tmp_path, random.Random(2))
        made = [CollectionInfo(id=100 + n, spec=spec(f"other{n}", 3)) for n in range(others)]
        world.topology = msgspec.structs.replace(world.topology, collections=(MADE, *made))
        for group in (1, 2):
            for one in made:
                world.apply(group, CreateCollection(one.stored_spec))
        for one in made:
            world.apply(1, put(["m1"], [[1, 1, 1]], collection=one.stored_name))
        for _ in range(60):
            world.write()
        world.round = 0.1
        frozen: list[float] = []
        loop, looked = asyncio.get_running_loop(), [0, 0]

        def seen(command: object, done: bool) -> None:
            if isinstance(command, Freeze) and not done:
                world.writes = True
                while len(world.truth) < 20:  # there is a rest, with documents and deletes
                    world.write()
                world.writes = False
            elif isinstance(command, Freeze):
                frozen.append(loop.time())
                looked[0] = node.looks
            elif isinstance(command, Confirm) and done:
                looked[1] = node.looks

        world.seen = seen
        await world.command(StartMove(1, 1, [(b"m", b"n\xff")], 0, 1), 1.0)
        node = world.node()
        running = asyncio.create_task(Mover(node, 100).run())
        await until(lambda: not world.topology.moves or world.topology.moves[0].state is MoveState.SWITCHED, 0.001)
        assert loop.time() - frozen[0] < 4.5 * world.round
        assert looked[1] - looked[0] == 1, "one look at the source finds the rest of all collections"
        await _ended(world)
        running.cancel()
        assert world.visible(2) == world.truth

    virtually(work())


def test_what_is_written_until_just_before_the_freeze_is_copied_before_it(tmp_path: Path) -> None:
    """Three rounds pass from the end of a copy until its ranges freeze. What is written meanwhile would be copied while
    writes wait."""

    async def work() -> None:
        world = World(tmp_path, random.Random(2))
        world.writes = False
        frozen: list[int] = []
        rest: list[str] = []

        def seen(command: object, done: bool) -> None:
            freezing = bool(world.topology.moves) and world.topology.moves[0].state is MoveState.FREEZING
            if isinstance(command, PrepareMove) and freezing and done:
                world.write()
            elif isinstance(command, Freeze):
                frozen.append(len(world.truth))
            elif isinstance(command, Import) and done and frozen:
                rest.extend(command.ids)

        world.seen = seen
        await world.command(StartMove(1, 1, [(b"m", b"n\xff")], 0, 1), 1.0)
        running = asyncio.create_task(Mover(world.node(), 100).run())
        await _ended(world)
        running.cancel()
        assert frozen and frozen[0] and not rest
        assert world.visible(2) == world.truth

    virtually(work())


def test_a_collection_of_which_the_driver_hears_after_the_freeze_is_copied(tmp_path: Path) -> None:
    async def work() -> None:
        world = World(tmp_path, random.Random(3))
        world.writes = False
        late = CollectionInfo(id=8, spec=spec("late", 3))
        await world.command(StartMove(1, 1, [(b"m", b"n\xff")], 0, 1), 1.0)

        def made() -> None:
            world.known = world.topology
            newest = world.topology
            world.topology = msgspec.structs.replace(
                newest, version=newest.version + 1, collections=(*newest.collections, late)
            )
            for group in (1, 2):
                world.apply(group, CreateCollection(late.stored_spec))
            world.apply(1, put(["m1"], [[1, 1, 1]], collection=late.stored_name))

        def heard(command: object, done: bool) -> None:
            if isinstance(command, Freeze) and not done:
                made()
            elif isinstance(command, Own):
                world.known = None

        world.seen = heard
        running = asyncio.create_task(Mover(world.node(), 3).run())
        await _ended(world)
        running.cancel()
        assert [one.id for one in world.replicas[2].get(late.stored_name, ["m1"], False)] == ["m1"]

    virtually(work())


def test_a_cancel_of_which_the_driver_has_not_heard_is_heard_after_the_freeze(tmp_path: Path) -> None:
    async def work() -> None:
        world = World(tmp_path, random.Random(4))
        for _ in range(40):
            world.write()
        await world.command(StartMove(1, 1, [(b"m", b"n\xff")], 0, 1), 1.0)
        move = world.topology.moves[0].id

        def cancelled(command: object, done: bool) -> None:
            if isinstance(command, Freeze) and not done:
                world.known = world.topology
                world.index += 1
                world.topology, _ = execute(world.topology, world.index, CancelMove(move))
            elif isinstance(command, Confirm) and done:
                asyncio.get_running_loop().call_later(1.0, setattr, world, "known", None)

        world.seen = cancelled
        running = asyncio.create_task(Mover(world.node(), 3).run())
        await _ended(world)
        running.cancel()
        assert not world.arrived(move)
        assert (world.visible(1), world.visible(2)) == (world.truth, {})

    virtually(work())


def test_another_drivers_import_is_not_taken_for_one_that_failed(tmp_path: Path) -> None:
    async def work() -> None:
        world = World(tmp_path, random.Random(5))
        world.writes = False
        world.apply(1, put(["m1"], [[1, 1, 1]], collection=MADE.stored_name))
        await world.command(StartMove(1, 1, [(b"m", b"n\xff")], 0, 1), 1.0)
        move, troubled = world.topology.moves[0].id, []

        def seen(command: object, done: bool) -> None:
            if isinstance(command, Freeze) and not done:
                version = world.apply(1, put(["m2"], [[1, 1, 1]], collection=MADE.stored_name)).version
                world.truth = {"m2": version, "m1": world.visible(1)["m1"]}
            fence = world.replicas[1].fence
            frozen = fence is not None and fence.freezes
            if isinstance(command, Import) and frozen and not done and not troubled:
                troubled.append(command)
                transfer = world.replicas[2].fence
                assert transfer is not None
                world.apply(2, Import(move, command.step, command.collection, 0, [], [], b"", [], []))
                raise ConnectionLost("it did not arrive")

        world.seen = seen
        running = asyncio.create_task(Mover(world.node(), 100).run())
        await _ended(world)
        running.cancel()
        assert troubled and world.visible(2) == world.truth

    virtually(work())


STEPS = [PrepareMove, Import, Mark, Freeze, Confirm, Release, Own, Forget]


def _at(world: World, step: type, after: bool, act: Callable[[], None]) -> None:
    """Have something happen before or after the first command of a kind is executed."""
    left = [act]

    def seen(command: object, done: bool) -> None:
        if left and isinstance(command, step) and done is after:
            left.pop()()

    world.seen = seen


async def _ended(world: World) -> None:
    await until(lambda: not world.topology.moves)
    for replica in world.replicas.values():
        replica.verify()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize("silent", [False, True], ids=["", "silent target"])
def test_a_cancelled_move_stays_or_arrives_as_a_whole(tmp_path: Path, step: type, after: bool, silent: bool) -> None:
    """It arrives if its source had released it by then, and stays otherwise; also if the target goes away."""

    async def work() -> None:
        world = World(tmp_path, random.Random(f"{step}{after}{silent}"))
        for _ in range(40):
            world.write()
        await world.command(StartMove(1, 1, [(b"m", b"n\xff")], 0, 1), 1.0)
        move, released = world.topology.moves[0].id, []

        def cancel() -> None:
            world.silent = silent
            world.index += 1
            world.topology, result = execute(world.topology, world.index, CancelMove(move))
            assert isinstance(result, WriteResult)
            fence = world.replicas[1].fence
            released.append(fence is not None and fence.holdings.transfers[0].phase in ("released", "over"))

        _at(world, step, after, cancel)
        mover = Mover(world.node(), 3)
        running = asyncio.create_task(mover.run())
        await until(lambda: bool(released))
        if silent:
            await asyncio.sleep(8)
            state = world.topology.moves[0].state if world.topology.moves else None
            # What the source keeps it serves; what it has released waits for the target, and is cleaned up after it.
            assert (state is MoveState.GIVEN_UP) == (not world.arrived(move))
            if state is MoveState.CANCELLING:
                assert "is decided, and not at its target yet" in mover.held(1)[0]
            if state is MoveState.GIVEN_UP:
                assert world.visible(1) == world.truth
            world.silent = False
        await _ended(world)
        running.cancel()
        arrived = world.arrived(move)
        assert arrived or not released[0]
        assert world.topology.map is not None
        assert world.topology.map.owner(b"m5") == (1 if arrived else 0)
        assert (world.visible(1), world.visible(2)) == (({}, world.truth) if arrived else (world.truth, {}))
        assert world.replicas[2 if not arrived else 1].count() == 0
        if not arrived:  # the ranges may move again
            await world.command(StartMove(2, world.topology.map.epoch, [(b"m", b"n\xff")], 0, 1), 1.0)
            again = asyncio.create_task(Mover(world.node(), 3).run())
            await _ended(world)
            again.cancel()
            assert world.visible(2) == world.truth

    virtually(work())


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize("takes_over", [False, True], ids=["", "another driver"])
def test_writes_wait_for_a_silent_target_no_longer_than_the_bound(
    tmp_path: Path, step: type, after: bool, takes_over: bool
) -> None:
    """Unless the source has released the ranges: then there is no way back, and they wait until it answers."""

    async def work() -> None:
        world = World(tmp_path, random.Random(f"{step}{after}{takes_over}"))
        loop = asyncio.get_running_loop()
        for _ in range(40):
            world.write()
        await world.command(StartMove(1, 1, [(b"m", b"n\xff")], 0, 1), 1.0)
        move = world.topology.moves[0].id
        tasks = [asyncio.create_task(Mover(world.node(), 3).run())]

        def away() -> None:
            world.silent = True
            if takes_over:
                tasks.pop().cancel()
                tasks.append(asyncio.create_task(Mover(world.node(), 3).run()))

        _at(world, step, after, away)
        await until(lambda: world.silent)
        longest, since, end = 0.0, None, loop.time() + 20
        while loop.time() < end:
            fence = world.replicas[1].fence
            if fence is None or not fence.freezes:
                since = None
            else:
                since = loop.time() if since is None else since
                longest = max(longest, loop.time() - since)
            await asyncio.sleep(0.01)
        assert longest < 2.5
        assert not world.topology.moves or world.topology.moves[0].state is not MoveState.GIVEN_UP
        if not world.arrived(move):
            assert world.visible(1) == world.truth
        world.silent = False
        await _ended(world)
        for task in tasks:
            task.cancel()
        assert world.arrived(move)
        assert (world.visible(1), world.visible(2)) == ({}, world.truth)

    virtually(work())


CUSTOM = ShardStrategy.custom("tenant")


async def until(holds: Callable[[], bool], every: float = 0.05) -> None:
    deadline = asyncio.get_running_loop().time() + 100
    while not holds():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(every)


def keyed(world: World) -> tuple[dict[str, int], dict[str, int]]:
    """Metadata of a document of shard 0, and of shard 1."""
    assert world.topology.map is not None
    owner = world.topology.map.owner
    keys = {n: owner(routing_key(CUSTOM, 2, "", {"tenant": n})) for n in range(50)}
    ours, theirs = (next(n for n in keys if keys[n] == shard) for shard in (0, 1))
    return {"tenant": ours}, {"tenant": theirs}


@pytest.mark.parametrize("late", [False, True], ids=["while it copies", "just before it freezes"])
def test_a_move_that_would_lose_one_of_two_documents_waits_until_one_is_deleted(tmp_path: Path, late: bool) -> None:
    """Under custom routing an id under two shard keys is two documents as long as these live in different shards."""

    async def work() -> None:
        world = World(tmp_path, random.Random(1), CUSTOM)
        world.writes = False
        shard_map = world.topology.map
        assert shard_map is not None
        goes, stays = keyed(world)
        names = ["m1", "m2", "m3"]
        theirs = world.apply(2, put(names[:2], [[2, 2, 2]] * 2, [stays] * 2, collection=MADE.stored_name)).version
        first = names if not late else names[2:]
        ours = world.apply(1, put(first, [[1, 1, 1]] * len(first), [goes] * len(first), collection=MADE.stored_name))
        await world.command(StartMove(1, 1, list(shard_map.ranges(0)), 0, 1), 1.0)
        if late:  # nothing was in the way of the copy, and something is of the rest
            told, command = [], world.command

            async def just_before(order: CatalogCommand, timeout: float) -> WriteResult:
                if not told:
                    told.append(order)
                    world.apply(1, put(names[:2], [[1, 1, 1]] * 2, [goes] * 2, collection=MADE.stored_name))
                return await command(order, timeout)

            world.command = just_before  # type: ignore[method-assign]
        mover = Mover(world.node(), 100)
        running = asyncio.create_task(mover.run())
        await until(lambda: bool(mover.held(1)))
        await asyncio.sleep(5)
        assert [one.state for one in world.topology.moves] == [MoveState.COPYING]
        assert len(mover.held(1)) == 1 and mover.waits
        assert mover.held(2) == []
        assert "collection 'default'" in mover.held(1)[0]
        assert "'m1', 'm2'," in mover.held(1)[0]
        assert set(world.visible(1)) == set(names)
        assert world.visible(2) == {"m1": theirs, "m2": theirs}

        world.apply(2, Delete(MADE.stored_name, ["m1"]))
        await asyncio.sleep(5)
        assert "ids 'm2'," in mover.held(1)[0]
        kept = world.visible(1)
        if late:
            world.apply(2, Delete(MADE.stored_name, ["m2"]))
        else:
            world.apply(1, Delete(MADE.stored_name, ["m2"]))
            kept = {"m1": ours.version, "m3": ours.version, "m2": theirs}
        await until(lambda: not world.topology.moves)
        running.cancel()
        assert mover.held(1) == []
        assert world.visible(2) == kept
        assert world.visible(1) == {}
        for replica in world.replicas.values():
            replica.verify()

    virtually(work())


def test_a_move_that_would_lose_one_of_two_documents_can_be_given_up(tmp_path: Path) -> None:
    """As what it waits for says: both documents stay, and the next move of the same keys begins from nothing."""

    async def work() -> None:
        world = World(tmp_path, random.Random(1), CUSTOM)
        world.writes = False
        goes, stays = keyed(world)
        theirs = world.apply(2, put(["m1"], [[2, 2, 2]], [stays], collection=MADE.stored_name)).version
        ours = world.apply(1, put(["m3", "m1"], [[1, 1, 1]] * 2, [goes] * 2, collection=MADE.stored_name)).version
        assert world.topology.map is not None
        ranges = list(world.topology.map.ranges(0))
        await world.command(StartMove(1, 1, ranges, 0, 1), 1.0)
        mover = Mover(world.node(), 1)
        running = asyncio.create_task(mover.run())
        await until(lambda: bool(mover.held(1)))
        assert "`needle rebalance --cancel`" in mover.held(1)[0]
        await world.command(CancelMove(world.topology.moves[0].id), 1.0)
        await until(lambda: not world.topology.moves)
        assert mover.held(1) == []
        assert (world.visible(1), world.visible(2)) == ({"m3": ours, "m1": ours}, {"m1": theirs})
        assert world.replicas[2].count() == 1
        world.apply(2, Delete(MADE.stored_name, ["m1"]))
        await world.command(StartMove(2, world.topology.map.epoch, ranges, 0, 1), 1.0)
        await until(lambda: not world.topology.moves)
        assert world.visible(2) == {"m3": ours, "m1": ours}
        running.cancel()

    virtually(work())


def test_what_a_waiting_move_has_copied_can_be_deleted(tmp_path: Path) -> None:
    """The target refuses to delete a copy as long as it has one, so deletes must not wait with the move."""

    async def work() -> None:
        world = World(tmp_path, random.Random(1), CUSTOM)
        world.writes = False
        goes, stays = keyed(world)
        world.apply(2, put(["m1"], [[2, 2, 2]], [stays], collection=MADE.stored_name))
        world.apply(1, put(["m3", "m1"], [[1, 1, 1]] * 2, [goes] * 2, collection=MADE.stored_name))
        assert world.topology.map is not None
        await world.command(StartMove(1, 1, list(world.topology.map.ranges(0)), 0, 1), 1.0)
        mover = Mover(world.node(), 1)
        running = asyncio.create_task(mover.run())
        await until(lambda: bool(mover.held(1)))
        delete = Delete(MADE.stored_name, ["m3"])
        with pytest.raises(StaleEpoch):
            world.apply(2, delete)
        world.apply(1, delete)

        def deleted() -> bool:
            try:
                world.apply(2, delete)
            except StaleEpoch:
                return False
            return True

        await until(deleted)
        assert mover.held(1)
        before = len(world.logs[2].entries)
        await asyncio.sleep(60)
        assert len(world.logs[2].entries) - before < 100
        running.cancel()

    virtually(work())


def test_a_move_that_copies_gives_way_to_one_whose_ranges_are_frozen(tmp_path: Path) -> None:
    """Who comes to lead the source of a frozen move may be copying for another one, for hours if that is throttled."""

    async def work() -> None:
        world = World(tmp_path, random.Random(3))
        world.writes = False
        for _ in range(60):
            world.write()
        await world.command(StartMove(1, 1, [(b"m", b"m\xff")], 0, 1, batch_size=1, throttle_rate=3600), 1.0)
        slow = world.topology.moves[0].id
        running = asyncio.create_task(Mover(world.node(), 100).run())
        await until(lambda: world.visible(1) != {} and len(world.logs[2].entries) > 2)
        assert world.topology.map is not None
        await world.command(StartMove(2, world.topology.map.epoch, [(b"n", b"n\xff")], 0, 1), 1.0)
        frozen = world.topology.moves[1].id
        await world.command(AdvanceMove(frozen, MoveState.FREEZING), 1.0)
        await until(lambda: world.topology.move(frozen) is None)
        left = world.topology.move(slow)
        assert left is not None
        assert left.state is MoveState.COPYING
        running.cancel()
        assert {name for name in world.truth if name.startswith("n")} == set(world.visible(2))

    virtually(work())


def test_a_move_that_rests_between_two_batches_holds_up_no_other(tmp_path: Path) -> None:
    async def work() -> None:
        world = World(tmp_path, random.Random(3))
        world.writes = False
        for _ in range(60):
            world.write()
        await world.command(StartMove(1, 1, [(b"m", b"m\xff")], 0, 1, batch_size=1, throttle_rate=3600), 1.0)
        slow = world.topology.moves[0].id
        mover = Mover(world.node(), 100)
        running = asyncio.create_task(mover.run())
        await until(lambda: mover.copied(1).get(slow) == 1)
        assert world.topology.map is not None
        await world.command(StartMove(2, world.topology.map.epoch, [(b"n", b"n\xff")], 0, 1), 1.0)
        fast = world.topology.moves[1].id
        await until(lambda: world.topology.move(fast) is None)
        left = world.topology.move(slow)
        assert left is not None and left.state is MoveState.COPYING
        assert mover.copied(1)[slow] == 1
        assert {name for name in world.truth if name.startswith("n")} == set(world.visible(2))
        await world.command(CancelMove(slow), 1.0)  # nor does its own end wait for the next batch
        await until(lambda: not world.topology.moves)
        assert set(world.visible(1)) == {name for name in world.truth if name.startswith("m")}
        running.cancel()

    virtually(work())


def test_a_move_that_copies_keeps_its_pace_whatever_is_frozen_on_other_nodes(tmp_path: Path) -> None:
    """Of a shard without a replica here nobody here is the leader."""

    async def work() -> None:
        world = World(tmp_path, random.Random(3))
        world.writes = False
        for _ in range(60):
            world.write()
        copied: list[Command] = []
        world.seen = lambda command, done: copied.append(command) if done and isinstance(command, Import) else None
        await world.command(StartMove(1, 1, [(b"m", b"m\xff")], 0, 1, batch_size=1, throttle_rate=3600), 1.0)
        running = asyncio.create_task(Mover(world.node(), 100).run())
        await until(lambda: bool(copied))
        assert world.topology.map is not None
        await world.command(StartMove(2, world.topology.map.epoch, [(b"\x90", b"\x91")], 1, 0), 1.0)
        await world.command(AdvanceMove(world.topology.moves[1].id, MoveState.FREEZING), 1.0)
        await asyncio.sleep(600)
        running.cancel()
        assert len(copied) == 1  # the next one is due after an hour

    virtually(work())


def paused(world: World, state: JobState) -> None:
    """The rebalance whose only move runs, in a state."""
    (info,) = world.topology.moves
    move = MoveRange(source=0, target=1, ranges=info.ranges, documents=10, bytes=10)
    running = (Running(id=info.id, move=move, nodes=("node-1",)),)
    job = Job(id=50, wish=Wish(), config=RebalanceConfig(), state=state, running=running)
    world.topology = msgspec.structs.replace(world.topology, rebalance=job)


@pytest.mark.parametrize("rows_max", [5, 100])
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_paused_move_copies_no_further_than_its_batch_and_goes_on_with_what_was_written(
    tmp_path: Path, rows_max: int, cancelled: bool
) -> None:
    """Also one whose whole copy was a single batch: it does not freeze."""

    async def work() -> None:
        world = World(tmp_path, random.Random(3))
        world.writes = False
        for _ in range(60):
            world.write()
        sent: list[Command] = []

        def seen(command: object, done: bool) -> None:
            if done and isinstance(command, Import | Freeze | Release | Own):
                sent.append(command)
                if len(sent) == 1:
                    paused(world, JobState.PAUSED)

        world.seen = seen
        await world.command(StartMove(1, 1, [(b"m", b"m\xff")], 0, 1), 1.0)
        move = world.topology.moves[0].id
        running = asyncio.create_task(Mover(world.node(), rows_max).run())
        await until(lambda: bool(sent))
        await asyncio.sleep(600)
        assert [type(command) for command in sent] == [Import]
        assert world.topology.moves[0].state is MoveState.COPYING
        for _ in range(60):
            world.write()  # writes go on where they were
        if cancelled:
            await world.command(CancelMove(move), 1.0)
        else:
            paused(world, JobState.RUNNING)
        await until(lambda: not world.topology.moves)
        running.cancel()
        there = {name for name in world.visible(2) if name.startswith("m")}
        assert there == (set() if cancelled else {name for name in world.truth if name.startswith("m")})

    virtually(work())


def test_a_switch_that_has_begun_ends_though_its_rebalance_is_paused(tmp_path: Path) -> None:
    """It stood before its freeze until the rebalance went on, and copied then what was written meanwhile as fast as it
    could."""

    async def work() -> None:
        world = World(tmp_path, random.Random(3))
        world.writes = False
        for _ in range(60):
            world.write()

        def seen(command: object, done: bool) -> None:
            info = world.topology.moves[0] if world.topology.moves else None
            if isinstance(command, PrepareMove) and info is not None and info.state is MoveState.FREEZING:
                paused(world, JobState.PAUSED)

        world.seen = seen
        await world.command(StartMove(1, 1, [(b"m", b"n\xff")], 0, 1), 1.0)
        running = asyncio.create_task(Mover(world.node(), 100).run())
        await _ended(world)
        running.cancel()
        assert world.topology.rebalance is not None and world.topology.rebalance.state is JobState.PAUSED
        assert world.visible(2) == world.truth

    virtually(work())


@pytest.mark.parametrize("searches", [0.0, 50.0])
def test_while_there_are_callers_copies_and_clean_ups_take_half_of_the_time(tmp_path: Path, searches: float) -> None:
    """Of all moves of a node together. Without callers nothing is put off."""

    async def work() -> None:
        world, loop = World(tmp_path, random.Random(3)), asyncio.get_running_loop()
        world.searches, world.writes = searches, False
        for _ in range(200):
            world.write()
        bulk: list[tuple[float, float]] = []
        began: list[float] = []

        def seen(command: object, done: bool) -> None:
            if isinstance(command, Import | Forget):
                (bulk.append((began.pop(), loop.time())) if done else began.append(loop.time()))

        async def between() -> None:
            await asyncio.sleep(0.05)

        world.seen, world.between = seen, between  # type: ignore[method-assign]
        for number, letter in enumerate("mn", 1):
            assert world.topology.map is not None
            start = StartMove(number, world.topology.map.epoch, [(letter.encode(), letter.encode() + b"\xff")], 0, 1)
            await world.command(start, 1.0)
        running = asyncio.create_task(Mover(world.node(), 2).run())
        await until(lambda: not world.topology.moves)
        running.cancel()
        assert len(bulk) > 20
        pauses = sorted(after[0] - before[1] for before, after in pairwise(bulk))
        resting = [pause for pause in pauses if pause > 0.09]
        assert (len(resting) > len(pauses) / 2) == bool(searches), pauses

    virtually(work())


def test_what_a_virtual_run_left_running_has_ended_when_it_returns() -> None:
    ended = []

    async def left() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def work() -> None:
        asyncio.create_task(left()).add_done_callback(lambda _: ended.append(False))
        await asyncio.sleep(1.0)

    virtually(work())
    assert ended == [True, False]
