"""A search that begins without a task: it is answered only by what the long way would have answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.access import NODE, Identity
from needle.base.errors import CollectionNotFound, NeedleError, NotLeader, Overloaded, Unavailable
from needle.base.explain import ShardExplanation
from needle.base.model import HitBatch, ReadMode, SearchRequest
from needle.base.parts import LARGE_BYTES, Pieces
from needle.base.request import Request, current
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports
from needle.protocol import calls
from needle.protocol.calls import Freshness, SearchCall
from needle.protocol.peer_calls import ReceivedAnswer
from needle.routing.shard_map import initial_map
from needle.routing.strategy import CONSISTENT_HASH
from needle.routing.topology import Ownership, Topology
from needle.server.service.early import EarlySearch, EarlySearches
from needle.server.service.reads import Reads
from needle.server.service.watched import Watch

REQUEST = SearchRequest(collection="books", vector=b"", k=4)
THE_LONG_WAY = b"the long way"


class Node:
    """Node, host, batcher and documents in one."""

    def __init__(self, slow: float = 0.0) -> None:
        self.node_id, self.host = "n1", self
        self.topology = Topology()
        self.ownership: Ownership | None = Ownership(initial_map(CONSISTENT_HASH, 1))
        self.rounds: list[asyncio.Future[int]] = []
        self.searches: list[asyncio.Future[HitBatch]] = []
        self.asked: list[SearchRequest] = []
        self.full: NeedleError | None = None
        self.forgotten: list[object] = []
        self.maintenance = self.lacking = False
        self.resting = True
        self.lease: int | None = 7
        self.lost: NeedleError | None = None
        self.fails: NeedleError | None = None
        self.observed: list[tuple[str, str]] = []
        self.saw: list[SearchRequest] = []
        self.long_ways, self.time = 0, 0.0
        self.left: list[float] = []
        self.long_way_ends = asyncio.Event()
        self.long_way_ends.set()
        batcher = SimpleNamespace(begin=self.begin, forget=self.forget)
        rates = SimpleNamespace(searched=lambda now, count=1: None)
        hosted = SimpleNamespace(batcher=batcher, calls=rates, recall=SimpleNamespace(saw=self.saw.append))
        self.groups: dict[int, Any] = {1: hosted}
        self.engine = SimpleNamespace(groups={1: SimpleNamespace(raft=SimpleNamespace(term=3))})
        self.watch = Watch(self, slow, None)  # type: ignore[arg-type]
        self.bulk = SimpleNamespace(called=lambda work: None)
        self.reads = Reads(self)  # type: ignore[arg-type]
        self.early = EarlySearches(self, self, self.reads, self.long_way)  # type: ignore[arg-type]

    async def long_way(self, call: SearchCall) -> bytes:
        self.long_ways += 1
        self.left.append(call.freshness.timeout)
        await self.long_way_ends.wait()
        if self.fails is not None:
            raise self.fails
        return THE_LONG_WAY

    def begin(self, request: SearchRequest, timeout: float) -> asyncio.Future[HitBatch]:
        if self.full is not None:
            raise self.full
        self.asked.append(request)
        self.searches.append(asyncio.get_running_loop().create_future())
        return self.searches[-1]

    def forget(self, collection: str, answer: asyncio.Future[HitBatch]) -> None:
        answer.cancel()
        self.forgotten.append(answer)

    def begin_read(self, group: int, timeout: float) -> asyncio.Future[int]:
        self.rounds.append(asyncio.get_running_loop().create_future())
        return self.rounds[-1]

    def is_at_rest(self, group: int) -> bool:
        return self.resting

    def applied_index(self, group: int) -> int:
        return 7

    def leased_index(self, group: int) -> int | None:
        return self.lease

    def check_serves(self, group: int) -> None:
        if self.lost is not None:
            raise self.lost

    def lacks(self, group: int) -> bool:
        return self.lacking

    def address_of(self, node: str) -> str | None:
        return f"at-{node}"

    async def blocking(self, fn: Any, *arguments: object) -> Any:
        return fn(*arguments)

    def observe(self, what: str, seconds: float, error: NeedleError | None) -> None:
        self.observed.append((what, "" if error is None else error.code))

    def now(self) -> float:
        return self.time

    def search(self, request: SearchRequest = REQUEST, **fresh: Any) -> EarlySearch | None:
        """A call by the node's map of before."""
        call = SearchCall(1, request, Freshness(**fresh), initial_map(CONSISTENT_HASH, 1).epoch)
        found: Any = self.early.begin(call, "somebody")
        return found

    def begun(self, **fresh: Any) -> EarlySearch:
        found = self.search(**fresh)
        assert found is not None
        return found


