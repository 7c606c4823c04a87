"""Which nodes a client asks: those that the newest leader lists, and when all are silent those it was given."""

from __future__ import annotations

import pytest

from needle.base import protocol
from needle.base.errors import ConnectionLost
from needle.base.ids import shard_group
from needle.base.protocol import LeaderAnswer
from needle.client.directory import Directory

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
        return protocol.encode(self.at[address])

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
