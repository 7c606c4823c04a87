"""The driver of a move against two replicas: writes go on, answers get lost, other drivers take over or interfere."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cluster.catalog_util import spec, topology
from cluster.fake_shards import virtually
from needle.base import commands, protocol
from needle.base.catalog_commands import CatalogCommand, StartMove
from needle.base.cluster_protocol import MOVE, MoveAnswer, MoveCall
from needle.base.commands import Command, CreateCollection, Delete
from needle.base.errors import ConnectionLost, NeedleError
from needle.base.model import WriteResult
from needle.base.routing.strategy import RANGE
from needle.base.routing.topology import CollectionInfo
from needle.cluster.catalog import execute
from needle.server.cluster_mover import Mover
from needle.shard.state_machine import Replica
from shard.replica_util import Log, open_replica, put

NAMES = [f"{letter}{n}" for letter in "mn" for n in range(12)]
MADE = CollectionInfo(id=7, spec=spec("default", 3))


class World:
    """Two shards of two on one node, a catalog, and what happens between any two steps of a driver."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.rng = rng
        made = topology(shards=2, factor=1, nodes=1, strategy=RANGE)
        self.topology = msgspec.structs.replace(made, collections=(MADE,))
        self.replicas: dict[int, Replica] = {1: open_replica(directory / "0"), 2: open_replica(directory / "1")}
        self.logs = {1: Log(), 2: Log()}
        self.index = 100
        self.truth: dict[str, int] = {}
        self.trouble = 0.0
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
                self.truth[name] = self.apply(1, put([name], row, collection=MADE.stored_name)).version
        except NeedleError as error:
            assert error.details["owned"] is False

    async def between(self) -> None:
        await asyncio.sleep(0.001)
        for _ in range(self.rng.choice([0, 0, 1, 3])):
            self.write()
        if self.rng.random() < 0.1:
            self.replicas[1].checkpoint()

    # --- what a driver sees -------------------------------------------------------------------------------------------
    def node(self) -> Any:
        host = SimpleNamespace(stopped=False, is_leader=lambda group: group == 1, propose=self.propose)
        shards = SimpleNamespace(
            group=lambda shard: SimpleNamespace(ask_leader=self.ask), command=self.command, sync=self.sync
        )
        world = self

        class Node:
            node_id = "node-1"

            @property
            def groups(self) -> dict[int, Any]:
                return {1: SimpleNamespace(replica=world.replicas[1])}

            @property
            def topology(self) -> Any:
                return world.topology

            async def blocking(self, work: Callable[..., Any], *arguments: Any) -> Any:
                return work(*arguments)

            async def confirmed(self, timeout: float) -> Any:
                return world.topology

        node: Any = Node()
        node.host, node.shards = host, shards
        return node

    async def propose(self, group: int, data: bytes, timeout: float) -> Any:
        await self.between()
        result = self.apply(group, commands.decode(data))
        self.lose()
        return result

    async def ask(self, method: str, body: Callable[[float], bytes], timeout: float) -> bytes:
        assert method == MOVE
        await self.between()
        call = protocol.decode(body(1.0), MoveCall)
        self.lose()
        self.apply(2, commands.decode(call.command))
        self.lose()
        fence = self.replicas[2].fence
        found = fence.holdings.transfer(call.move) if fence is not None else None
        assert found is not None
        return protocol.encode(MoveAnswer(found.phase, found.step, found.at, found.cursors))

    async def command(self, command: CatalogCommand, timeout: float) -> WriteResult:
        await self.between()
        self.index += 1
        self.topology, result = execute(self.topology, self.index, command)
        self.lose()
        if isinstance(result, NeedleError):
            raise result
        return result

    async def sync(self, shard: int, version: int, timeout: float) -> None:
        raise AssertionError("both shards have the collection")

    def lose(self) -> None:
        if self.rng.random() < self.trouble:
            raise ConnectionLost("the answer was lost")

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
        last = max(world.truth.values(), default=0)
        again = world.apply(2, put(["m1"], [[1, 1, 1]], collection=MADE.stored_name))
        assert again.version > last
        for replica in world.replicas.values():
            replica.verify()

    virtually(work())
