"""Which nodes a client asks: those that the newest leader lists, and when all are silent those it was given."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from cluster.catalog_util import topology
from harness.scripted_network import Network, client_of, one_shard
from needle.base.errors import ConnectionLost, InvalidArgument, NotLeader, Unavailable
from needle.base.ids import shard_group
from needle.client.directory import Directory
from needle.client.group import GroupClient
from needle.client.shards import ReplicaDirectory
from needle.protocol import calls
from needle.protocol.calls import LeaderAnswer

GROUP = shard_group(0)


class Nodes:
    """At each address what is answered there; nothing for a node that is down."""

    def __init__(self, **answers: LeaderAnswer) -> None:
        self.at = {f"h:{name[1]}": answer for name, answer in answers.items()}
        self.asked: list[str] = []

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        self.asked.append(address)
        if address not in self.at:
            raise ConnectionLost("down", address=address)
        return calls.encode(self.at[address])

    def connected(self, address: str) -> bool:
        return True

    async def connect(self, address: str, timeout: float) -> None:
        return

    async def close(self) -> None:
        return


def says(node: int, leader: int | None, term: int, *members: int) -> LeaderAnswer:
    return LeaderAnswer(f"n{node}", f"n{leader}" if leader else None, term, {f"n{m}": f"h:{m}" for m in members})


async def find(directory: Directory, nodes: Nodes) -> tuple[str | None, list[str]]:
    """The leader, and who was asked for it."""
    nodes.asked = []
    return await directory.find_leader(GROUP, 2.0), sorted(nodes.asked)


async def test_a_removed_node_is_forgotten_also_if_it_was_given_and_still_answers() -> None:
    nodes = Nodes(n1=says(1, 2, 3, 1, 2, 3), n2=says(2, 2, 3, 1, 2, 3), n3=says(3, 2, 3, 1, 2, 3))
    directory = Directory(nodes, ["h:1", "h:2", "h:3"])
    for _ in range(2):
        await find(directory, nodes)
    for n in (1, 2, 3):
        await directory.ask(f"h:{n}", GROUP)
    assert sorted(directory.nodes()) == ["n1", "n2", "n3"]
    nodes.at["h:2"] = says(2, 2, 4, 2, 4)
    nodes.at["h:3"] = says(3, 2, 3, 1, 2, 3)
    nodes.at["h:4"] = says(4, 2, 4, 2, 4)
    await directory.ask("h:2", GROUP)
    assert directory.nodes() == {"n2": "h:2", "n4": "h:4"}
    assert directory.addresses() == ["h:2", "h:4"]
    assert (await find(directory, nodes))[1] == ["h:2", "h:4"]


@pytest.mark.parametrize(
    "answer",
    [says(3, 2, 9, 3), says(3, 3, 2, 3), says(3, None, 9, 3), LeaderAnswer("n3", "n3", 9, {})],
    ids=["does-not-lead", "led-earlier", "knows-no-leader", "lists-nobody"],
)
async def test_only_the_newest_leader_says_who_is_gone(answer: LeaderAnswer) -> None:
    nodes = Nodes(n2=says(2, 2, 3, 2, 3), n3=answer)
    directory = Directory(nodes, ["h:2", "h:3"])
    await directory.ask("h:2", GROUP)
    await directory.ask("h:3", GROUP)
    assert sorted(directory.nodes()) == ["n2", "n3"]


async def test_when_all_members_are_silent_those_that_were_given_are_asked() -> None:
    nodes = Nodes(n1=says(1, 1, 3, 1))
    directory = Directory(nodes, ["h:1"])
    nodes.at["h:1"] = says(1, 1, 3, 1, 2)
    await directory.ask("h:1", GROUP)
    nodes.at["h:2"] = says(2, 2, 4, 2)
    await directory.ask("h:2", GROUP)
    assert directory.addresses() == ["h:2"]
    nodes.at = {"h:1": says(1, 1, 5, 1)}  # as after a new cluster was set up at the configured address
    assert await find(directory, nodes) == (None, ["h:2"])
    assert await find(directory, nodes) == ("h:1", ["h:1", "h:2"])
    assert await find(directory, nodes) == ("h:1", ["h:1"])


class Swapped(Nodes):
    """n1 and n2 have swapped addresses, n3 has not heard of it; n2 leads. `late` addresses answer after the others."""

    def __init__(self, *late: str) -> None:
        super().__init__()
        now = {"n1": "h:2", "n2": "h:1", "n3": "h:3"}
        self.at = {
            "h:1": LeaderAnswer("n2", "n2", 3, now),
            "h:2": LeaderAnswer("n1", "n2", 3, now),
            "h:3": says(3, 2, 3, 1, 2, 3),
        }
        self.late = late

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        self.asked.append(address)
        if method == calls.LEADER:
            for _ in range(9 if address in self.late else 0):
                await asyncio.sleep(0)
            return calls.encode(self.at[address])
        answer = self.at[address]
        if answer.node_id == "n2":
            return b"served"
        raise NotLeader("n2 does", leader="n2", leader_address=answer.addresses["n2"])


@pytest.mark.parametrize("late", [(), ("h:1", "h:2"), ("h:2", "h:3"), ("h:1", "h:3")], ids=",".join)
@pytest.mark.parametrize("seeds", [["h:3"], ["h:1", "h:2", "h:3"], ["h:2"], ["h:3", "h:1"]], ids=",".join)
async def test_who_answers_at_an_address_is_believed_over_those_that_did_not_hear_of_its_move(
    seeds: list[str], late: tuple[str, ...]
) -> None:
    nodes = Swapped(*late)
    directory = Directory(nodes, seeds)
    group = GroupClient(GROUP, directory, random.Random(1))
    assert await group.ask_leader("ask", lambda _: b"", 1.0) == b"served"
    for _ in range(3):
        await directory.find_leader(GROUP, 1.0)
        await asyncio.gather(*(directory.ask(address, GROUP) for address in ("h:1", "h:2", "h:3")))
        assert directory.nodes() == {"n1": "h:2", "n2": "h:1", "n3": "h:3"}
    assert await directory.find_leader(GROUP, 1.0) == "h:1"


async def test_a_leader_that_is_not_where_it_is_said_to_be_is_looked_for_where_others_were() -> None:
    nodes = Swapped()
    for address in ("h:1", "h:2"):  # nobody has heard of the swap but from whom it concerns
        nodes.at[address] = msgspec.structs.replace(nodes.at[address], addresses=nodes.at["h:3"].addresses)
    directory = Directory(nodes, ["h:3"])
    assert await GroupClient(GROUP, directory, random.Random(1)).ask_leader("ask", lambda _: b"", 1.0) == b"served"
    await find(directory, nodes)
    assert directory.nodes() == {"n1": "h:2", "n2": "h:1", "n3": "h:3"}


async def test_a_node_that_no_longer_answers_is_believed_to_be_where_others_say() -> None:
    nodes = Nodes(n1=says(1, 2, 3, 1, 2), n2=says(2, 2, 3, 1, 2))
    directory = Directory(nodes, ["h:1", "h:2"])
    await find(directory, nodes)
    del nodes.at["h:1"]
    nodes.at["h:2"] = LeaderAnswer("n2", "n2", 3, {"n1": "h:9", "n2": "h:2"})
    nodes.at["h:9"] = LeaderAnswer("n1", "n2", 3, {"n1": "h:9", "n2": "h:2"})
    await directory.ask("h:1", GROUP)
    await directory.ask("h:2", GROUP)
    assert directory.nodes() == {"n1": "h:9", "n2": "h:2"}


async def test_what_concerns_one_node_is_not_sent_to_another_that_has_its_address_now() -> None:
    network = Network()
    network.is_at = {"h:1": "n2", "h:2": "n1", "h:3": "n3"}
    client = client_of(network)
    with pytest.raises(Unavailable, match="n1 is not at h:1"):
        await client._where("n1")
    network.now = one_shard(2, n1="h:2", n2="h:1")  # the catalog has heard of the swap
    assert await client._where("n1") == "h:2"
    assert await client._where("n2") == "h:1"
    with pytest.raises(InvalidArgument, match="n4"):
        await client._where("n4")


async def test_nodes_of_a_shard_that_never_answered_are_named() -> None:
    now = topology(shards=1, nodes=3)
    directory = ReplicaDirectory(Nodes(), 0, lambda: now, None)
    await find(directory, Nodes())
    told = directory.explain()
    assert told.startswith("3 of 3 nodes did not answer")
    assert all(f"{node} at {now.address_of(node)}" in told for node in ("node-1", "node-2", "node-3"))