def hits(applied: int = 7, metadata: bytes = b"") -> HitBatch:
    return HitBatch(["a"], [0.5], [1], [metadata], b"", applied)


async def applied_of(node: Node, answer: EarlySearch) -> int:
    """Of an answer that names the map's epoch and ranges."""
    told = calls.decode(b"".join([await answer]), ReceivedAnswer)
    owned = Ownership(initial_map(CONSISTENT_HASH, 1))
    assert (told.epoch, told.fingerprint) == (owned.epoch, owned.fingerprint(0))
    assert node.reads.reading == 0
    return calls.decode(told.body, HitBatch).applied_index


@pytest.mark.parametrize("mode", [ReadMode.LEASED, ReadMode.EVENTUAL])
async def test_what_needs_no_round_is_answered_as_soon_as_it_is_searched(mode: ReadMode) -> None:
    node = Node()
    answer = node.begun(mode=mode)
    assert node.reads.reading == 1 and not answer.done()
    assert node.asked[0].claim == Ownership(initial_map(CONSISTENT_HASH, 1)).claim(0)
    node.searches[0].set_result(hits())
    assert await applied_of(node, answer) == 7
    assert node.observed == [("shard_search", "")] and node.saw == node.asked and not node.long_ways


async def test_a_strong_answer_waits_for_its_round() -> None:
    node = Node()
    answer = node.begun()
    node.searches[0].set_result(hits())
    for _ in range(3):
        await asyncio.sleep(0)
    assert not answer.done()
    node.rounds[0].set_result(7)
    assert await applied_of(node, answer) == 7


async def test_a_round_that_is_confirmed_before_the_search_has_ended_counts() -> None:
    node = Node()
    answer = node.begun()
    node.rounds[0].set_result(7)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not answer.done()
    node.searches[0].set_result(hits(8))
    assert await applied_of(node, answer) == 8


async def test_what_was_seen_too_early_goes_the_long_way() -> None:
    node = Node()
    answer = node.begun()
    node.searches[0].set_result(hits(7))
    node.rounds[0].set_result(8)
    assert await answer == THE_LONG_WAY and not node.observed


async def test_the_long_way_has_the_time_that_is_left() -> None:
    node = Node()
    answer = node.begun(timeout=5.0)
    node.time = 4.0
    node.searches[0].set_result(hits(7))
    node.rounds[0].set_result(8)
    assert await answer == THE_LONG_WAY and node.left == [1.0]


@pytest.mark.parametrize("what", ["map", "catalog", "collection"])
async def test_what_is_otherwise_when_it_was_searched_goes_the_long_way(what: str) -> None:
    node = Node()
    answer = node.begun(mode=ReadMode.EVENTUAL)
    if what == "map":
        node.ownership = Ownership(initial_map(CONSISTENT_HASH, 2))
    node.lacking = what == "catalog"
    if what == "collection":
        node.searches[0].set_exception(CollectionNotFound("no books yet"))
    else:
        node.searches[0].set_result(hits())
    assert await answer == THE_LONG_WAY
    assert node.reads.reading == 0 and not node.observed


async def test_a_deposed_leader_answers_nothing_and_says_who_leads() -> None:
    node = Node()
    answer = node.begun()
    node.searches[0].set_result(hits())
    node.rounds[0].set_exception(NotLeader("n2 does", leader="n2"))
    with pytest.raises(NotLeader) as told:
        await answer
    assert told.value.details["leader_address"] == "at-n2"
    assert node.observed == [("shard_search", "not_leader")] and node.reads.reading == 0


