"""A node of a cluster while its disk is full: what is refused, what goes on, what is made up for later."""

from __future__ import annotations

import builtins
import errno
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from catalog.catalog_util import spec, topology
from needle.base.errors import (
    ConnectionLost,
    DeadlineExceeded,
    DiskFull,
    NeedleError,
    OutcomeUnknown,
    OutOfMemory,
    Overloaded,
    Unavailable,
    WrongCluster,
)
from needle.base.ids import shard_group
from needle.client.known_topology import AskedTopology
from needle.client.shards import ClusterShards
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for
from needle.protocol.calls import LeaderAnswer
from needle.protocol.calls import encode as encode_call
from needle.protocol.catalog_commands import CreateCollection, StartMove, encode
from needle.protocol.move_commands import Forget, Import, PrepareMove
from needle.protocol.peer_calls import CATALOG, TOPOLOGY, CatalogCall, TopologyAnswer
from needle.routing.strategy import CONSISTENT_HASH
from needle.routing.topology import MoveState
from needle.server.address_book import AddressBook
from needle.server.cluster_files import load_topology
from needle.server.machine.disk_space import DiskSpace, Room
from needle.server.node import Node
from needle.server.upkeep.leaders import LeaderSpread
from needle.server.upkeep.roomier_leaders import PACE_SECONDS, RoomierLeaders


class Full:
    """A volume without room."""

    def room(self) -> Room:
        return Room(1 << 40, 10)

    def reserved(self) -> int:
        return 0

    def reserve(self, size: int) -> bool:
        return False

    def used(self) -> tuple[int, int]:
        return 0, 0

    def shrink(self, size: int) -> None:
        return


def low(node: Node) -> None:
    """Its disk is full from now on."""
    node.space.disk._volume = Full()
    node.space.look()


async def test_nothing_begins_that_needs_room_and_drops_go_through(tmp_path: Path) -> None:
    cluster = DistributedCluster(ClusterConfig(shard_count=2, replication_factor=1, dimensions=2))
    try:
        await cluster.add_local_node("node-1", f"127.0.0.1:{free_ports(1)[0]}", str(tmp_path / "node-1"))
        await cluster.start()
        client = await cluster.client()
        await cluster.insert("doc-1", [1, 0])
        node = cluster.local_nodes()[0]
        address, shard_map = node.address, client.topology().map
        assert shard_map is not None
        low(node)
        for command in (
            CreateCollection(spec("more"), False, 1),
            StartMove(7, shard_map.epoch, shard_map.ranges(0)[:1], 0, 1),
        ):
            with pytest.raises(DiskFull, match="10 bytes left"):
                await client._caller.call(address, CATALOG, encode_call(CatalogCall(encode(command), 2.0)), 5)
        with pytest.raises(DiskFull):
            await cluster.insert("doc-2", [1, 0])
        assert not client.topology().moves
        await cluster.delete("doc-1")
        await client.drop_collection("default")
        assert (await client.refresh_topology(confirmed=True, timeout=5)).collections == ()
    finally:
        await cluster.stop()


def test_a_moves_target_takes_no_more_documents_unless_their_range_is_frozen() -> None:
    space = DiskSpace(Full(), "d", 1000)
    prepare = PrepareMove(1, 1, True, [], [], CONSISTENT_HASH, 2)
    rows = Import(1, 0, "c", 0, [], [], b"", [], [])
    space.check_import(rows, MoveState.COPYING)
    space.look()
    for command in (prepare, rows):
        for state in (None, MoveState.COPYING):
            with pytest.raises(DiskFull):
                space.check_import(command, state)
        space.check_import(command, MoveState.FREEZING)
    space.check_import(PrepareMove(1, 1, False, [], [], CONSISTENT_HASH, 2), None)
    space.check_import(Forget(1, 9), MoveState.COPYING)


