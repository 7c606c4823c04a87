"""A cluster that its settings describe, step by step: who begins it, and who makes it."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from needle.base.config import RaftConfig, ShardingConfig
from needle.base.errors import ConnectionLost, Unavailable
from needle.base.ids import CATALOG_GROUP
from needle.base.model import WriteResult
from needle.catalog.state import execute
from needle.multiraft.failpoints import no_failpoint
from needle.protocol import calls, catalog_commands
from needle.protocol.peer_calls import FoundCall, WhoAnswer
from needle.routing.strategy import RANGE
from needle.routing.topology import Topology
from needle.server.catalog.belonging import Belonging
from needle.server.catalog.settings_founding import PATIENCE_SECONDS, SettingsFounding, cluster_uid, seeds_of
from needle.server.cluster_files import ClusterFile

NAMES = ("n1", "n2", "n3")
CONFIG = RaftConfig(
    node_id="n1",
    cluster_nodes=[f"{name}={name}:1" for name in NAMES],
    data_dir="unused",
    dimensions=4,
    sharding=ShardingConfig(shards=2),
)
UID = cluster_uid(CONFIG)


def who(name: str, uid: int = 0, version: int = 0, founds: int = UID) -> WhoAnswer:
    return WhoAnswer(name, f"{name}:1", ord(name[1]), "rack", 1.0, uid, version, founds=founds)


class FakeNode:
    """n1. others: what the other nodes answer; those that are not there do not. It stops once it has waited `rounds`
    times, a second each."""

    def __init__(self, *others: WhoAnswer, uid: int = 0, leads: bool = False, rounds: int = 3) -> None:
        self.node_id, self.config, self.topology = "n1", CONFIG, Topology()
        self.cluster = ClusterFile(incarnation=1, uid=uid)
        self.others = {answer.node_id: answer for answer in others}
        self.catalog: Any = SimpleNamespace(topology=Topology()) if uid else None
        self.host: Any = self
        self.peers: Any = self
        self.ports: Any = SimpleNamespace(rng=random.Random(1), failpoint=no_failpoint)
        self.stopped = False
        self.others_later: dict[float, WhoAnswer | None] = {}
        """When n3 begins to answer, and ends."""
        self.begun: list[FoundCall] = []
        self.created: list[tuple[float, Topology]] = []
        self.loses_lead = False
        """After its first command."""
        self.refused_once = False
        self._leads, self._rounds, self._now = leads, rounds, 0.0

    def is_leader(self, group: int) -> bool:
        assert group == CATALOG_GROUP
        return self._leads

    async def read_index(self, group: int, timeout: float) -> int:
        return 1

    async def call(self, node: str, method: str, body: bytes, timeout: float) -> bytes:
        if node not in self.others:
            raise ConnectionLost(f"{node} is away")
        return calls.encode(self.others[node])

    def who(self) -> WhoAnswer:
        return who("n1", self.cluster.uid)

    def now(self) -> float:
        return self._now

    async def found(self, call: FoundCall) -> None:
        self.begun.append(call)
        self.cluster = ClusterFile(incarnation=1, uid=call.uid, voters=call.voters)
        self.catalog = SimpleNamespace(topology=Topology())

    async def execute(self, command: bytes, timeout: float) -> WriteResult:
        before = self.topology
        made, result = execute(before, before.version + 1, catalog_commands.decode(command))
        assert isinstance(result, WriteResult), result
        if before.settings is None:
            self.created.append((self._now, made))
        self.topology = made
        self._leads = self._leads and not self.loses_lead
        return result

    async def wait_topology(self, version: int, timeout: float) -> bool:
        self._now, self._rounds = self._now + 1.0, self._rounds - 1
        if self._now in self.others_later:
            answer = self.others_later[self._now]
            self.others = {**self.others, "n3": answer} if answer is not None else {"n2": self.others["n2"]}
        self.stopped = self._rounds <= 0
        return False


def ran(node: FakeNode) -> FakeNode:
    asyncio.run(SettingsFounding(node).run())
    return node


@pytest.mark.parametrize(
    ("others", "begins"),
    [
        ((who("n2"), who("n3")), True),
        ((who("n2"),), True),
        ((), False),
        ((who("n2", UID),), True),
        ((who("n2", UID, version=7), who("n3", UID, version=7)), False),
        ((who("n2"), who("n3", UID, version=7)), False),
        ((who("n2"), who("n3", 99)), False),
        ((who("n2"), who("n3", founds=99)), False),
        ((who("n2"), who("n3", founds=0)), False),
    ],
    ids=[
        "all are new",
        "a majority",
        "no majority",
        "one has begun",
        "it is there",
        "one knows it",
        "another cluster",
        "another list",
        "no list",
    ],
)
def test_who_begins(others: tuple[WhoAnswer, ...], begins: bool) -> None:
    node = ran(FakeNode(*others))
    assert node.begun == ([FoundCall(UID, CONFIG.founders)] if begins else [])
    assert node.created == []


@pytest.mark.parametrize("uid", [0, UID])
def test_nothing_is_founded_where_a_node_of_another_cluster_speaks_to_one(uid: int) -> None:
    spoken_to = msgspec.structs.replace(who("n2", uid), strangers=["n1", "n9"])
    node = ran(FakeNode(spoken_to, who("n3", uid), uid=uid, leads=bool(uid)))
    assert node.begun == [] and node.created == []
    told = msgspec.structs.replace(spoken_to, strangers=["n1", "n3"])  # they are founded with it
    node = ran(FakeNode(told, who("n3", uid), uid=uid, leads=bool(uid)))
    assert node.begun if uid == 0 else node.created


def test_until_its_cluster_is_made_a_node_remembers_who_else_speaks_to_it() -> None:
    node: Any = SimpleNamespace(topology=Topology(), cluster=ClusterFile(incarnation=1))
    belonging = Belonging(node, SimpleNamespace())  # type: ignore[arg-type]
    belonging.heard_from("n2")
    assert belonging.strange() == ["n2"]
    node.cluster = ClusterFile(incarnation=1, uid=UID, voters=CONFIG.founders)
    belonging.heard_from("n9")  # it has begun its catalog, and leads it before long
    belonging.heard_from("n3")
    assert belonging.strange() == ["n9"]
    node.cluster = ClusterFile(incarnation=1, uid=UID)  # it has joined: these are the nodes of its cluster
    assert belonging.strange() == []


def test_the_leader_makes_a_cluster_of_all_that_answer() -> None:
    ((at, made),) = ran(FakeNode(who("n2", UID), who("n3", UID), uid=UID, leads=True)).created
    assert at == 0.0
    assert {node.id: node.incarnation for node in made.nodes} == {name: ord(name[1]) for name in NAMES}
    assert made.catalog == NAMES and [set(info.replicas) for info in made.shards] == [set(NAMES)] * 2
    assert [info.spec.name for info in made.collections] == ["default"]


def of_more(count: int, replicas: int, silent: int = 0, zones: str = "") -> FakeNode:
    """n1 of so many, of which the last few are silent."""
    names = [f"n{n}" for n in range(1, count + 1)]
    config = msgspec.structs.replace(
        CONFIG,
        cluster_nodes=[f"{name}={name}:1" for name in names],
        sharding=ShardingConfig(shards=2, replicas=replicas),
    )
    uid = cluster_uid(config)
    others = [who(name, uid, founds=uid) for name in names[1 : count - silent]]
    for at, one in enumerate(others):
        if zones[at + 1 : at + 2] == "-":
            others[at] = msgspec.structs.replace(one, zone="other rack")
    node = FakeNode(*others, uid=uid, leads=True, rounds=9)
    node.config = config
    return node


@pytest.mark.parametrize(
    ("count", "replicas", "silent", "zones", "catalog"),
    [
        (4, 3, 0, "", ("n1", "n2", "n3")),
        (4, 4, 0, "", ("n1", "n2", "n3")),
        (5, 3, 0, "", ("n1", "n2", "n3")),
        (5, 5, 0, "", ("n1", "n2", "n3", "n4", "n5")),
        (6, 3, 0, "rrrr-r", ("n1", "n2", "n5")),
        (7, 5, 0, "", ("n1", "n2", "n3", "n4", "n5")),
        (5, 3, 2, "", ("n1", "n2", "n3")),
        (2, 2, 0, "", ("n1", "n2")),
    ],
)
def test_so_many_of_the_founders_hold_the_catalog_as_the_cluster_needs(
    count: int, replicas: int, silent: int, zones: str, catalog: tuple[str, ...]
) -> None:
    node = of_more(count, replicas, silent, zones)
    made = ran(node).topology
    held = made.holders(CATALOG_GROUP)
    assert held is not None and tuple(sorted(held.wanted)) == catalog
    assert set(held.all) == set(node.config.founders)  # the others vote until the rest are a group of their own


def test_who_leads_next_brings_the_catalog_to_its_nodes_if_the_first_leader_did_not() -> None:
    first = of_more(4, 3)
    first.loses_lead = True
    made = ran(first).topology
    assert len(made.catalog) == 4 and not made.catalog_leaving
    following = of_more(4, 3)  # it was there when the cluster was founded, and leads after that
    following._leads, adopted = False, following.wait_topology

    async def wait_topology(version: int, timeout: float) -> bool:
        following.topology, following._leads = made, True
        following.wait_topology = adopted  # type: ignore[method-assign]
        return True

    following.wait_topology = wait_topology  # type: ignore[method-assign]
    assert ran(following).topology.catalog_leaving == ("n4",)
    later = of_more(4, 3)  # one that starts when the cluster is there leaves its catalog to plans
    later.topology = made
    assert ran(later).topology is made


def test_a_refusal_of_that_is_no_end_of_it() -> None:
    node = of_more(4, 3)
    executed = node.execute

    async def execute_once(command: bytes, timeout: float) -> WriteResult:
        if node.created and not node.refused_once:
            node.refused_once = True
            raise Unavailable("no majority answers")
        return await executed(command, timeout)

    node.execute = execute_once  # type: ignore[method-assign]
    assert ran(node).topology.catalog_leaving == ("n4",) and node.refused_once


def test_the_cluster_is_sharded_as_its_settings_say() -> None:
    sharding = ShardingConfig(shards=3, replicas=1, strategy="range", boundaries=["g", "p"])
    node = FakeNode(who("n2", UID), who("n3", UID), uid=UID, leads=True)
    node.config = msgspec.structs.replace(CONFIG, sharding=sharding)
    ((_, made),) = ran(node).created
    assert made.map is not None and made.map.strategy == RANGE and made.map.starts == (b"", b"g", b"p")
    assert [len(info.replicas) for info in made.shards] == [1, 1, 1]


def test_no_cluster_is_made_while_a_node_does_not_know_its_router(caplog: pytest.LogCaptureFixture) -> None:
    node = FakeNode(who("n2", UID), who("n3", UID), uid=UID, leads=True)
    node.config = msgspec.structs.replace(CONFIG, sharding=ShardingConfig(strategy="router:mine"))
    assert ran(node).created == []
    assert "n1, n2, n3 do not know the router 'mine'" in caplog.text


def test_a_silent_node_is_waited_for_and_then_is_one_that_may_come_later() -> None:
    node = ran(FakeNode(who("n2", UID), uid=UID, leads=True, rounds=9))
    ((at, made),) = node.created
    assert at == pytest.approx(PATIENCE_SECONDS)
    late = made.node("n3")
    assert late is not None and late.incarnation == 0


@pytest.mark.parametrize("leads", [False, True])
def test_who_does_not_lead_or_finds_it_founded_makes_nothing(leads: bool) -> None:
    node = FakeNode(who("n2", UID), who("n3", UID), uid=UID, leads=leads)
    if leads:
        node.catalog.topology = execute(
            Topology(), 1, catalog_commands.decode(_command(FakeNode(who("n2", UID), uid=UID, leads=True, rounds=9)))
        )[0]
    assert ran(node).created == []


def _command(node: FakeNode) -> bytes:
    kept: list[bytes] = []
    executed = node.execute

    async def keep(command: bytes, timeout: float) -> WriteResult:
        kept.append(command)
        return await executed(command, timeout)

    node.execute = keep  # type: ignore[method-assign]
    ran(node)
    return kept[0]


def test_no_cluster_is_made_with_a_node_of_another_one() -> None:
    assert ran(FakeNode(who("n2", UID), who("n3", 99), uid=UID, leads=True, rounds=9)).created == []


def test_emptied_nodes_found_no_second_cluster_once_one_has_told_of_the_first(caplog: pytest.LogCaptureFixture) -> None:
    """Two of three directories were lost, and the third node comes while the two found the cluster."""
    node = FakeNode(who("n2", UID), uid=UID, leads=True, rounds=9)
    node.others_later = {2.0: who("n3", UID, version=7), 3.0: None}
    assert ran(node).created == []
    assert "n3 has the cluster's catalog, and the catalog of n1, n2 is new" in caplog.text


def test_where_a_node_asks_for_its_cluster() -> None:
    config = RaftConfig(
        node_id="n1", cluster_nodes=[f"{name}={name}:1" for name in NAMES], data_dir="unused", reach=["n3=tunnel:9"]
    )
    assert seeds_of(config, lambda _: None, founded=False) == ["n2:1", "tunnel:9"]
    known = {"n2": "n2:1", "n3": "tunnel:9"}
    assert seeds_of(config, {"n2": "where it is now:1"}.get, founded=False)[2:] == ["where it is now:1"]
    assert seeds_of(config, known.get, founded=True) == []
    assert seeds_of(config, {**known, "n2": "where it was:1"}.get, founded=True) == ["n2:1"]
    joins = RaftConfig(node_id="n4", listen="n4:1", data_dir="unused", sharding=ShardingConfig(join=["n1:1"]))
    assert seeds_of(joins, known.get, founded=True) == ["n1:1"]
