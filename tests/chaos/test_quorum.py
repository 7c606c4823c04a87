"""Whether a quorum is left is told from what the faults of a round do together."""

import random
from pathlib import Path

import pytest

from needle.connecting import cluster_client
from needle.local.process_cluster import ProcessCluster
from needle.routing.topology import Topology
from needle.rpc.transport import RpcClient
from needle.system import SystemClock
from proof.chaos.injector import Injector, Injured, has_quorum
from proof.chaos.schedule import Fault


async def heal() -> None: ...


def cut(a: str, b: str) -> Injured:
    return Injured(set(), heal, "", [(a, b), (b, a)])


def without(*names: str) -> Injured:
    return Injured(set(names), heal)


@pytest.mark.parametrize(
    ("names", "hurt", "left"),
    [
        ("abc", [without("a")], True),
        ("abc", [without("a"), without("b")], False),
        ("abc", [without("a"), without("a")], True),
        ("abc", [cut("a", "b")], True),
        ("abc", [without("c"), cut("a", "b")], False),
        ("abc", [without("c"), Injured(set(), heal, "", [("a", "b")])], False),
        ("abc", [without("a"), cut("a", "b")], True),
        ("abcde", [without("e"), cut("a", "b")], True),
        ("abcde", [without("d", "e"), cut("a", "b")], True),
        ("abcde", [without("d", "e"), cut("a", "b"), cut("b", "c"), cut("a", "c")], False),
        ("abcde", [without("c", "d", "e")], False),
    ],
)
def test_has_quorum(names: str, hurt: list[Injured], left: bool) -> None:
    assert has_quorum(names, hurt) is left


@pytest.mark.parametrize(("amount", "left"), [(0.95, False), (0.2, True)])
async def test_a_link_that_is_too_slow_for_an_election_is_as_good_as_cut(tmp_path: Path, amount: float, left: bool):
    cluster = ProcessCluster(tmp_path, nodes=3, linked=True)  # never started
    caller = RpcClient(cluster_id="needle", rng=random.Random(1), clock=SystemClock())
    operator = cluster_client(caller, list(cluster.addresses.values()), Topology())
    injector = Injector(cluster, {}, operator, random.Random(1), 0.5)
    slow = await injector.begin(Fault(0, "slow-link", "any", 1.0, amount), "node-2")
    assert has_quorum(cluster.nodes, [slow])
    assert has_quorum(cluster.nodes, [slow, without("node-3")]) is left
    await slow.heal()
    assert all(proxy.delay == 0 for proxy in cluster.links.values())
    await caller.close()
