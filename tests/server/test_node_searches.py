"""Searches of several shards of one node: one call, the answers of each shard alone, and the errors of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio

from needle.base.errors import (
    InvalidArgument,
    NeedleError,
    NotLeader,
    Overloaded,
    ProtocolError,
    StaleEpoch,
    UnknownMethod,
)
from needle.base.ids import shard_group
from needle.base.model import HitBatch, SearchRequest
from needle.client import Client
from needle.client.router.by_node import FORMER_SECONDS, NodeCalls, NodePart
from needle.client.router.merge import hits_of, merge_hits, nearest
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports
from needle.protocol import calls
from needle.protocol.calls import Freshness
from needle.protocol.node_calls import (
    READ_SHARDS,
    SEARCH_SHARDS,
    AskedShard,
    NodeHits,
    Refused,
    SearchedShard,
    SearchShardsAnswer,
    SearchShardsCall,
)
from needle.server.service import node_searches

SHARDS, NODES, DOCUMENTS = 6, 2, 120
Call = Callable[..., Awaitable[Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(module_path: Path) -> AsyncIterator[Client]:
    cluster = DistributedCluster(ClusterConfig(shard_count=SHARDS, replication_factor=1, dimensions=4))
    try:
        for n, port in enumerate(free_ports(NODES)):
            await cluster.add_local_node(f"node-{n}", f"127.0.0.1:{port}", str(module_path / f"node-{n}"))
        await cluster.start()
        found = await cluster.client()
        rows = np.random.default_rng(3).integers(-2, 3, size=(DOCUMENTS, 4)).astype(np.float32)  # many are equal
        rows[(rows == 0).all(axis=1)] = 1
        about = [{"n": n % 5, "word": "odd" if n % 2 else "even"} for n in range(DOCUMENTS)]
        await found.insert_batch(ids=[f"d{n}" for n in range(DOCUMENTS)], vectors=rows, metadatas=about)
        await found.search([1.0] * 4, 3)  # by now it knows who leads
        yield found
    finally:
        await cluster.stop()


@contextmanager
def between(
    client: Client,
    change: Callable[[Call, str, str, bytes], Awaitable[Any]] | None = None,
    methods: Sequence[str] = (calls.SEARCH, calls.SEARCH_MANY, SEARCH_SHARDS, READ_SHARDS),
) -> Iterator[list[str]]:
    """What of these methods a client asks for, searches unless said otherwise; change: what answers in place of the
    network."""
    caller: Any = client._caller
    real, asked = caller.call, list[str]()

    async def call(address: str, method: str, body: Any, timeout: float, **more: Any) -> Any:
        if method in methods:
            asked.append(method)

        async def send(as_body: Any = body) -> Any:
            return await real(address, method, as_body, timeout, **more)

        return await (send() if change is None else change(send, address, method, body))

    caller.call = call
    try:
        yield asked
    finally:
        del caller.call


@contextmanager
def each_alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NodeCalls, "together", lambda *_: [])
        yield


OPTIONS: list[dict[str, Any]] = [
    {},
    {"k": 200},
    {"k": 3, "filter": {"word": "odd"}},
    {"filter": {"n": 99}},
    {"mode": "leased", "with_vectors": True},
    {"min_score": 0.5},
    {"max_distance": 0.3, "with_metadata": False},
    {"offset": 4},
    {"fields": ["n"]},
    {"order_by": "n", "descending": True},
    {"diversify": 0.5},
    {"group_by": "n"},
    {"exact": True, "with_vectors": True, "offset": 2},
]


def shown(hits: Any) -> list[Any]:
    return [
        (hit.id, hit.distance, hit.version, hit.metadata, None if hit.vector is None else hit.vector.tolist())
        for hit in hits
    ]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
async def test_answers_are_those_of_each_shard_alone(client: Client, options: dict[str, Any]) -> None:
    asked = {"k": 10, **options}
    with between(client) as together:
        hits = await client.search([1.0, 0.5, -1.0, 2.0], **asked)
    with each_alone(), between(client) as alone:
        expected = await client.search([1.0, 0.5, -1.0, 2.0], **asked)
    assert shown(hits) == shown(expected) and alone == [calls.SEARCH] * SHARDS
    assert together == [READ_SHARDS if "group_by" in options else SEARCH_SHARDS] * NODES


@pytest.mark.asyncio(loop_scope="module")
async def test_many_vectors_and_what_is_like_a_document(client: Client) -> None:
    vectors = np.random.default_rng(4).normal(size=(40, 4)).astype(np.float32)
    with between(client) as asked:
        found = await client.search_many(vectors, 7, {"word": "even"})
    assert asked == [SEARCH_SHARDS] * NODES
    like = await client.search(like="d7", k=5)
    with each_alone():
        assert [shown(hits) for hits in found] == [
            shown(hits) for hits in await client.search_many(vectors, 7, {"word": "even"})
        ]
        assert shown(like) == shown(await client.search(like="d7", k=5))


@pytest.mark.asyncio(loop_scope="module")
async def test_each_shard_explains_itself(client: Client) -> None:
    hits = await client.search([1.0] * 4, 5, explain=True)
    assert sorted(one.shard for one in hits.explained) == list(range(SHARDS))
    assert sum(one.documents for one in hits.explained) == DOCUMENTS
    assert {one.node for one in hits.explained} == {f"node-{n}" for n in range(NODES)}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "error",
    [NotLeader("not here", leader=None), Overloaded("full"), StaleEpoch("a map of before", version=0, epoch=0)],
    ids=lambda error: error.code,
)
async def test_a_shard_that_is_refused_is_asked_alone(client: Client, error: NeedleError) -> None:
    expected = shown(await client.search([1.0] * 4, 10))
    refused = 0

    async def change(send: Call, address: str, method: str, body: bytes) -> Any:
        nonlocal refused
        answer = await send()
        if method != SEARCH_SHARDS or refused:
            return answer
        refused = 1
        told = calls.decode(answer, SearchShardsAnswer)
        hits = calls.decode(told.body, NodeHits)
        [batch], [places] = hits.batches, hits.places
        rows = [row for row, place in enumerate(places) if place]
        kept = msgspec.structs.replace(
            batch,
            ids=[batch.ids[row] for row in rows],
            distances=[batch.distances[row] for row in rows],
            versions=[batch.versions[row] for row in rows],
            metadata=[batch.metadata[row] for row in rows],
        )
        left = calls.encode(NodeHits([kept], [[places[row] for row in rows]]))
        shards = [SearchedShard(refused=Refused.of(error)), *told.shards[1:]]
        return calls.encode((told.epoch, shards, left))

    with between(client, change) as asked:
        assert shown(await client.search([1.0] * 4, 10)) == expected
    alone = asked.count(calls.SEARCH)
    if isinstance(error, StaleEpoch):  # by another map all shards have to be asked
        assert asked.count(SEARCH_SHARDS) == 2 * NODES and not alone
    else:
        assert asked.count(SEARCH_SHARDS) == NODES and alone == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_an_answer_for_other_ranges_is_not_used(client: Client) -> None:
    expected, lies = shown(await client.search([1.0] * 4, 10)), 2

    async def change(send: Call, address: str, method: str, body: bytes) -> Any:
        nonlocal lies
        told = calls.decode(await send(), SearchShardsAnswer) if method == SEARCH_SHARDS else None
        if told is None or not lies:
            return await send() if told is None else calls.encode((told.epoch, told.shards, bytes(told.body)))
        lies -= 1
        other = [SearchedShard(one.fingerprint ^ 1, one.applied_index) for one in told.shards] if lies else told.shards
        return calls.encode((told.epoch - (not lies), other, bytes(told.body)))

    with between(client, change) as asked:
        assert shown(await client.search([1.0] * 4, 10)) == expected
    assert len(asked) > NODES and not lies


@pytest.mark.asyncio(loop_scope="module")
async def test_a_node_of_a_former_release_is_asked_for_each_shard(client: Client) -> None:
    expected = shown(await client.search([1.0] * 4, 10))
    former = next(iter(client.nodes().values()))

    async def change(send: Call, address: str, method: str, body: bytes) -> Any:
        if method == SEARCH_SHARDS and address == former:
            raise UnknownMethod("this node has no such call")
        return await send()

    router: Any = client.documents
    assert not router._routes.fan_out._nodes._former
    with between(client, change) as asked:
        assert shown(await client.search([1.0] * 4, 10)) == expected
        assert asked.count(SEARCH_SHARDS) == NODES and calls.SEARCH in asked
        asked.clear()
        assert shown(await client.search([1.0] * 4, 10)) == expected
        assert asked.count(SEARCH_SHARDS) == NODES - 1 and calls.SEARCH in asked
    until = router._routes.fan_out._nodes._former[SEARCH_SHARDS, former]
    assert 0 < until - asyncio.get_running_loop().time() <= FORMER_SECONDS
    router._routes.fan_out._nodes._former[SEARCH_SHARDS, former] = 0.0  # the minute is over
    with between(client) as asked:
        assert shown(await client.search([1.0] * 4, 10)) == expected
    assert asked == [SEARCH_SHARDS] * NODES


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_wrong_with_a_search_is_said_once_by_name(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="takes 4 float32 values"):
        await client.search([1.0] * 3, 10)
    topology = client.topology()
    assert topology.map is not None
    request = SearchRequest(collection=topology.collections[0].stored_name, vector=np.ones(4, "<f4").tobytes(), k=1)
    address = next(iter(client.nodes().values()))

    async def ask(groups: list[int], epoch: int, **changes: Any) -> Any:
        asked = [AskedShard(group) for group in groups]
        call = SearchShardsCall(asked, msgspec.structs.replace(request, **changes), Freshness(timeout=5.0), epoch)
        return await client._caller.call(address, SEARCH_SHARDS, calls.encode(call), 5)

    epoch = topology.map.epoch
    for groups, at, changes, field in (
        ([1, 1], epoch, {}, "shards"),
        ([1], 0, {}, "epoch"),
        ([1], epoch, {"group_by": "n"}, "group_by"),
        ([], epoch, {}, "body"),
    ):
        with pytest.raises(InvalidArgument) as wrong:
            await ask(groups, at, **changes)
        assert wrong.value.details["field"] == field
    told = calls.decode(await ask([900, shard_group(0), shard_group(1), shard_group(2)], epoch), SearchShardsAnswer)
    assert told.shards[0].refused is not None and any(one.refused is None for one in told.shards)


def test_hits_count_only_for_shards_that_were_searched() -> None:
    batch = HitBatch(["a", "b"], [0.1, 0.2], [1, 1], [], b"", 5)
    part = NodePart([4, 7], {4: 5}, calls.encode(NodeHits([batch], [[0, 0]])))
    assert hits_of(part, 1) == [(batch, [4, 4])]
    for places in ([[0, 1]], [[0, 2]], [[0, -1]], [[0]], [], [[0, 0], [0, 0]]):
        bad = NodePart([4, 7], {4: 5}, calls.encode(NodeHits([batch], places)))
        with pytest.raises(ProtocolError):
            hits_of(bad, 1)


def test_it_does_not_matter_which_shards_were_merged_before() -> None:
    rng = np.random.default_rng(5)
    batches = []
    for _ in range(5):
        rows = sorted((float(d), f"d{n}") for d, n in zip(rng.integers(0, 3, 6), rng.integers(0, 9, 6), strict=True))
        batches.append(HitBatch([n for _, n in rows], [d for d, _ in rows], [*range(6)], [], b"", 1))
    for k in (1, 4, 30):
        whole = merge_hits(batches, k)
        firsts, others = [batches[at] for at in (0, 3)], [batches[at] for at in (1, 2, 4)]
        parts, owners = [], []
        for some, shards in ((firsts, [0, 3]), (others, [1, 2, 4])):
            chosen = nearest(some, k, shards)
            parts.append(merge_hits(some, k, shards))
            owners.append([shards[which] for which, _ in chosen])
        again = merge_hits(parts, k, owners)
        assert (again.ids, again.distances, again.versions) == (whole.ids, whole.distances, whole.versions)


@pytest.mark.parametrize(
    ("change", "request_change", "field"),
    [
        ({"count": 10**9}, {}, "count"),
        ({"count": -1}, {}, "count"),
        ({}, {"k": -(10**10)}, "k"),
        ({}, {"keywords": "fox"}, "keywords"),
    ],
)
def test_what_no_shard_could_answer_is_refused_before_anything_is_done(
    change: dict[str, Any], request_change: dict[str, Any], field: str
) -> None:
    """The node merges as many answers as `count` says, and a key pays for k."""
    request = msgspec.structs.replace(SearchRequest(collection="c", vector=b"", k=3), **request_change)
    call = SearchShardsCall([AskedShard(1)], request, Freshness(), 7)
    with pytest.raises(InvalidArgument) as raised:
        node_searches._check(msgspec.structs.replace(call, **change))
    assert raised.value.details["field"] == field
