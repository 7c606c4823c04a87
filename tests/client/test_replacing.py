"""A node in the place of another one: what is refused before anything is decided, and what the catalog makes of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import node, topology
from needle.base.errors import ClusterTooOld, InvalidArgument, NeedleError, RebalanceEnded, Unavailable
from needle.base.ids import CATALOG_GROUP, shard_group
from needle.base.model import WriteResult
from needle.catalog.planning.planner import plan
from needle.catalog.state import execute
from needle.client.client import Client
from needle.protocol import calls
from needle.protocol.catalog_commands import (
    EMPTIES,
    AskRebalance,
    AssignReplicas,
    CatalogCommand,
    ConfirmReplicas,
    RegisterNode,
    StartRebalance,
    StepRebalance,
    WeighNode,
)
from needle.protocol.rebalance_calls import PLAN, PlanCall
from needle.routing.jobs import JobState, RebalanceConfig
from needle.routing.plans import Replacement, Wish
from needle.routing.stats import ClusterStats, NodeStats, ShardStats
from needle.routing.topology import NodeState, Topology


def at_version(now: Topology, version: int = EMPTIES) -> Topology:
    nodes = tuple(msgspec.structs.replace(info, knows=version) for info in now.nodes)
    return msgspec.structs.replace(now, nodes=nodes, cluster_version=version)


class Catalog:
    """The catalog and its leader, as a client's methods meet them. silent: nodes that do not answer. free: bytes of
    each disk."""

    def __init__(self, now: Topology) -> None:
        self.now, self.silent, self.free = now, set[str](), 1 << 40
        self.done: list[CatalogCommand] = []

    def client(self) -> Any:
        made: Any = object.__new__(Client)
        group = SimpleNamespace(ask_leader=self.ask_leader)
        made._shards = SimpleNamespace(confirmed=self.confirmed, command=self.command, group=lambda _: group)
        return made

    async def confirmed(self, timeout: float) -> Topology:
        return self.now

    async def command(self, command: CatalogCommand, timeout: float) -> WriteResult:
        self.tell(command)
        self.done.append(command)
        return WriteResult(version=self.now.version, index=self.now.version)

    def tell(self, command: CatalogCommand) -> None:
        before = self.now
        self.now, result = execute(before, before.version + 1, command)
        if isinstance(result, NeedleError):
            raise result

    async def ask_leader(self, method: str, body: Any, timeout: float) -> bytes:
        assert method == PLAN
        wish = calls.decode(body(timeout), PlanCall).wish
        nodes = tuple(
            NodeStats(node=info.id, alive=info.id not in self.silent, free=self.free) for info in self.now.nodes
        )
        shards = tuple(ShardStats(shard=info.shard, documents=10, bytes=1000) for info in self.now.serving)
        return calls.encode(plan(self.now, ClusterStats(nodes=nodes, shards=shards), wish))

    def settle(self, job_done: bool = True) -> None:
        """What the cluster does with the job that is under way: each step that its coordinator would take."""
        job = self.now.rebalance
        assert job is not None and job.wish.replace is not None
        made = msgspec.structs.replace(job, state=JobState.RUNNING)
        for group in (CATALOG_GROUP, *(shard_group(info.shard) for info in self.now.serving)):
            held = self.now.holders(group)
            assert held is not None
            if job.wish.replace.old in held.wanted:
                after = [job.wish.replace.new if one == job.wish.replace.old else one for one in held.wanted]
                self.tell(AssignReplicas(group, list(held.wanted), after))
                self.tell(ConfirmReplicas(group, self.now.version))
                made = msgspec.structs.replace(made, moves=made.moves + 1)
        if job_done:
            self.tell(StepRebalance(msgspec.structs.replace(made, state=JobState.DONE), job.revision))


def state(now: Topology, name: str) -> NodeState:
    known = now.node(name)
    assert known is not None
    return known.state


async def test_from_one_entry_on_the_old_node_gets_nothing_new_and_at_the_end_it_is_removed() -> None:
    """Whoever asked for it may have died after the first entry."""
    catalog = Catalog(at_version(topology(shards=2, factor=3, nodes=4)))
    client = catalog.client()
    old = catalog.now.shards[0].wanted[0]
    new = "node-9"
    catalog.tell(RegisterNode(node(9, knows=EMPTIES)))
    moves = await client.plan_replacement(old, new)
    assert [move.group for move in moves if move.group != CATALOG_GROUP] == [
        shard_group(info.shard) for info in catalog.now.hosted_by(old)
    ]
    assert (CATALOG_GROUP in [move.group for move in moves]) == (old in catalog.now.catalog)
    assert all(move.why == f"{new} replaces {old}" and move.added == (new,) for move in moves)
    id_ = await client.start_replacement(old, new)
    (only,) = catalog.done
    assert isinstance(only, StartRebalance) and only.needs() == EMPTIES
    assert state(catalog.now, old) is NodeState.DRAINING
    with pytest.raises(InvalidArgument, match="is about to begin"):  # another rebalance would move replicas back
        await client.start_rebalance()
    assert await client.start_replacement(old, new) == id_ and await client.plan_replacement(old, new) == []
    with pytest.raises(InvalidArgument, match="still holds"):
        catalog.tell(StepRebalance(msgspec.structs.replace(catalog.now.rebalance, state=JobState.DONE), 0))
    catalog.settle()
    assert state(catalog.now, old) is NodeState.REMOVED
    assert catalog.now.rebalance is not None and catalog.now.rebalance.state is JobState.DONE
    assert await client.start_replacement(old, new) is None  # it may be repeated
    await client.replace_node(old, new, timeout=1)


async def test_of_a_node_that_healing_has_emptied_nobody_is_said_to_have_taken_anything_over() -> None:
    catalog = Catalog(at_version(topology(shards=1, factor=3, nodes=5)))
    client = catalog.client()
    client._shards.topology = lambda: catalog.now
    catalog.tell(WeighNode("node-1", 3.0))
    for group in (CATALOG_GROUP, shard_group(0)):
        held = catalog.now.holders(group)
        assert held is not None and "node-1" in held.wanted
        catalog.tell(AssignReplicas(group, list(held.wanted), ["node-5" if n == "node-1" else n for n in held.wanted]))
        catalog.tell(ConfirmReplicas(group, catalog.now.version))
    assert await client.plan_replacement("node-1", "node-4") == []

    async def replaced(old: str, new: str) -> str:
        told = list[str]()

        def tell(text: str) -> None:
            told.append(text)
            if len(told) == 1:
                catalog.settle()

        await client.replace_node(old, new, told=tell, timeout=10)
        assert state(catalog.now, old) is NodeState.REMOVED
        return told[-1]

    told = await replaced("node-1", "node-4")
    assert "in the place of" not in told and "`needle node add node-4`" in told
    assert told.endswith("; node-1 was given weight 3, node-4 has 1 (`needle node weight`)")
    assert await replaced("node-2", "node-4") == "node-4 is in the place of node-2"
    catalog.tell(RegisterNode(node(9, knows=EMPTIES)))  # somebody new and empty, for one that holds something itself
    told = await replaced("node-9", "node-4")
    assert told == "node-9 held nothing any more, so node-4 took nothing over from it"


async def test_who_waits_is_told_when_somebody_cancels_it() -> None:
    catalog = Catalog(at_version(topology(shards=1, factor=3, nodes=4)))
    client = catalog.client()
    id_ = await client.start_replacement("node-1", "node-4")
    catalog.tell(AskRebalance(id_, "cancel"))
    with pytest.raises(RebalanceEnded, match=r"is cancelled.*drain --undo node-1") as raised:
        await _waits(client, id_)
    assert not raised.value.retryable and raised.value.details == {"id": id_, "state": "cancelled"}
    assert state(catalog.now, "node-1") is NodeState.DRAINING
    await client.undrain_node("node-1")
    assert state(catalog.now, "node-1") is NodeState.ACTIVE


async def _waits(client: Any, id_: int) -> None:
    while not await client._is_replaced(id_, "node-1", 1.0):
        pass


async def test_what_cannot_be_changes_nothing() -> None:
    catalog = Catalog(at_version(topology(shards=1, factor=3, nodes=5)))
    client = catalog.client()
    before = catalog.now
    held = catalog.now.shards[0].wanted
    for old, new, said in (
        ("node-9", "node-4", "old = 'node-9'"),
        ("node-1", "node-9", "new = 'node-9'"),
        ("node-1", "node-1", "new = 'node-1'"),
        (held[0], held[1], "holds .* already"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            await client.start_replacement(old, new)
    catalog.silent = {"node-4"}
    with pytest.raises(Unavailable, match="node-4, which is to replace node-1, does not answer"):
        await client.start_replacement("node-1", "node-4")
    catalog.silent, catalog.free = set(), 999
    with pytest.raises(Unavailable, match="node-4 has no room for 1000 bytes more"):
        await client.start_replacement("node-1", "node-4")
    assert catalog.now is before and not catalog.done
    catalog.free = 1 << 40
    catalog.tell(WeighNode("node-4", 0.0))  # the next rebalance would take everything away from it
    with pytest.raises(InvalidArgument, match="node-4 has weight 0, so it takes no replicas"):
        await client.start_replacement("node-1", "node-4")
    assert not catalog.done


async def test_a_cluster_with_nodes_of_a_release_before_says_so() -> None:
    catalog = Catalog(at_version(topology(shards=1, factor=3, nodes=4), EMPTIES - 1))
    with pytest.raises(ClusterTooOld):
        await catalog.client().start_replacement("node-1", "node-4")
    assert not catalog.done


async def test_of_two_who_want_different_nodes_in_the_place_of_one_the_second_is_told() -> None:
    catalog = Catalog(at_version(topology(shards=1, factor=3, nodes=5)))
    client = catalog.client()
    await client.start_replacement("node-1", "node-4")
    with pytest.raises(InvalidArgument, match="is about to begin"):
        await client.start_replacement("node-1", "node-5")
    held = catalog.now.holders(CATALOG_GROUP)
    assert held is not None
    after = ["node-4" if one == "node-1" else one for one in held.wanted]
    catalog.tell(AssignReplicas(CATALOG_GROUP, list(held.wanted), after))
    with pytest.raises(InvalidArgument, match=r"the catalog is on its way from node-1 to .*node-4.* already"):
        await client.start_replacement("node-1", "node-5")
    catalog.tell(ConfirmReplicas(CATALOG_GROUP, catalog.now.version))
    catalog.settle()
    assert await client.plan_replacement("node-1", "node-4") == []
    with pytest.raises(InvalidArgument, match="node-1 was removed from this cluster before, and not for node-5"):
        await client.start_replacement("node-1", "node-5")


async def test_a_weight_or_zone_that_begins_a_rebalance_is_changed_with_it_or_not_at_all() -> None:
    catalog = Catalog(at_version(topology(shards=2, factor=3, nodes=4)))
    client = catalog.client()
    catalog.tell(StartRebalance(Wish(), RebalanceConfig()))
    before = catalog.now
    for ask in (client.rebalance_by_weight("node-1", 3), client.rebalance_by_zone("node-1", "rack-9")):
        with pytest.raises(InvalidArgument, match="is about to begin"):
            await ask
    stale = StartRebalance(Wish(), RebalanceConfig(), first=WeighNode("node-1", 3.0))  # it has not seen the other one
    with pytest.raises(InvalidArgument, match="is about to begin"):
        catalog.tell(stale)
    assert catalog.now is before and not catalog.done
    assert before.rebalance is not None
    catalog.tell(AskRebalance(before.rebalance.id, "cancel"))
    await client.rebalance_by_weight("node-1", 3)
    known = catalog.now.node("node-1")
    assert known is not None and (known.weight, known.weighed) == (3.0, True) and len(catalog.done) == 1
    assert catalog.now.rebalance is not None and not catalog.now.rebalance.over
    assert catalog.now.rebalance.wish == Wish(weights={"node-1": 3.0})  # what it is about
    catalog.tell(AskRebalance(catalog.now.rebalance.id, "cancel"))
    with pytest.raises(InvalidArgument, match="printable"):
        await client.rebalance_by_zone("node-1", "a\nb")
    await client.rebalance_by_zone("node-1", "rack-9")
    known = catalog.now.node("node-1")
    assert known is not None and (known.zone, known.zoned) == ("rack-9", True) and len(catalog.done) == 2
    catalog.tell(AskRebalance(catalog.now.rebalance.id, "cancel"))
    for wrong in (1001, True, -1, float("nan"), 10**400):
        with pytest.raises(InvalidArgument, match="weight"):
            await client.rebalance_by_weight("node-1", wrong)


async def test_of_its_own_weight_or_zone_a_rebalance_is_about_what_the_node_says_that_is() -> None:
    """Else it fails where another node of weight 0 cannot be emptied. Who is silent says nothing."""
    catalog = Catalog(at_version(topology(shards=2, factor=3, nodes=4)))
    client, said = catalog.client(), [SimpleNamespace(weight=2.0, zone="rack-2")]

    async def node_at(address: str) -> str:
        return "node-1"

    async def describe(address: str, timeout: float) -> SimpleNamespace:
        if not said:
            raise Unavailable("node-1 does not answer")
        return said[0]

    client._shards.node_at, client._shards.describe = node_at, describe
    client._shards.topology = lambda: catalog.now
    for ask, wish in (
        (client.rebalance_by_weight, Wish(weights={"node-1": 2.0})),
        (client.rebalance_by_zone, Wish(zones={"node-1": "rack-2"})),
    ):
        await ask("node-1", None)
        assert catalog.now.rebalance is not None and catalog.now.rebalance.wish == wish
        catalog.tell(AskRebalance(catalog.now.rebalance.id, "cancel"))
    said.clear()
    await client.rebalance_by_zone("node-1", None)
    assert catalog.now.rebalance is not None and catalog.now.rebalance.wish == Wish()


def test_a_wish_to_replace_stands_alone() -> None:
    wish = Wish(replace=Replacement(old="node-1", new="node-4"), drain=("node-2",))
    with pytest.raises(InvalidArgument, match="one of them alone"):
        wish.check()