def no_room_for(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Writing these files finds no room."""
    inner = builtins.open

    def opens(path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        if mode[:1] in "wa" and os.path.basename(str(path)).removesuffix(".part") in names:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return inner(path, mode, *more, **named)

    monkeypatch.setattr(builtins, "open", opens)


async def test_a_topology_that_cannot_be_written_down_is_followed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = DistributedCluster(ClusterConfig(shard_count=2, replication_factor=1, dimensions=2))
    try:
        await cluster.add_local_node("node-1", f"127.0.0.1:{free_ports(1)[0]}", str(tmp_path / "node-1"))
        await cluster.start()
        client, node = await cluster.client(), cluster.local_nodes()[0]
        no_room_for(monkeypatch, "topology.bin", "topology.changes")
        await client.create_collection("more", dimensions=2)
        await client.insert("a", [1.0, 0.0], collection="more")
        assert node.alive()
        directory = str(tmp_path / "node-1")
        assert load_topology(directory).version < node.topology.version
        monkeypatch.undo()
        await wait_for(lambda: load_topology(directory).version == node.topology.version, 60)
    finally:
        await cluster.stop()


async def test_a_node_does_not_belong_to_a_cluster_before_that_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = DistributedCluster(ClusterConfig(shard_count=1, replication_factor=1, dimensions=2))
    try:
        await cluster.add_local_node("node-1", f"127.0.0.1:{free_ports(1)[0]}", str(tmp_path / "node-1"))
        node = cluster.local_nodes()[0]
        no_room_for(monkeypatch, "cluster.json")
        with pytest.raises(DiskFull):
            await node.belong_to(7)
        assert node.cluster.uid == 0
        monkeypatch.undo()
        await cluster.start()
        assert node.cluster.uid not in (0, 7)
    finally:
        await cluster.stop()


def test_addresses_that_cannot_be_written_down_are_used_and_written_later() -> None:
    written: list[dict[str, str]] = []
    failures: list[NeedleError] = [DiskFull("no room")]

    def save(learned: dict[str, str]) -> None:
        if failures:
            raise failures.pop()
        written.append(learned)

    book = AddressBook({}, {}, save)
    assert book.learn({"a": "h:1"})
    assert book.get("a") == "h:1" and not written
    assert not book.learn({"a": "h:1"})
    assert written == [{"a": "h:1"}]


@pytest.mark.parametrize("answer", [DiskFull("no room"), WrongCluster("another one has that address now")])
@pytest.mark.parametrize("before", [[], [ConnectionLost("gone")]])
async def test_a_fault_of_the_node_says_nothing_of_an_earlier_attempt_at_the_catalog(
    before: list[NeedleError], answer: NeedleError
) -> None:
    now, script = topology(), [*before, answer]

    class Caller:
        def connected(self, address: str) -> bool:
            return True

        async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
            if method == TOPOLOGY:
                return encode_call(TopologyAnswer("node-1", now))
            raise script.pop(0)

    caller: Any = Caller()
    shards = ClusterShards(caller, AskedTopology(caller, ["10.0.0.1:5000"], now), rng=random.Random(1))
    with pytest.raises(OutcomeUnknown if before else type(answer)):
        await shards.command(CreateCollection(spec("c"), False, 1), 5)


@pytest.mark.parametrize("refusal", [OutOfMemory("no memory"), Overloaded("a turn")])
async def test_a_refusal_that_lasts_is_the_answer_of_the_catalog_and_leaves_no_doubt(refusal: NeedleError) -> None:
    """It was asked every few milliseconds, until an attempt that had no time left said that nothing was known."""
    now, asked = topology(), list[float]()

    class Caller:
        def connected(self, address: str) -> bool:
            return True

        async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
            if method == TOPOLOGY:
                return encode_call(TopologyAnswer("node-1", now))
            asked.append(timeout)
            if timeout < 0.04:  # an answer takes as long
                raise DeadlineExceeded("no answer")
            raise refusal

    caller: Any = Caller()
    shards = ClusterShards(caller, AskedTopology(caller, ["10.0.0.1:5000"], now), rng=random.Random(1))
    with pytest.raises(type(refusal)) as raised:
        await shards.command(CreateCollection(spec("c"), False, 1), 1.0)
    assert raised.value is refusal
    rounds = len(asked) / len(now.nodes)
    assert 3 <= rounds <= 6, "they are asked again, at longer and longer intervals"


async def test_a_leader_without_room_makes_way_for_one_that_has_it(tmp_path: Path) -> None:
    cluster = DistributedCluster(ClusterConfig(shard_count=1, replication_factor=3, dimensions=2))
    try:
        for n, port in enumerate(free_ports(3), 1):
            await cluster.add_local_node(f"node-{n}", f"127.0.0.1:{port}", str(tmp_path / f"node-{n}"))
        await cluster.start()
        await cluster.insert("doc-1", [1, 0])
        group, nodes = shard_group(0), {node.node_id: node for node in cluster.local_nodes()}
        looks: dict[Node, RoomierLeaders] = {}

        async def handed_over() -> Node | None:
            """Who led. On a busy machine another one may be elected just before: then it is that one's turn."""
            leader = next((node for node in nodes.values() if node.host.is_leader(group)), None)
            if leader is None:
                return None
            if leader not in looks:
                low(leader)
                looks[leader] = RoomierLeaders(leader)
            await looks[leader].look()
            return None if leader.host.is_leader(group) else leader

        leader: Node = await wait_for(handed_over, 60, "another leader")
        other = nodes[str(await wait_for(lambda: leader.host.leader(group), 60, "news of it"))]
        assert other is not leader
        await cluster.insert("doc-2", [1, 0])
        assert not await LeaderSpread(other)._willing(group, leader.node_id), "it is not sent back"
        for node in nodes.values():
            low(node)
        await RoomierLeaders(other).look()
        assert other.host.is_leader(group), "nobody has room"
        with pytest.raises(DiskFull):
            await cluster.insert("doc-3", [1, 0])
    finally:
        await cluster.stop()


async def test_leadership_is_handed_over_at_a_pace() -> None:
    asked: list[str] = []

    class Node:
        node_id, time = "n1", 0.0
        host = peers = space = property(lambda self: self)  # type: ignore[assignment]

        def now(self) -> float:
            return self.time

        def groups(self) -> list[int]:
            return [1]

        def is_leader(self, group: int) -> bool:
            return True

        def status(self, group: int) -> Any:
            peer = SimpleNamespace(recently_active=True, is_learner=False, lag_entries=0)
            behind = SimpleNamespace(id="n3", **{**vars(peer), "lag_entries": 1000})
            return SimpleNamespace(peers=[SimpleNamespace(id="n2", **vars(peer)), behind])

        async def call(self, peer: str, method: str, body: bytes, timeout: float) -> bytes:
            asked.append(peer)
            return encode_call(LeaderAnswer(peer, "n1", 1, {}))  # of an older release: it does not say

        async def transfer(self, group: int, to: str, timeout: float) -> str:
            raise AssertionError("nobody said that it has room")

    node = Node()
    leaders = RoomierLeaders(node)  # type: ignore[arg-type]
    for _ in range(3):
        await leaders.look()
    assert asked == ["n2"]
    node.time = PACE_SECONDS
    await leaders.look()
    assert asked == ["n2", "n2"]


async def test_a_shard_that_leaves_while_another_one_is_handed_over_does_not_end_the_node() -> None:
    """Its operator empties a node whose disk is low."""
    left: list[str] = []

    def is_leader(group: int) -> bool:
        if left and group == 2:
            raise Unavailable("shard 1 has no replica on node n1")
        return True

    async def call(peer: str, method: str, body: bytes, timeout: float) -> bytes:
        return encode_call(LeaderAnswer(peer, "n1", 1, {}, False, True))

    async def transfer(group: int, to: str, timeout: float) -> str:
        left.append(to)
        return to

    peer = SimpleNamespace(id="n2", recently_active=True, is_learner=False, lag_entries=0)
    host = SimpleNamespace(
        groups=lambda: [1, 2],
        is_leader=is_leader,
        status=lambda group: SimpleNamespace(peers=[peer]),
        transfer=transfer,
    )
    peers = SimpleNamespace(call=call)
    node = SimpleNamespace(node_id="n1", host=host, peers=peers, now=lambda: 0.0, expired=False)
    await RoomierLeaders(node).look()  # type: ignore[arg-type]
    assert left == ["n2"]