async def test_a_search_that_fails_by_itself_is_told_at_once_and_leaves_no_round_behind() -> None:
    node = Node()
    answer = node.begun()
    node.searches[0].set_exception(Unavailable("the threads are stopped"))
    with pytest.raises(Unavailable):
        await answer
    assert node.rounds[0].cancelled() and node.reads.reading == 0


async def test_without_room_it_is_refused_and_leaves_no_round_behind() -> None:
    node = Node()
    node.full = Overloaded("too many")
    with pytest.raises(Overloaded):
        node.search()
    assert node.rounds[0].cancelled() and node.reads.reading == 0
    assert node.observed == [("shard_search", "overloaded")]


async def test_what_has_to_wait_or_is_followed_does_not_begin() -> None:
    node = Node()
    assert node.search(mode=ReadMode.EVENTUAL, max_staleness=1.0) is None
    assert node.search(mode=ReadMode.EVENTUAL, min_index=8) is None
    assert node.search(mode=ReadMode.LEASED, min_index=8) is None
    assert node.search(min_index=8) is None
    assert node.search(timeout=0.0) is None  # refused the long way
    for request in (
        SearchRequest(collection="books", vector=b"", k=4, explain=True),
        SearchRequest(collection="books", vector=b"", k=4, keywords="words"),
        SearchRequest(collection="books", vector=b"", k=1000),
    ):
        assert node.search(request, mode=ReadMode.EVENTUAL) is None
    node.lease = 8
    assert node.search(mode=ReadMode.LEASED) is None
    node.resting, node.lease = False, None
    assert node.search() is None and node.search(mode=ReadMode.LEASED) is None
    node.maintenance = True
    assert node.search(mode=ReadMode.EVENTUAL) is None
    node.maintenance, node.lost = False, Unavailable("it lost state")
    assert node.search(mode=ReadMode.EVENTUAL) is None
    node.lost, following = None, current.set(Request("order-1"))
    assert node.search(mode=ReadMode.EVENTUAL) is None
    current.reset(following)
    node.ownership = Ownership(initial_map(CONSISTENT_HASH, 1), {0: 8})
    assert node.search(mode=ReadMode.EVENTUAL) is None  # it may lack what was moved here
    node.ownership = None
    assert node.search(mode=ReadMode.EVENTUAL) is None
    node.ownership, node.groups = Ownership(initial_map(CONSISTENT_HASH, 1)), {}
    assert node.search(mode=ReadMode.EVENTUAL) is None
    assert not node.asked and not node.rounds and not node.observed and node.reads.reading == 0


async def test_a_caller_that_has_gone_takes_no_worker_and_leaves_no_round_behind() -> None:
    node = Node()
    answer = node.begun()
    waiting = asyncio.ensure_future(answer)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert node.forgotten == node.searches and node.rounds[0].cancelled() and node.reads.reading == 0
    answer.cancel()
    assert len(node.forgotten) == 1
    for _ in range(3):
        await asyncio.sleep(0)
    assert not node.long_ways and not node.observed


async def given_up_on_the_long_way() -> Any:
    """The answer to a search that has to be read again, which nobody waits for any more."""
    node = Node()
    node.long_way_ends.clear()
    answer = node.begun(mode=ReadMode.EVENTUAL)
    node.searches[0].set_exception(CollectionNotFound("no books yet"))
    while not node.long_ways:  # noqa: ASYNC110 - the next turns of the loop
        await asyncio.sleep(0)
    answer.cancel()
    return answer


async def test_a_caller_that_has_gone_ends_the_long_way_too() -> None:
    answer = await given_up_on_the_long_way()
    with pytest.raises(Unavailable):
        await answer


async def test_who_is_given_up_on_the_long_way_is_answered_at_once() -> None:
    """A node that stops closes its connections a turn later: what ends after that is not told any more."""
    answer = await given_up_on_the_long_way()
    assert answer.done()
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
    with pytest.raises(Unavailable, match="given up"):
        await answer


