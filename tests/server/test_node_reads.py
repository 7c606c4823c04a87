"""Gets, counts, groups, words and eventual searches of several shards of one node: one call, and the answers and errors
of each shard alone."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from client.fake_shards import virtually
from client.test_freed_errors import Refusing
from harness.scripted_network import client_of
from needle.base.access import READER, Identity
from needle.base.errors import (
    ConnectionLost,
    DeadlineExceeded,
    DiskFull,
    Forbidden,
    InvalidArgument,
    NeedleError,
    NotLeader,
    Overloaded,
    TooStale,
    UnknownMethod,
)
from needle.base.ids import shard_group
from needle.base.model import CollectionSpec, ReadMode, SearchRequest
from needle.base.parts import Payload
from needle.client import Client
from needle.client.router.by_node import NodeCalls, Together
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports
from needle.protocol import calls
from needle.protocol.bounds import bound_call
from needle.protocol.calls import CountAnswer, CountCall, FacetCall, Freshness, GetCall, SearchCall
from needle.protocol.commands import Bound
from needle.protocol.node_calls import (
    READ_SHARDS,
    SEARCH_SHARDS,
    AskedShard,
    ReadShard,
    ReadShardsAnswer,
    ReadShardsCall,
    Refused,
    asked_of_each,
)
from needle.routing.shard_map import initial_map
from needle.routing.strategy import CONSISTENT_HASH
from needle.routing.topology import CollectionInfo, Ownership, Topology
from needle.server.service import node_reads, served
from needle.server.service.documents import ShardDocuments
from needle.server.service.methods import documents_of, judge_call
from needle.server.service.node_searches import NodeSearches
from needle.shard.joined_calls import JoinedCalls
from server.test_node_searches import DOCUMENTS, NODES, SHARDS, Call, between, client, each_alone, shown

__all__ = ["client"]
IDS = [f"d{n}" for n in range(0, 40, 3)] + ["none", "d1", "d1"]
Ask = Callable[[Client], Coroutine[Any, Any, Any]]


async def facet(client: Client) -> Any:
    found = await client.facet("n", {"word": "odd"}, limit=3)
    return found.documents, found.without, found.distinct, [(one.value, one.count) for one in found.values]


async def got(client: Client, **how: Any) -> Any:
    return [
        (one.id, one.version, one.metadata, None if one.vector is None else one.vector.tolist())
        for one in await client.get_many(IDS, **how)
    ]


async def grouped(client: Client, **how: Any) -> Any:
    return shown(await client.search([1.0, 0.5, -1.0, 2.0], 3, group_by="n", group_size=2, **how))


READS: dict[str, tuple[Ask, str]] = {
    "get": (got, READ_SHARDS),
    "leased get": (lambda one: got(one, mode="leased", with_vectors=False, fields=["n"]), READ_SHARDS),
    "eventual get": (lambda one: got(one, mode="eventual", session=True), READ_SHARDS),
    "count": (lambda one: one.count({"word": "odd"}), READ_SHARDS),
    "leased count": (lambda one: one.count({"n": {"$gte": 2}}, mode="leased"), READ_SHARDS),
    "eventual count": (lambda one: one.count(mode="eventual"), READ_SHARDS),
    "facet": (facet, READ_SHARDS),
    "groups": (grouped, READ_SHARDS),
    "eventual groups": (lambda one: grouped(one, mode="eventual"), READ_SHARDS),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("read", READS)
async def test_answers_are_those_of_each_shard_alone(client: Client, read: str) -> None:
    ask, method = READS[read]
    with watched(client) as together:
        found = await ask(client)
    with each_alone(), watched(client) as alone:
        assert found == await ask(client)
    rounds = len(together) // NODES  # a search by groups may ask again, for groups by their names
    assert found and rounds in (1, 1 + ("groups" in read)) and together == [method] * (NODES * rounds)
    assert len(alone) == SHARDS * rounds and method not in alone


def watched(client: Client, change: Any = None) -> Any:
    """As `between`, of all reads of documents."""
    return between(client, change, (calls.SEARCH, calls.GET, calls.COUNT, calls.FACET, SEARCH_SHARDS, READ_SHARDS))


@pytest.mark.asyncio(loop_scope="module")
async def test_an_eventual_search_asks_each_node_once(client: Client) -> None:
    for more in ({}, {"session": True}, {"filter": {"word": "odd"}, "with_vectors": True}):
        with watched(client) as together:
            hits = await client.search([1.0] * 4, 10, mode="eventual", **more)
        with each_alone():
            assert shown(hits) == shown(await client.search([1.0] * 4, 10, mode="eventual", **more))
        assert together == [SEARCH_SHARDS] * NODES
    with watched(client) as asked:  # each replica asks its leader: one that is late would hold up the others
        await client.search([1.0] * 4, 10, mode="eventual", max_staleness=60.0)
    assert asked == [calls.SEARCH] * SHARDS


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("mode", ["strong", "leased", "eventual"])
async def test_several_vectors_of_each_mode(client: Client, mode: str) -> None:
    for count in (3, 40):  # more go a few at a time
        vectors = np.random.default_rng(count).normal(size=(count, 4)).astype(np.float32)
        found = await client.search_many(vectors, 7, {"word": "even"}, mode=mode)
        with each_alone():
            expected = await client.search_many(vectors, 7, {"word": "even"}, mode=mode)
        assert list(map(shown, found)) == list(map(shown, expected))


@pytest.mark.asyncio(loop_scope="module")
async def test_many_ids_are_asked_of_each_shard_by_itself(client: Client) -> None:
    with watched(client) as asked:
        found = await client.get_many([f"d{n}" for n in range(DOCUMENTS)])
    assert len(found) == DOCUMENTS and asked == [calls.GET] * SHARDS
    with watched(client) as asked:
        assert await client.get("d7") is not None and await client.get_many([]) == []
    assert asked == [calls.GET]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("error", [NotLeader("not here", leader=None), Overloaded("full")], ids=lambda one: one.code)
@pytest.mark.parametrize("read", ["get", "eventual get", "count", "groups"])
async def test_a_shard_that_is_refused_is_asked_alone(client: Client, error: NeedleError, read: str) -> None:
    ask, _ = READS[read]
    expected, refused = await ask(client), 0

    async def change(send: Call, address: str, method: str, body: bytes) -> Any:
        nonlocal refused
        answer = await send()
        if method != READ_SHARDS or refused:
            return answer
        refused = 1
        told = calls.decode(answer, ReadShardsAnswer)
        return calls.encode((told.epoch, [ReadShard(refused=Refused.of(error)), *told.shards[1:]]))

    with watched(client, change) as asked:
        assert await ask(client) == expected
    assert asked.count(READ_SHARDS) % NODES == 0 and len(asked) == asked.count(READ_SHARDS) + 1


@pytest.mark.asyncio(loop_scope="module")
async def test_what_one_answer_has_no_room_for_is_asked_alone(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = await got(client)
    monkeypatch.setattr(node_reads, "MANY_BYTES_MAX", 10)
    with watched(client) as asked:
        assert await got(client) == expected
    assert asked.count(READ_SHARDS) == NODES and asked.count(calls.GET) == SHARDS - NODES  # of each node one had room


@pytest.mark.asyncio(loop_scope="module")
async def test_many_rows_of_few_bytes_travel_together(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such an answer of a shard is in pieces, though all of them together are small."""
    monkeypatch.setattr(served, "LARGE_ROWS", 1)
    for ask, rounds in ((facet, 1), (got, 1), (grouped, 2)):
        with watched(client) as asked:
            assert await ask(client)
        assert asked == [READ_SHARDS] * (NODES * rounds)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_disk_without_room_keeps_no_shard_from_being_read(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was applied cannot be committed for the read before the reserve gives room."""
    real, failed = ShardDocuments.read, set[int]()

    async def read(documents: ShardDocuments, run: Any, call: Any) -> Any:
        if call.group not in failed:
            failed.add(call.group)
            raise DiskFull("no room")
        return await real(documents, run, call)

    async def none(*_: Any) -> tuple[dict[Any, Any], list[Any]]:
        return {}, []

    monkeypatch.setattr(ShardDocuments, "read", read)
    monkeypatch.setattr(NodeSearches, "_early", none)
    reads: list[tuple[str, Ask]] = [
        (READ_SHARDS, lambda one: one.count()),
        (SEARCH_SHARDS, lambda one: one.search([1.0] * 4, 3)),
    ]
    for method, ask in reads:
        failed.clear()
        with watched(client) as asked:
            assert await ask(client)
        assert asked == [method] * NODES and len(failed) == SHARDS


@pytest.mark.asyncio(loop_scope="module")
async def test_an_answer_for_other_ranges_is_not_used(client: Client) -> None:
    expected, lies = await got(client), 2

    async def change(send: Call, address: str, method: str, body: bytes) -> Any:
        nonlocal lies
        if method != READ_SHARDS or not lies:
            return await send()
        lies -= 1  # before it waits: several are asked at a time
        ranges = bool(lies)
        told = calls.decode(await send(), ReadShardsAnswer)
        other = [ReadShard(one.fingerprint ^ 1, one.body) for one in told.shards] if ranges else told.shards
        return calls.encode((told.epoch - (not ranges), other))

    with watched(client, change) as asked:
        assert await got(client) == expected
    assert len(asked) > NODES and not lies


@pytest.mark.asyncio(loop_scope="module")
async def test_a_get_of_many_ids_goes_together_with_no_short_one(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold up those behind it in its thread."""
    joined, run = [0], JoinedCalls.run

    def counted(self: JoinedCalls, fn: Callable[[], Any]) -> Any:
        joined[0] += 1
        return run(self, fn)

    monkeypatch.setattr(JoinedCalls, "run", counted)
    assert len(await client.get_many(["d1"])) == 1
    assert joined == [1]
    await client.get_many([f"none{n}" for n in range(300 * SHARDS)])
    assert joined == [1]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_wrong_with_a_read_is_said_by_name(client: Client) -> None:
    for mode in ("strong", "eventual"):
        with pytest.raises(InvalidArgument, match="takes 4 float32 values"):
            await client.search([1.0] * 3, 10, mode=mode)
        with pytest.raises(InvalidArgument, match="takes 4 float32 values"):
            await client.search([1.0] * 3, 10, group_by="n", mode=mode)
    topology = client.topology()
    assert topology.map is not None
    name, epoch = topology.collections[0].stored_name, topology.map.epoch
    address, fresh = next(iter(client.nodes().values())), Freshness(timeout=5.0)
    get, count = GetCall(0, name, [], False, fresh), CountCall(0, name, b"", fresh)

    async def ask(groups: list[int], at: int, **more: Any) -> Any:
        call = ReadShardsCall([AskedShard(one) for one in groups], fresh, at, **more)
        return await client._caller.call(address, READ_SHARDS, calls.encode(call), 5)

    for groups, at, more, field in (
        ([1, 1], epoch, {"count": count}, "shards"),
        ([1], 0, {"count": count}, "epoch"),
        ([1], epoch, {}, "body"),
        ([1], epoch, {"count": count, "get": get}, "body"),
        ([1], epoch, {"get": get}, "ids"),
        ([1], epoch, {"count": count, "ids": [["a"]]}, "ids"),
        ([], epoch, {"count": count}, "body"),
    ):
        with pytest.raises(InvalidArgument) as wrong:
            await ask(groups, at, **more)
        assert wrong.value.details["field"] == field
    told = calls.decode(await ask([900, 1, 2, 3], epoch, count=count), ReadShardsAnswer)
    assert told.shards[0].refused is not None and any(one.refused is None for one in told.shards)


@pytest.mark.asyncio
async def test_words_are_counted_and_found_by_node(tmp_path: Path) -> None:
    cluster = DistributedCluster(ClusterConfig(shard_count=4, replication_factor=1, dimensions=2))
    try:
        (port,) = free_ports(1)
        await cluster.add_local_node("n", f"127.0.0.1:{port}", str(tmp_path))
        await cluster.start()
        client = await cluster.client()
        await client.create_collection("books", dimensions=2, text="body", if_absent=True)
        for n in range(20):
            await client.insert(f"b{n}", [1.0, n], {"body": "fox and goose" if n % 3 else "goose"}, collection="books")
        with watched(client) as asked:
            hits = await client.search(None, 5, keywords="fox", collection="books")
        with each_alone():
            assert shown(hits) == shown(await client.search(None, 5, keywords="fox", collection="books"))
        assert len(hits) == 5 and asked == [READ_SHARDS] * 2
    finally:
        await cluster.stop()


# --- who may ask -----------------------------------------------------------------------------------------------------
def reads(collection: str) -> list[ReadShardsCall]:
    fresh, shards = Freshness(), [AskedShard(1), AskedShard(2)]
    request = SearchRequest(collection=collection, vector=b"", k=3, group_by="n", group_size=2)
    return [
        ReadShardsCall(shards, fresh, 4, get=GetCall(0, collection, [], False, fresh), ids=[["a"], ["b", "c"]]),
        ReadShardsCall(shards, fresh, 4, count=CountCall(0, collection, b"", fresh)),
        ReadShardsCall(shards, fresh, 4, facet=FacetCall(0, collection, "n", b"", 0, fresh)),
        ReadShardsCall(shards, fresh, 4, search=SearchCall(0, request, fresh)),
    ]


def test_a_key_reaches_its_collections_and_documents_only() -> None:
    known = Topology(
        version=3,
        collections=tuple(
            CollectionInfo(id=n, spec=CollectionSpec(name=name, dimensions=2)) for n, name in ((4, "a"), (5, "b"))
        ),
    )
    some, bound = Identity("t", READER, frozenset({"a"})), Bound(b'{"tenant":"a"}', 4)
    for call in reads("a@4"):
        assert judge_call(some, READ_SHARDS, call, known) == call
        _, asked = asked_of_each(bound_call(READ_SHARDS, call, bound))
        assert (asked.request.bound if isinstance(asked, SearchCall) else asked.bound) == bound.filter
    for call in reads("b@5"):
        with pytest.raises(Forbidden, match="for a only"):
            judge_call(some, READ_SHARDS, call, known)
    with pytest.raises(InvalidArgument):
        judge_call(some, READ_SHARDS, ReadShardsCall([AskedShard(1)], Freshness(), 4), known)


def test_a_key_pays_for_the_documents_of_each_shard() -> None:
    assert [documents_of(READ_SHARDS, call, None) for call in reads("a@4")] == [3, 0, 0, 3 * 2 * 2]


# --- whom an eventual read asks --------------------------------------------------------------------------------------
class Group:
    """One shard's replicas. says: by address what it answers, an error or never."""

    def __init__(self, shard: int, replicas: list[str], asked: list[str], says: dict[str, Any]) -> None:
        self.shard, self._replicas, self._asked, self._says = shard, replicas, asked, says
        self.suspected: list[str] = []
        self.turns = 0

    def holders(self) -> list[str]:
        return self._replicas

    def replicas(self) -> list[str]:
        self.turns += 1
        return self._replicas

    def leads_at(self) -> str | None:
        return None

    def suspect(self, address: str) -> None:
        self.suspected.append(address)

    async def ask_replica(self, address: str, method: str, body: bytes, timeout: float) -> Payload:
        self._asked.append(address)
        said = self._says.get(address)
        if isinstance(said, NeedleError):
            raise said
        if said == "never":
            await asyncio.sleep(timeout)
            raise ConnectionLost("too late")
        call = calls.decode(body, ReadShardsCall)
        found = Ownership(initial_map(CONSISTENT_HASH, 4))
        answers = [
            (found.fingerprint(one.group - 1), calls.encode(CountAnswer(one.group, 9)), None) for one in call.shards
        ]
        return calls.encode((call.epoch, answers))


def chosen(nodes: NodeCalls, replicas: dict[int, list[str]]) -> list[tuple[list[str], list[int]]]:
    groups: Any = {shard: Group(shard, at, [], {}) for shard, at in replicas.items()}
    found = nodes.together(READ_SHARDS, list(replicas), groups.__getitem__, Freshness(ReadMode.EVENTUAL))
    return [(one.at, one.shards) for one in found]


def whom(replicas: dict[int, list[str]]) -> list[tuple[list[str], list[int]]]:
    return chosen(NodeCalls(), replicas)


def test_an_eventual_read_asks_a_node_for_the_shards_that_another_one_holds_too() -> None:
    assert whom({s: ["b", "c", "a"] for s in range(4)}) == [(["b", "c", "a"], [0, 1, 2, 3])]
    assert whom({0: ["a"], 1: ["b"], 2: ["a"]}) == [(["a"], [0, 2])]  # nobody else has them anyway
    assert whom({0: ["a", "b", "c"], 1: ["c", "d", "a"], 2: ["d", "e", "f"], 3: ["e", "d", "a"]}) == [
        (["a", "c"], [0, 1]),
        (["d", "e"], [2, 3]),
    ]
    assert whom({0: ["a", "b"], 1: ["a", "c"]}) == []  # whoever is late must not be the only one
    assert whom({0: [], 1: [], 2: ["a"]}) == []


def test_a_shard_that_is_asked_alone_keeps_its_turn() -> None:
    """To look whom to ask would be a turn of its own: of two replicas the same one would be asked each time."""
    held = {0: ["a", "b"], 1: ["a", "c"], 2: ["c", "d"], 3: ["c", "d"]}
    groups: Any = {shard: Group(shard, at, [], {}) for shard, at in held.items()}
    found = NodeCalls().together(READ_SHARDS, list(groups), groups.__getitem__, Freshness(ReadMode.EVENTUAL))
    assert [(one.at, one.shards) for one in found] == [(["c", "d"], [2, 3])]
    assert [group.turns for group in groups.values()] == [0, 0, 1, 0]


def test_whom_to_ask_for_thousands_of_shards_is_found_at_once() -> None:
    rng = random.Random(4)
    held = {shard: [f"n{node}" for node in rng.sample(range(60), 3)] for shard in range(4096)}
    began = time.process_time()
    found = whom(held)
    assert time.process_time() - began < 0.5  # two seconds if each shard is compared with each other one
    assert all(len(at) >= 2 and all({*at} <= {*held[shard]} for shard in shards) for at, shards in found)
    together = [shard for _, shards in found for shard in shards]
    assert len({*together}) == len(together) > 4000


def counted(groups: dict[int, Group], nodes: NodeCalls, timeout: float = 5.0) -> Coroutine[Any, Any, Any]:
    def make(shards: list[AskedShard], fresh: Freshness, epoch: int) -> ReadShardsCall:
        return ReadShardsCall(shards, fresh, epoch, count=CountCall(0, "c", b"", fresh))

    owned, fresh = Ownership(initial_map(CONSISTENT_HASH, 4)), Freshness(ReadMode.EVENTUAL)
    every: Any = list(groups.values())
    at = next(iter(groups.values())).replicas()
    return nodes.ask(every, at, owned, dict.fromkeys(groups, fresh), Together(READ_SHARDS, make), timeout, None)


def test_a_node_that_is_late_or_fails_is_passed_over() -> None:
    for said in ("never", ConnectionLost("gone"), UnknownMethod("no such call")):

        async def work(said: Any = said) -> None:
            asked, says, nodes = list[str](), {"a": said}, NodeCalls()
            groups = {shard: Group(shard, ["a", "b"], asked, says) for shard in (0, 2)}
            loop = asyncio.get_running_loop()
            start = loop.time()
            told = await counted(groups, nodes)
            assert asked == ["a", "b"] and not told.refused and told.part is None
            assert {shard: calls.decode(body, CountAnswer).count for shard, body in told.bodies.items()} == {0: 1, 2: 3}
            assert loop.time() - start < 1.0
            lost = isinstance(said, ConnectionLost)
            assert [group.suspected for group in groups.values()] == [["a"] if lost else []] * 2
            former = [(READ_SHARDS, "a")] if isinstance(said, UnknownMethod) else []
            assert list(nodes._former) == former
            if former:  # and is not asked for a minute, nor is the other one alone: if it is late, nobody else could be
                assert chosen(nodes, {0: ["a", "b"], 2: ["a", "b"]}) == []
                assert chosen(nodes, {0: ["a", "b", "c"], 2: ["c", "a", "b"]}) == [(["b", "c"], [0, 2])]
                assert chosen(nodes, {0: ["b"], 2: ["b"], 3: ["a"], 4: ["a"]}) == [(["b"], [0, 2])]

        virtually(work())


@pytest.mark.parametrize("mode", [ReadMode.STRONG, ReadMode.EVENTUAL])
def test_what_no_node_answered_in_time_is_told_with_the_time_that_the_caller_gave(mode: ReadMode) -> None:
    """It was "within 0 s": all of it was gone when each shard was to be asked alone."""

    class Silent(Refusing):
        async def call(self, address: str, method: str, body: object, timeout: float) -> bytes:
            if method in (READ_SHARDS, calls.COUNT):
                self.asked.append(method)
                await asyncio.sleep(timeout)
                raise DeadlineExceeded(f"{address} did not answer")
            return await super().call(address, method, body, timeout)

    async def work() -> None:
        network: Any = Silent(lambda: Overloaded("full"), shards=4)
        client = client_of(network, network.topology)
        for shard in range(4):
            await client._shards.group(shard).find_leader(1.0)
        with pytest.raises(DeadlineExceeded, match=r"shard \d.* within 7 s"):
            await client.count(mode=mode, timeout=7.0)
        assert READ_SHARDS in network.asked

    virtually(work())


def test_what_all_nodes_say_is_why_each_shard_is_asked_alone() -> None:
    async def work() -> None:
        for said, why in ((Overloaded("full"), "overloaded"), (InvalidArgument("no", field="x"), None)):
            groups = {shard: Group(shard, ["a", "b"], [], {"a": said, "b": said}) for shard in (0, 1)}
            told = await counted(groups, NodeCalls())
            assert not told.bodies and {shard: one and one.code for shard, one in told.refused.items()} == {
                0: why,
                1: why,
            }

    virtually(work())


# --- on the node -----------------------------------------------------------------------------------------------------
def test_an_eventual_read_of_several_shards_waits_for_no_log() -> None:
    owned = SimpleNamespace(claim=lambda shard: SimpleNamespace(since=5 if shard == 2 else 0))
    gathered = set[int]()
    host = SimpleNamespace(applied_index=lambda group: 4, applies_at_once=lambda group, index: index in gathered)
    node: Any = SimpleNamespace(node_id="n", ownership=owned, host=host)
    for mode, shard, wanted, stale in (
        (ReadMode.EVENTUAL, 0, 4, False),
        (ReadMode.EVENTUAL, 0, 5, True),
        (ReadMode.EVENTUAL, 2, 0, True),  # it must not answer for what was moved to it and it does not have yet
        (ReadMode.LEASED, 0, 9, False),  # the leader will have it soon, and nobody else could answer
    ):
        ask = lambda: node_reads.check_applied(node, shard_group(shard), Freshness(mode, wanted))  # noqa: E731, B023
        if stale:
            with pytest.raises(TooStale, match="has applied index 4"):
                ask()
            gathered.add(wanted or 5)
            ask()  # what it needs is committed there, and applied as soon as somebody waits for it
            gathered.clear()
        else:
            ask()


async def test_what_runs_together_is_answered_each_by_itself() -> None:
    ran: list[int] = []

    class Pool:
        def call(self, done: Any, fn: Any, /, *args: object, quick: bool = False) -> None:
            ran.append(len(args[0]) if args else 1)  # type: ignore[arg-type]
            done(fn(*args), None)

    def fails() -> int:
        raise Overloaded("full")

    joined = JoinedCalls(Pool(), lambda: 0.0, lambda: False)
    joined._takes = 0.0
    first, second, third = joined.run(lambda: 1), joined.run(fails), joined.run(lambda: 3)
    third.cancel()
    assert await first == 1 and ran == [3]
    with pytest.raises(Overloaded):
        await second
    assert third.cancelled()


def test_a_call_travels_as_it_is() -> None:
    for call in reads("a@4"):
        assert calls.decode(calls.encode(call), ReadShardsCall) == call
        method, asked = asked_of_each(call)
        assert getattr(call, method) is asked
    answer = ReadShardsAnswer(3, [ReadShard(7, memoryview(b"x")), ReadShard(refused=Refused("overloaded", "full", {}))])
    told = calls.decode(msgspec.msgpack.encode(answer), ReadShardsAnswer)
    assert [bytes(one.body or b"") for one in told.shards] == [b"x", b""] and told.shards[1].refused is not None
