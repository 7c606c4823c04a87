"""Whom a node asks first to execute a command of the catalog, and for how long what is confirmed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec

from catalog.catalog_util import topology
from client.fake_shards import virtually
from needle.base.ids import CATALOG_GROUP
from needle.client.hearing import Hearing
from needle.protocol import calls
from needle.protocol.peer_calls import TopologyAnswer, TopologyCall
from needle.routing.topology_changes import Changes
from needle.server.catalog.node_topology import NodeTopology
from needle.server.node import Node


def asked(leader: str | None, *, holds: bool) -> list[list[str]]:
    """The nodes in the order in which they are asked, several times; the catalog is held by the first three of six."""
    now = topology()
    assert now.catalog == ("node-1", "node-2", "node-3") and len(now.nodes) == 6
    names = {address: name for name, address in now.addresses().items()}
    node: Any = SimpleNamespace(
        config=SimpleNamespace(address=next(iter(names))),
        topology=now,
        book=SimpleNamespace(version=1, get=lambda _: None),
        catalog=object() if holds else None,
        host=SimpleNamespace(leader={CATALOG_GROUP: leader}.get),
    )
    known = NodeTopology(node)
    return [[names[address] for address in known.in_turn()] for _ in range(6)]


def test_who_leads_the_catalog_is_asked_first_and_all_others_behind() -> None:
    """Any other one hands the command on: writes that wait for a switch waited for that, too."""
    for order in asked("node-2", holds=True):
        assert order[0] == "node-2" and sorted(order) == [f"node-{n}" for n in range(1, 7)]


def test_who_does_not_know_that_asks_those_that_hold_the_catalog_first_in_turn() -> None:
    for orders in (asked(None, holds=True), asked("node-2", holds=False)):
        assert all({*order[:3]} == {"node-1", "node-2", "node-3"} and len(order) == 6 for order in orders)
        assert {order[0] for order in orders} == {"node-1", "node-2", "node-3"}


def test_what_does_not_fit_is_asked_for_again_within_the_callers_time() -> None:
    """Each of the two questions had all of it."""
    known = topology()
    newest = msgspec.structs.replace(known, version=known.version + 1)
    given: list[float] = []

    async def ask_leader(method: str, make: Any, timeout: float) -> bytes:
        given.append(timeout)
        await asyncio.sleep(4.0)
        if calls.decode(make(timeout), TopologyCall).form:  # of a topology that is not the one which is known here
            return calls.encode(TopologyAnswer("node-1", None, Changes(known.version, newest.version, 1, {})))
        return calls.encode(TopologyAnswer("node-1", newest))

    async def work() -> None:
        group = SimpleNamespace(ask_leader=ask_leader)
        node: Any = SimpleNamespace(
            catalog=None, topology=known, shards=SimpleNamespace(group=lambda shard: group), _hearing=Hearing(),
            now=asyncio.get_running_loop().time,
        )  # fmt: skip
        assert await Node.confirmed(node, 5.0) == newest
        assert given == [5.0, 1.0]

    virtually(work())