async def test_a_large_answer_goes_in_pieces() -> None:
    node = Node()
    answer = node.begun(mode=ReadMode.EVENTUAL)
    node.searches[0].set_result(hits(7, b'"' + b"a" * LARGE_BYTES + b'"'))
    assert isinstance(await answer, Pieces)
    assert node.observed == [("shard_search", "")] and not node.long_ways


async def test_figures_that_nobody_asked_for_are_not_told() -> None:
    node = Node()
    told = ShardExplanation(
        shard=-1, applied_index=7, documents=1, allowed=1, together=1, filter_milliseconds=1.0,
        vectors_milliseconds=1.0, documents_milliseconds=1.0, segments=[],
    )  # fmt: skip
    answer = node.begun(mode=ReadMode.EVENTUAL)
    node.searches[0].set_result(HitBatch(["a"], [0.5], [1], [], b"", 7, explained=[told]))
    found = calls.decode(b"".join([await answer]), ReceivedAnswer)
    assert calls.decode(found.body, HitBatch).explained == []


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[tuple[DistributedCluster, Any]]:
    cluster = DistributedCluster(ClusterConfig(shard_count=1, replication_factor=1, dimensions=2))
    try:
        await cluster.add_local_node("node-1", f"127.0.0.1:{free_ports(1)[0]}", str(tmp_path / "node-1"))
        await cluster.start()
        await cluster.insert_batch([(f"d{n}", [1, n], {"n": n}) for n in range(8)])
        yield cluster, cluster.local_nodes()[0]
    finally:
        await cluster.stop()


@pytest.mark.parametrize("mode", ReadMode)
async def test_a_node_answers_a_search_without_a_task_as_it_does_with_one(
    real: tuple[DistributedCluster, Any], mode: ReadMode
) -> None:
    cluster, node = real
    [info], epoch = node.topology.collections, node.topology.map.epoch
    request = SearchRequest(collection=info.stored_name, vector=b"\0\0\x80?" * 2, k=3, filter=b'{"n":{"$gt":2}}')
    call = SearchCall(1, request, Freshness(mode), epoch)
    peer: Any = SimpleNamespace(node_id="", within="", remote="h:1", identity=Identity("", NODE))
    await cluster.search([1, 1], mode=mode)  # it leads by now
    early = node.service.on_request(peer, calls.SEARCH, calls.encode(call))
    assert isinstance(early, EarlySearch), "a task would cost a good part of the search"
    assert await early == await node.service._serve(calls.SEARCH, node.service.proxy.search, call)


async def test_a_collection_that_a_shard_does_not_have_is_refused_as_ever(real: tuple[DistributedCluster, Any]) -> None:
    _, node = real
    request = SearchRequest(collection="nothing@77", vector=b"\0\0\x80?" * 2, k=3)
    call = SearchCall(1, request, Freshness(ReadMode.EVENTUAL), node.topology.map.epoch)
    peer: Any = SimpleNamespace(node_id="", within="", remote="h:1", identity=Identity("", NODE))
    with pytest.raises(CollectionNotFound):
        await node.service.on_request(peer, calls.SEARCH, calls.encode(call))


async def test_a_leased_search_without_a_lease_begins_with_a_round_as_a_strong_one() -> None:
    """On a busy machine leases often run out, and every search went the long way then."""
    node = Node()
    node.lease = None
    waiting = node.search(mode=ReadMode.LEASED)
    assert waiting is not None and len(node.rounds) == 1 == len(node.searches)
    node.searches[0].set_result(HitBatch(["a"], [0.0], [1], [], b"", 7))
    await asyncio.sleep(0)
    assert not waiting.done(), "the round has not confirmed yet that this node leads"
    node.rounds[0].set_result(7)
    assert await waiting and not node.long_ways
    again = node.search(mode=ReadMode.LEASED)
    assert again is not None
    node.searches[1].set_result(HitBatch(["a"], [0.0], [1], [], b"", 7))
    node.rounds[1].set_result(8)  # a write came between
    assert await again == THE_LONG_WAY and node.long_ways == 1
