"""A node that moved: it tells the others itself, tries again soon, and goes on telling those that were away."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import topology
from client.fake_shards import virtually
from needle.base.errors import ConnectionLost, InvalidArgument, NeedleError, NoQuorum
from needle.multiraft.codec import LifeAnswer, encode_body
from needle.multiraft.lives import LIFE_METHOD
from needle.multiraft.log.log_records import Identity, Life
from needle.protocol import calls
from needle.protocol.calls import AddressBook
from needle.protocol.peer_calls import WHO, WhoAnswer
from needle.routing.topology import NodeInfo
from needle.server.catalog.registration import LOOK_SECONDS, PAUSE_SECONDS, Registration


class FakeNode:
    """The first node of a cluster, at another address than the catalog knows."""

    def __init__(self, address: str = "elsewhere:1") -> None:
        self.topology = topology(shards=1)
        first = self.topology.nodes[0]
        self.node_id = first.id
        self.ports: Any = SimpleNamespace(knows=first.knows)
        self.mine = msgspec.structs.replace(first, address=address or first.address)
        lives = SimpleNamespace(identity=Identity(7, ((1, 70), (2, 71))))
        self.host = SimpleNamespace(stopped=False, engine=SimpleNamespace(lives=lives))
        self.lives: dict[str, Life] = {}
        self.peers: Any = self
        self.shards: Any = self
        self.caller: Any = self
        self.back = False
        self.told: list[tuple[float, str, str, dict[str, str]]] = []
        self.tries: list[float] = []
        self.refusals: list[NeedleError] = []
        self.fatal: list[NeedleError] = []

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def seeds(self) -> list[str]:
        return []

    def reach(self, node: str) -> str | None:
        return self.topology.address_of(node)

    def info(self) -> NodeInfo:
        return self.mine

    async def wait_topology(self, version: int, timeout: float) -> bool:
        await asyncio.sleep(timeout)
        return False

    async def call(self, node: str, method: str, body: bytes, timeout: float) -> bytes:
        if method == LIFE_METHOD and node in self.lives:
            return encode_body(LifeAnswer(self.lives[node], 0, True, "", "", {}, []))
        if method == LIFE_METHOD:
            raise ConnectionLost("nobody is there")
        self.told.append((self.now(), node, method, calls.decode(body, AddressBook).addresses))
        if self.back:
            return calls.encode(AddressBook({}))
        raise ConnectionLost("away")

    async def command(self, command: Any, timeout: float) -> None:
        self.tries.append(self.now())
        if self.refusals:
            raise self.refusals.pop(0)
        nodes = (command.node, *self.topology.nodes[1:])
        self.topology = msgspec.structs.replace(self.topology, nodes=nodes, version=self.topology.version + 1)

    async def run_for(self, seconds: float) -> None:
        self.host.stopped = False
        task = asyncio.get_running_loop().create_task(Registration(self, self.fatal.append).run())
        await asyncio.sleep(seconds)
        self.host.stopped = True
        task.cancel()


def test_it_tells_all_others_before_it_registers_and_tries_every_second() -> None:
    async def work() -> None:
        node = FakeNode()
        node.refusals = [NoQuorum("no leader yet")] * 3
        await node.run_for(5)
        assert node.tries == pytest.approx([0, 1, 2, 3], abs=0.01)
        others = {info.id for info in node.topology.nodes} - {node.node_id}
        assert {name for _, name, _, _ in node.told} == others
        assert len(node.told) == 4 * len(others)
        assert all(told == {node.node_id: "elsewhere:1"} for _, _, _, told in node.told)
        assert node.topology.address_of(node.node_id) == "elsewhere:1"

    virtually(work())


def test_it_goes_on_telling_those_that_were_away() -> None:
    async def work() -> None:
        node = FakeNode("")
        await node.run_for(62)
        assert node.tries == []
        assert sorted({round(when) for when, _, _, _ in node.told}) == [0, 1, 3, 7, 15, 31, 61]
        node.told, node.back = [], True
        await node.run_for(2.5 * LOOK_SECONDS)
        assert sorted({round((when - 62) / LOOK_SECONDS) for when, _, _, _ in node.told}) == [0, 1, 2]

    virtually(work())


def test_a_node_that_the_catalog_refuses_stops() -> None:
    async def work() -> None:
        node = FakeNode()
        node.refusals = [InvalidArgument("another data directory", field="node")]
        await node.run_for(5)
        assert len(node.tries) == len(node.fatal) == 1

    virtually(work())


@pytest.mark.parametrize("life", [Life(7, 1, 70), Life(7, 2, 99), Life(7, 3, 72)])
def test_a_copy_does_not_take_the_place_of_a_node_that_runs(life: Life) -> None:
    """Whether it was copied while the node ran (an earlier start), or both were started since."""

    async def work() -> None:
        node = FakeNode()
        node.lives = {node.topology.nodes[0].address: life}
        await node.run_for(5)
        assert node.tries == node.told == []
        (error,) = node.fatal
        assert "runs already" in error.message

    virtually(work())


@pytest.mark.parametrize("life", [Life(7, 2, 71), Life(8, 2, 99)])
def test_who_is_found_where_the_node_was_may_be_itself_or_another_node(life: Life) -> None:
    async def work() -> None:
        node = FakeNode()
        node.lives = {node.topology.nodes[0].address: life}
        await node.run_for(5)
        assert node.topology.address_of(node.node_id) == "elsewhere:1"
        assert not node.fatal

    virtually(work())


class AlmostDue(FakeNode):
    """Its clock stands just before the time of the next announcement: what is left is less than the event loop's clock
    can tell, so a wait for it is over at once."""

    def __init__(self) -> None:
        super().__init__("")
        self.back = True
        self.waits: list[float] = []

    def now(self) -> float:
        return math.nextafter(LOOK_SECONDS, 0) if self.waits else 0.0

    async def wait_topology(self, version: int, timeout: float) -> bool:
        self.waits.append(timeout)
        self.host.stopped = len(self.waits) == 3
        return False


def test_it_lets_others_have_their_turn_until_the_next_announcement() -> None:
    async def work() -> None:
        node = AlmostDue()
        await Registration(node, node.fatal.append).run()
        assert min(node.waits) >= PAUSE_SECONDS

    virtually(work())


class MovedNodes(FakeNode):
    """All others moved and do not know of each other; at the seed there is the second, which knows the third. The
    fourth's old address belongs to a stranger now, and an impostor has its name at another one."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third, fourth, *_ = self.topology.nodes
        self.second, self.third, self.fourth = second, third, fourth
        self.book = {second.id: second.address, third.id: "new:3", fourth.id: "impostor:4"}
        self.who = {
            "seed:2": second,
            "new:3": third,
            "impostor:4": msgspec.structs.replace(fourth, incarnation=fourth.incarnation + 1),
            self.mine.address: first,
        }
        self.learned: dict[str, str] = {}

    def seeds(self) -> list[str]:
        return [self.mine.address, "seed:2", "seed:nobody"]

    def learn_address(self, node: str, address: str) -> None:
        self.learned[node] = address

    async def call(self, node: str, method: str, body: bytes, timeout: float) -> bytes:
        if method == WHO and node in self.who:
            info = self.who[node]
            return calls.encode(WhoAnswer(info.id, node, info.incarnation, "", 1.0, 1, 1))
        if node == "seed:2":
            return calls.encode(AddressBook(self.book))
        return await super().call(node, method, body, timeout)


def test_those_that_moved_too_are_found_through_a_seed_and_must_be_themselves() -> None:
    async def work() -> None:
        node = MovedNodes()
        node.refusals = [NoQuorum("no leader yet")] * 3
        await node.run_for(0.5)
        assert node.learned == {node.second.id: "seed:2", node.third.id: "new:3"}

    virtually(work())
