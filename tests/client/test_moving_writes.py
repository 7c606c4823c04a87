"""Writes whose keys change their shard while they are on the way: sent again only where that is surely right."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from catalog.catalog_util import spec, topology
from client.fake_shards import FakeShards, virtually
from harness.connected import Connected
from needle.base.errors import ConnectionLost, OutcomeUnknown, StaleEpoch
from needle.base.ids import GroupId
from needle.base.model import WriteResult
from needle.client.known_topology import AskedTopology
from needle.client.router.router import Router
from needle.client.shards import ClusterShards
from needle.protocol import calls, commands
from needle.protocol.calls import GroupCall, LeaderAnswer, WriteCall
from needle.protocol.peer_calls import SHARD_LEADER, TOPOLOGY, TopologyAnswer
from needle.routing.shard_map import KeyRange
from needle.routing.strategy import ShardStrategy, routing_key
from needle.routing.topology import CollectionInfo, Topology

EVERYTHING: KeyRange = (b"", None)


def test_a_delete_by_id_asks_all_shards_again_when_the_map_changed_on_its_way() -> None:
    """Shard 1 says "not here" before the document comes to it, shard 0 after it has left."""

    async def work() -> None:
        strategy = ShardStrategy.custom("t")
        shards = FakeShards(2, strategy)
        assert shards.real.map is not None
        value = next(n for n in range(99) if shards.real.map.owner(routing_key(strategy, 2, "x", {"t": n})) == 0)
        router = Router(shards)
        await router.insert("default", "x", b"\0" * 8, msgspec.json.encode({"t": value}), None, 5)
        assert "x" in shards.data[0]
        shards.delay["0/a"] = 0.5
        deleting = asyncio.create_task(router.delete("default", ["x"], 5))
        await asyncio.sleep(0.1)
        shards.move(EVERYTHING, 1)
        assert "x" in shards.data[1]
        result = await deleting
        assert result.count == 1
        assert "x" not in shards.data[1]

    virtually(work())


def test_a_delete_of_which_one_shard_refuses_its_part_is_not_asked_again_of_the_others() -> None:
    """Shard 1 has executed it, and a document of that id is written again, before shard 0 says that its keys moved."""

    async def work() -> None:
        strategy = ShardStrategy.custom("t")
        shards = FakeShards(2, strategy)
        assert shards.real.map is not None
        value = next(n for n in range(99) if shards.real.map.owner(routing_key(strategy, 2, "x", {"t": n})) == 1)
        router, other = Router(shards), Router(shards)
        metadata = msgspec.json.encode({"t": value})
        await router.insert("default", "x", b"\0" * 8, metadata, None, 5)
        shards.delay["0/a"] = 0.5
        deleting = asyncio.create_task(router.delete("default", ["x"], 5))
        await asyncio.sleep(0.1)
        assert "x" not in shards.data[1]
        await other.insert("default", "x", b"\0" * 8, metadata, None, 5)
        shards.move(EVERYTHING, 1)
        assert (await deleting).count == 1
        assert "x" in shards.data[1]

    virtually(work())


@pytest.mark.parametrize("again", [True, False])
def test_a_delete_that_one_shard_has_done_is_repeated_for_the_others_only(again: bool) -> None:
    """A shard does not have the collection yet, or does not have it any more."""

    async def work() -> None:
        shards = FakeShards(2, ShardStrategy.HASH)
        router = Router(shards)
        names = [f"doc-{n}" for n in range(20)]
        for name in names:
            await router.insert("default", name, b"\0" * 8, b"", None, 5)
        there = dict(shards.data[0])
        shards.without = {1: 3 if again else 1000}
        deleting = asyncio.create_task(router.delete("default", names, 5))
        await asyncio.sleep(0.002)
        assert not shards.data[0]
        shards.data[0].update(there)  # written again, after shard 0 had done its part
        if not again:
            shards.real = msgspec.structs.replace(shards.real, collections=(), version=shards.real.version + 1)
            with pytest.raises(OutcomeUnknown, match="1 of 2 shards have done it"):
                await deleting
        else:
            assert (await deleting).count == 20
            assert not shards.data[1]
        assert shards.data[0] == there

    virtually(work())


class Cluster(Connected):
    """A network with two shards on one node; `script` says what shard 0 answers to writes, then it is moved away."""

    def __init__(self, now: Topology, script: list[Exception]) -> None:
        self.now = now
        self.script = script
        self.executed: list[tuple[GroupId, int]] = []

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        if method == TOPOLOGY:
            return calls.encode(TopologyAnswer("node-1", self.now))
        if method == SHARD_LEADER:
            calls.decode(body, GroupCall)
            return calls.encode(LeaderAnswer("node-1", "node-1", 1, self.now.addresses()))
        assert method == calls.WRITE
        call = calls.decode(body, WriteCall)
        command = commands.decode(call.command)
        if isinstance(command, commands.OpenSession):
            return calls.encode(WriteResult(version=1, index=10 * call.group))
        assert isinstance(command, commands.Insert)
        if call.group == 1 and self.script:
            error = self.script.pop(0)
            if isinstance(error, StaleEpoch):
                assert self.now.map is not None
                shard_map = self.now.map.with_owner(EVERYTHING, 1)
                self.now = msgspec.structs.replace(self.now, map=shard_map, version=self.now.version + 1)
            raise error
        self.executed.append((call.group, command.session.seq))
        return calls.encode(WriteResult(version=7, index=6))


def moved(**details: bool) -> StaleEpoch:
    return StaleEpoch("moved", version=2, epoch=2, owned=False, **details)


LOST = ConnectionLost("gone")


@pytest.mark.parametrize(
    ("script", "executed"),
    [
        ([moved()], 2),
        ([moved(final=True)], 2),
        ([LOST, moved(final=True)], 2),  # the log says that this number never takes effect, whatever became of it
        ([LOST, moved()], 0),
        ([LOST], 1),
    ],
)
def test_a_write_of_unknown_fate_is_not_sent_to_another_shard(script: list[Exception], executed: int) -> None:
    async def work() -> None:
        made = CollectionInfo(id=7, spec=spec("default", 2))
        now = msgspec.structs.replace(topology(shards=2, factor=1, nodes=1), collections=(made,))
        assert now.map is not None
        shard_map = now.map.with_owner(EVERYTHING, 0)
        network = Cluster(msgspec.structs.replace(now, map=shard_map), list(script))
        known = AskedTopology(network, ["10.0.0.1:5000"], network.now)
        router = Router(ClusterShards(network, known, rng=random.Random(1)))
        if not executed:
            with pytest.raises(OutcomeUnknown, match="moved"):
                await router.insert("default", "a", b"\0" * 8, b"", None, 5.0)
            assert network.executed == []
            return
        await router.insert("default", "a", b"\0" * 8, b"", None, 5.0)
        assert network.executed == [(executed, 1)]

    virtually(work())
