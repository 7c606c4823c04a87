"""Which address of a node counts: a configured one, one that was learned, one that was given by command."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.errors import InvalidArgument
from needle.protocol.calls import ADDRESSES
from needle.protocol.calls import AddressBook as AddressBookMessage
from needle.server.address_book import NODES_MAX, NUMBER_MAX, AddressBook
from needle.server.files import load_addresses, load_moved, save_addresses, save_moved
from needle.server.service.documents import RpcService


def book(path: Path, **configured: str) -> AddressBook:
    directory = str(path)
    return AddressBook(
        configured,
        load_addresses(directory),
        lambda new: save_addresses(directory, new),
        load_moved(directory),
        lambda new: save_moved(directory, new),
    )


def test_an_address_given_by_command_counts_until_another_one_is_configured(tmp_path: Path) -> None:
    first = book(tmp_path, a="h:1", b="h:2")
    first.learn({"c": "h:3"})
    assert first.move({"b": (7, "h:20"), "c": (7, "h:30")})
    changes = first.version
    assert not first.move({"b": (7, "h:21"), "c": (6, "h:31")})  # older, and the same once more
    assert first.version == changes
    first.learn({"b": "h:22", "c": "h:32"})  # hearsay
    assert first.all() == {"a": "h:1", "b": "h:20", "c": "h:30"}
    again = book(tmp_path, a="h:1", b="h:2")
    assert again.all() == first.all() and again.moved() == {"b": (7, "h:20"), "c": (7, "h:30")}
    assert again.move({"b": (8, "h:21")}) and again.get("b") == "h:21"
    assert book(tmp_path, a="h:1", b="h:99").get("b") == "h:99"
    assert book(tmp_path, a="h:1", b="h:21").get("b") == "h:21"


@pytest.mark.parametrize("number", [0, -1, NUMBER_MAX + 1])
def test_what_cannot_be_is_refused_and_strangers_are_not_taken_in(tmp_path: Path, number: int) -> None:
    one = book(tmp_path, a="h:1")
    with pytest.raises(InvalidArgument, match="number"):
        one.move({"a": (number, "h:2")})
    with pytest.raises(InvalidArgument, match="address"):
        one.move({"a": (1, "nowhere")})
    assert not one.move({"stranger": (1, "h:9")})
    assert one.all() == {"a": "h:1"} and list(tmp_path.iterdir()) == []


async def test_nobody_makes_a_node_know_more_nodes_than_a_cluster_has(tmp_path: Path) -> None:
    one = book(tmp_path, a="h:1")

    async def learn(addresses: dict[str, str], _: float) -> None:
        one.learn(addresses)

    node: Any = SimpleNamespace(book=one, host=None, learn_addresses=learn, addresses=one.all)
    serve = RpcService(node)._methods[ADDRESSES][1]
    many = {f"x{n}": "h:9" for n in range(NODES_MAX)}
    for addresses, moved in (
        (many, {}),
        ({**many, "y": "h:1"}, {}),
        ({}, {**dict.fromkeys(many, (1, "h:1")), "y": (1, "h:1")}),
    ):
        with pytest.raises(InvalidArgument, match="addresses"):
            await serve(AddressBookMessage(addresses, moved))
    assert one.all() == {"a": "h:1"}
    one.learn_missing({**many, "y": "h:1"})  # what another node answered: as many as there is room for
    assert len(one.all()) == NODES_MAX
    with pytest.raises(InvalidArgument, match="addresses"):
        await serve(AddressBookMessage({"z": "h:3"}))
    await serve(AddressBookMessage({"x1": "h:3"}))  # one that is known has moved
    assert one.get("x1") == "h:3"
    one.learn({"z": "h:3"})  # the catalog says so
    assert one.get("z") == "h:3"
