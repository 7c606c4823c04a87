"""A client that rests asks now and then whether there is news of the cluster: whom, how often, and until when. On
virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections.abc import Iterator

import pytest

from harness.scripted_network import ADDRESSES, Network, one_shard
from needle.client.following import FOLLOW_SECONDS, NEAR
from needle.client.known_topology import PAUSE_SECONDS, AskedTopology
from needle.protocol import calls
from needle.protocol.peer_calls import TOPOLOGY, TopologyCall
from proof.sim.event_loop import SimLoop

SEEDS = {"h:4": "n4", "h:5": "n5"}


class Many(Network):
    """Five nodes, two of which the topology does not name; to those at `near` there are connections."""

    def __init__(self) -> None:
        super().__init__()
        self.is_at |= SEEDS
        self.near: set[str] = set()

    def connected(self, address: str) -> bool:
        return address in self.near

    def asked(self) -> list[str]:
        found = [address for address, method in self.calls if method == TOPOLOGY]
        self.calls.clear()
        return found


@pytest.fixture
def loop() -> Iterator[SimLoop]:
    made = SimLoop(random.Random(1))
    yield made
    made.close()


def following(loop: SimLoop, network: Network) -> AskedTopology:
    known = AskedTopology(network, [*ADDRESSES.values(), *SEEDS], one_shard())

    async def begin() -> None:
        known.follow(random.Random(2))

    loop.run_until_complete(begin())
    return known


def rest(loop: SimLoop, seconds: float) -> None:
    loop.run_until_complete(asyncio.sleep(seconds))


def test_it_hears_of_another_topology_and_asks_no_more_once_it_is_closed(loop: SimLoop) -> None:
    network = Many()
    known = following(loop, network)
    network.now = one_shard(2, n1="h:4")
    rest(loop, 1.5 * FOLLOW_SECONDS)
    assert known.topology().version == 2
    network.asked()
    rest(loop, 100 * FOLLOW_SECONDS)
    assert 80 <= len(network.asked()) <= 120
    known.close()
    rest(loop, 100 * FOLLOW_SECONDS)
    assert network.asked() == []


def test_where_none_of_the_known_nodes_is_left_the_given_addresses_are_asked(loop: SimLoop) -> None:
    network = Many()
    known = following(loop, network)
    network.down, network.now = {"n1", "n2", "n3"}, one_shard(2)
    rest(loop, 1.5 * FOLLOW_SECONDS)
    assert known.topology().version == 2


def test_all_are_asked_in_turn_until_there_are_connections_to_a_few(loop: SimLoop) -> None:
    network = Many()
    known = following(loop, network)
    network.near = set(list(network.is_at)[: NEAR - 1])
    rest(loop, 20 * FOLLOW_SECONDS)
    assert set(network.asked()) == set(network.is_at)
    network.near = set(list(network.is_at)[:NEAR])
    rest(loop, 20 * FOLLOW_SECONDS)
    assert set(network.asked()) == network.near  # each of them, and no other one
    network.down = {network.is_at[address] for address in network.near}
    network.now = one_shard(2)
    rest(loop, 2 * FOLLOW_SECONDS)
    assert known.topology().version == 2


def test_a_client_that_was_forgotten_without_being_closed_asks_no_more(loop: SimLoop) -> None:
    network = Many()
    known = following(loop, network)
    rest(loop, 2 * FOLLOW_SECONDS)
    assert network.asked()
    del known
    gc.collect()
    rest(loop, 20 * FOLLOW_SECONDS)
    assert network.asked() == []


class Hears(Many):
    """Its nodes hear of another topology after a while, and answer then to who waits for one, or at once."""

    def __init__(self, loop: SimLoop, after: float, *, waits: bool) -> None:
        super().__init__()
        loop.call_later(after, self.hear)
        self.news, self.answers_late = asyncio.Event(), waits

    def hear(self) -> None:
        self.now = one_shard(2)
        self.news.set()

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        asked = calls.decode(body, TopologyCall)
        if self.answers_late and self.now.version <= asked.version:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(asked.wait):
                    await self.news.wait()
        return await super().call(address, method, body, timeout)


@pytest.mark.parametrize("waits", [True, False])
def test_a_node_that_is_asked_for_a_map_too_early_answers_as_soon_as_it_has_it(loop: SimLoop, waits: bool) -> None:
    network = Hears(loop, 1.505, waits=waits)
    known = AskedTopology(network, ADDRESSES.values(), one_shard())
    began = loop.time()
    assert loop.run_until_complete(known.refresh(2, 10.0)).version == 2
    late = loop.time() - began - 1.505
    assert late < 0.001 if waits else late <= PAUSE_SECONDS
    assert len(network.asked()) <= 1.505 / PAUSE_SECONDS + 2  # and not over and over
