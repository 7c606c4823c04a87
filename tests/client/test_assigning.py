"""Who waits until replicas are where they should be hears what they wait for, and of another decision."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from catalog.catalog_util import topology
from client.fake_shards import virtually
from needle.base.errors import DeadlineExceeded, InvalidArgument
from needle.base.model import RaftStatus, WriteResult
from needle.catalog.state import execute
from needle.client.assigning import assign
from needle.client.restarting import _Rolling
from needle.protocol.catalog_commands import AssignReplicas, CatalogCommand

STATUS: dict[str, Any] = {
    "node_id": "node-1",
    "group": 1,
    "state": "Leader",
    "current_term": 3,
    "leader": "node-1",
    "commit_index": 9,
    "last_applied": 9,
    "first_index": 1,
    "last_index": 9,
    "peers": [],
    "learners": [],
    "lease_remaining": 0.0,
    "leader_changes": 1,
}
NODES = ["node-1", "node-2", "node-4"]


class World:
    """The catalog, and the leader of shard 0, which waits for node-4."""

    def __init__(self) -> None:
        self.now = topology()
        self.waits_for = "node-4 has not caught up yet"
        self.commands = 0

    def topology(self) -> Any:
        return self.now

    async def confirmed(self, timeout: float) -> Any:
        return self.now

    async def refresh(self, version: int, timeout: float) -> Any:
        return self.now

    async def command(self, command: CatalogCommand, timeout: float) -> WriteResult:
        self.commands += 1
        self.now, result = execute(self.now, self.now.version + 1, command)
        assert isinstance(result, WriteResult)
        return result

    def group(self, shard: int) -> Any:
        return self

    async def leaders_status(self, timeout: float) -> RaftStatus:
        holders = self.now.holders(1)
        assert holders is not None
        voters = sorted(holders.wanted) if not self.waits_for else ["node-1", "node-2", "node-3"]
        return RaftStatus(**STATUS, voters=voters, waits_for=self.waits_for)


def test_it_says_what_was_waited_for_and_may_be_repeated() -> None:
    async def work() -> None:
        world: Any = World()
        for _ in range(2):
            with pytest.raises(DeadlineExceeded, match=r"node-4 has not caught up yet\. The cluster goes on with it"):
                await assign(world, 1, NODES, 3.0)
        assert world.now.version == 2  # the second one decided nothing

    virtually(work())


def test_who_waits_hears_of_another_decision() -> None:
    async def work() -> None:
        world: Any = World()
        waiting = asyncio.get_running_loop().create_task(assign(world, 1, NODES, 60.0))
        await asyncio.sleep(1.0)
        await world.command(AssignReplicas(1, NODES, ["node-1", "node-2", "node-5"]), 1.0)
        with pytest.raises(InvalidArgument, match=r"by another command, to node-1, node-2, node-5"):
            await waiting

    virtually(work())


@pytest.mark.parametrize("nodes", [5, None, "node-1", {"node-1": 1}, ["\ud800"], [5], [""], float("nan")])
async def test_what_are_no_ids_of_nodes_is_refused_by_name(nodes: Any) -> None:
    """What is no list at all, and what cannot be sent, was an error of Python's."""
    world: Any = World()
    with pytest.raises(InvalidArgument, match=r"nodes.* is not allowed: "):
        await assign(world, 1, nodes, 5.0)
    with pytest.raises(InvalidArgument, match=r"nodes.* is not allowed: "):
        await _Rolling(world, world).plan(5 if nodes is None else nodes, 5.0)  # type: ignore[arg-type]
    assert world.commands == 0
