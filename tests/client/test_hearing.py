"""Who asks for a newer topology is told what changed, and has what the node has, whatever it knew."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from catalog.catalog_util import spec, topology
from needle.client.hearing import Hearing
from needle.protocol import calls
from needle.protocol.peer_calls import TopologyAnswer, TopologyCall
from needle.routing.topology import CollectionInfo, Topology
from needle.routing.topology_changes import FORM, History
from needle.server.service.catalog import CatalogCalls

_replace = msgspec.structs.replace


class OneNode:
    """Answers as a node does that has seen these topologies. sent: bytes of each answer. before: it is of the release
    before."""

    def __init__(self, *seen: Topology, before: bool = False) -> None:
        self.topology, self.history, self.before = seen[-1], History(), before
        for one in seen:
            self.history.follow(one)
        self.asked: list[TopologyCall] = []
        self.sent: list[int] = []

    async def call(self, body: bytes) -> bytes:
        call = calls.decode(body, TopologyCall)
        self.asked.append(call)
        newer = self.topology.version > call.version or call.confirmed
        answer = TopologyAnswer("n1", self.topology if newer else None)
        if not self.before:
            calls_of = CatalogCalls.__new__(CatalogCalls)
            calls_of._node = self  # type: ignore[assignment]
            answer = calls_of.shortened(call, answer)
        data = calls.encode(answer)
        if self.before:
            data = calls.encode(msgspec.msgpack.decode(data)[:2])
        self.sent.append(len(data))
        return data


def catalog(version: int, *names: str) -> Topology:
    infos = tuple(CollectionInfo(id=n + 2, spec=spec(name)) for n, name in enumerate(sorted(names)))
    return _replace(topology(), version=version, founding=5, collections=infos)


MANY = [f"c{n:03}" for n in range(200)]


async def test_one_more_collection_is_told_alone() -> None:
    before = catalog(3, *MANY)
    now = _replace(before, version=4, collections=(*before.collections, *catalog(4, "d").collections))
    node, hearing = OneNode(before, now), Hearing()
    known = calls.decode(calls.encode(before), Topology)
    assert await hearing.ask(node.call, known) == now
    assert (hearing.shortened, hearing.misfits, len(node.sent)) == (1, 0, 1)
    assert node.sent[0] < 1000 < len(calls.encode(now))
    assert await hearing.ask(node.call, now) is None


@pytest.mark.parametrize(
    "other",
    [
        lambda one: _replace(one, collections=one.collections[:-1]),
        lambda one: _replace(one, replicas=7),
        lambda one: _replace(one, map=_replace(one.map, epoch=9)),
    ],
    ids=["without a collection", "with another field", "with another map"],
)
async def test_who_knows_another_topology_of_that_version_is_told_the_whole(
    other: Callable[[Topology], Topology],
) -> None:
    """As who heard of a catalog whose node was then restored from an older copy."""
    before = catalog(3, *MANY)
    now = _replace(before, version=5, collections=before.collections[1:])
    node, hearing = OneNode(before, now), Hearing()
    assert await hearing.ask(node.call, other(before)) == now
    assert (hearing.shortened, hearing.misfits) == (0, 1)
    assert [call.form for call in node.asked] == [FORM, 0]
    later = _replace(now, version=6, replicas=2)
    node.history.follow(later)
    node.topology = later
    assert await hearing.ask(node.call, now) == later
    assert hearing.shortened == 1


async def test_a_node_of_the_release_before_tells_the_whole() -> None:
    before = catalog(3, *MANY)
    now = _replace(before, version=4, replicas=2)
    node, hearing = OneNode(before, now, before=True), Hearing()
    assert await hearing.ask(node.call, before) == now
    assert (hearing.shortened, hearing.misfits, len(node.asked)) == (0, 0, 1)


async def test_a_caller_of_the_release_before_is_told_the_whole() -> None:
    before = catalog(3, *MANY)
    now = _replace(before, version=4, replicas=2)
    node = OneNode(before, now)
    body = msgspec.msgpack.encode([3, 0.0, False, 5])
    answer = msgspec.msgpack.decode(await node.call(body))
    assert msgspec.convert(answer[1], Topology) == now
