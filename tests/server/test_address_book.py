"""Which address of a node counts: one that this node is configured to reach it by, or what that said last."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from harness.scripted_network import one_shard
from needle.base.errors import ConnectionLost, InvalidArgument, Unavailable
from needle.base.versions import KNOWN
from needle.catalog.nodes import NODES_MAX
from needle.protocol import calls
from needle.protocol.calls import AddressBook as AddressBookMessage
from needle.protocol.peer_calls import WhoAnswer
from needle.routing.topology import NodeInfo, NodeState, Topology
from needle.server.access import Access
from needle.server.address_book import AddressBook
from needle.server.announced import Announced
from needle.server.catalog.adoption import Adoption
from needle.server.cluster_files import ClusterFile, load_topology
from needle.server.files import load_addresses, save_addresses
from needle.server.node import Node
from needle.server.service.operations import Operations


def book(path: Path, **configured: str) -> AddressBook:
    directory = str(path)
    return AddressBook(configured, load_addresses(directory), lambda new: save_addresses(directory, new))


def test_a_configured_address_counts_over_what_a_node_says_and_the_rest_is_kept(tmp_path: Path) -> None:
    first = book(tmp_path, a="h:1", b="h:2")
    assert first.learn({"b": "h:22", "c": "h:3"})
    changes = first.version
    assert not first.learn({"c": "h:3"})
    assert first.version == changes
    assert first.all() == {"a": "h:1", "b": "h:2", "c": "h:3"}
    assert book(tmp_path, a="h:1").all() == {"a": "h:1", "c": "h:3"}
    with pytest.raises(InvalidArgument, match="address"):
        first.learn({"c": "nowhere"})


def n9(path: Path) -> Any:
    """A node that holds nothing."""

    async def run(save: Any, *arguments: Any) -> None:
        save(*arguments)

    return SimpleNamespace(
        node_id="n9",
        config=SimpleNamespace(data_dir=str(path)),
        ports=SimpleNamespace(file_pool=SimpleNamespace(run=run), knows=KNOWN),
        book=book(path, n9="h:9"),
        cluster=ClusterFile(incarnation=1),
        topology=Topology(),
        ownership=None,
        catalog=None,
        groups={},
        maintenance=SimpleNamespace(follow=lambda: None),
        access=Access(required=False),
        refuse_others=lambda topology: None,
    )


async def test_whoever_waits_for_a_topology_hears_of_it_before_it_is_on_the_disk(tmp_path: Path) -> None:
    """Writes to keys that moved wait for it on two nodes."""
    node, writing, written = n9(tmp_path), asyncio.Event(), asyncio.Event()

    async def run(save: Any, *arguments: Any) -> None:
        writing.set()
        await written.wait()
        save(*arguments)

    node.ports.file_pool.run = run
    node.host = SimpleNamespace(stopped=False)
    adoption = Adoption(node, SimpleNamespace())  # type: ignore[arg-type]
    waiting = asyncio.ensure_future(adoption.wait(1, 10.0))
    adopting = asyncio.ensure_future(adoption.adopt(one_shard(1)))
    await writing.wait()
    assert await waiting and node.ownership.epoch == 1 and load_topology(str(tmp_path)).version == 0
    written.set()
    await adopting
    assert load_topology(str(tmp_path)).version == 1


async def test_what_a_node_said_itself_is_newer_than_what_the_catalog_has_of_it(tmp_path: Path) -> None:
    node = n9(tmp_path)
    adoption = Adoption(node, SimpleNamespace())  # type: ignore[arg-type]
    await adoption.adopt(one_shard(1))
    assert node.book.get("n2") == "h:2"
    node.book.learn({"n2": "h:20"})  # it says so; the catalog will hear of it
    await adoption.adopt(one_shard(2))
    assert node.book.get("n2") == "h:20"
    await adoption.adopt(one_shard(3, n2="h:21"))
    assert node.book.get("n2") == "h:21"


async def test_nobody_makes_a_node_know_more_nodes_than_a_cluster_has(tmp_path: Path) -> None:
    one = book(tmp_path, a="h:1")
    node: Any = SimpleNamespace(topology=Topology(), book=one, host=None, told=one.all)
    serve = Operations(node).addresses
    many = {f"x{n}": "h:9" for n in range(NODES_MAX)}
    for addresses in (many, {**many, "y": "h:1"}):
        with pytest.raises(InvalidArgument, match="addresses"):
            await serve(AddressBookMessage(addresses))
    assert one.all() == {"a": "h:1"}
    one.learn_missing({**many, "y": "h:1"})  # what another node answered: as many as there is room for
    assert len(one.all()) == NODES_MAX
    with pytest.raises(InvalidArgument, match="addresses"):
        await serve(AddressBookMessage({"z": "h:3"}))
    await serve(AddressBookMessage({"x1": "h:3"}))  # one that is known has moved
    assert one.get("x1") == "h:3"
    one.learn({"z": "h:3"})  # the catalog says so
    assert one.get("z") == "h:3"


def test_nobody_is_told_of_a_removed_node_and_nobody_asks_it(tmp_path: Path) -> None:
    there, gone = (NodeInfo(id=name, address=f"{name}:1", incarnation=1) for name in ("there", "gone"))
    gone = msgspec.structs.replace(gone, state=NodeState.REMOVED)
    topology = Topology(nodes=(gone, there))
    held = book(tmp_path, me="h:1", gone="gone:1")
    held.learn({"there": "there:1"})
    node: Any = SimpleNamespace(topology=topology, book=held, told=lambda: Node.told(node))
    assert Node.told(node) == {"me": "h:1", "there": "there:1"}
    assert Node.addresses(node) == {"me": "h:1", "there": "there:1"}
    assert topology.addresses() == {"there": "there:1"} and topology.address_of("gone") is None


@pytest.mark.parametrize(
    ("state", "said"), [("active", "holds no replica"), ("removed", "was removed from the cluster")]
)
async def test_a_node_that_gets_nothing_says_so_once(
    state: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adoption = Adoption(n9(tmp_path), SimpleNamespace())  # type: ignore[arg-type]
    me = NodeInfo(id="n9", address="h:9", incarnation=1, state=NodeState(state))
    for version in (1, 2, 3):
        now = one_shard(version)
        await adoption.adopt(msgspec.structs.replace(now, nodes=(*now.nodes, me)))
    assert [said in record.message for record in caplog.records] == [True]


class Door:
    """Nodes that answer who they are."""

    def __init__(self, there: dict[str, WhoAnswer]) -> None:
        self._there = there

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        if address not in self._there:
            raise ConnectionLost(f"nobody is at {address}")
        return calls.encode(self._there[address])


async def test_a_member_is_believed_to_have_moved_only_to_where_its_own_directory_answers() -> None:
    def who(name: str, incarnation: int) -> WhoAnswer:
        return WhoAnswer(name, "h:1", incarnation, "", 1.0, 7, 1)

    known = tuple(NodeInfo(id=name, address=f"{name}:1", incarnation=5) for name in ("a", "b"))
    book = AddressBook({}, {"a": "a:1", "b": "b:1"}, lambda _: None)
    door = Door({"a:2": who("a", 5), "a:3": who("a", 6), "a:4": who("b", 5)})
    announced = Announced(SimpleNamespace(topology=Topology(nodes=known), book=book, caller=door))
    for fine in ({"a": "a:2"}, {"a": "a:1"}, {"new": "n:1"}):
        await announced.check(fine)
    for wrong in ({"a": "a:3"}, {"a": "a:4"}, {"a": "a:2", "b": "b:2"}):
        with pytest.raises(InvalidArgument):
            await announced.check(wrong)
    with pytest.raises(Unavailable, match="does not answer there"):
        await announced.check({"a": "a:9"})
