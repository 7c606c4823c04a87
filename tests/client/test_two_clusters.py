"""Addresses at which nodes of two clusters with one cluster_id answer: a client takes neither for the other."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from harness.scripted_network import one_shard
from needle.base.errors import ConnectionLost, WrongCluster
from needle.client.finding import find_cluster, find_topology
from needle.client.known_topology import AskedTopology
from needle.protocol import calls
from needle.protocol.peer_calls import TopologyAnswer
from needle.routing.topology import Topology


def made(version: int, founding: int) -> Topology:
    return msgspec.structs.replace(one_shard(), version=version, founding=founding)


class Nodes:
    """Answers by address; None does not answer."""

    def __init__(self, **answers: Topology | None) -> None:
        self.answers = answers

    async def call(self, address: str, method: str, body: bytes, timeout: float, node: str = "") -> bytes:
        found = self.answers[address]
        if found is None:
            await asyncio.sleep(timeout)
            raise ConnectionLost("gone")
        return calls.encode(TopologyAnswer("n", found))


async def test_a_client_that_is_given_addresses_of_two_clusters_is_told_so() -> None:
    nodes = Nodes(a=made(1, 7), b=made(30, 8), c=made(30, 8))
    for find in (lambda: find_cluster(nodes, "abc", 5.0), lambda: find_topology(nodes, "abc")):
        with pytest.raises(WrongCluster, match="two clusters with one cluster_id"):
            await find()


async def test_who_does_not_answer_keeps_nobody_waiting_and_the_newest_counts() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert (await find_cluster(Nodes(a=made(3, 8), b=None, c=made(5, 8), d=Topology()), "abcd", 50.0)).version == 5
    assert loop.time() - began < 1.0  # and not the second in which b is waited for


async def test_a_newer_topology_of_another_cluster_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(a=made(99, 7), b=made(31, 8))
    told: list[int] = []
    known = AskedTopology(nodes, "ab", made(30, 8), told.append)
    monkeypatch.setattr(known, "in_turn", lambda: ["a", "b"])
    assert (await known.refresh(31, 5.0)).founding == 8 and known.topology().version == 31
    assert told == [8]


async def test_the_founding_is_told_once_the_cluster_is_made() -> None:
    nodes, told = Nodes(a=Topology()), list[int]()
    known = AskedTopology(nodes, "a", Topology(), told.append)
    nodes.answers["a"] = made(1, 8)
    await known.refresh(1, 5.0)
    assert told == [8]
