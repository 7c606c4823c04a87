"""A strong search that runs while its round confirms the leader: what it found counts only with the round's word."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from needle.base.errors import CollectionNotFound, InvalidArgument, NeedleError, NotLeader, Overloaded
from needle.base.model import HitBatch, ReadMode, SearchRequest
from needle.protocol.calls import Freshness, GetCall, SearchCall
from needle.routing.topology import Topology
from needle.server.service.reads import Reads

REQUEST = SearchRequest(collection="books", vector=b"", k=1)


class Leader:
    """Host and batcher in one. `state`: the index that a search sees, or what it raises."""

    maintenance = False

    def __init__(self) -> None:
        self.rounds: list[asyncio.Future[int]] = []
        self.waited: list[ReadMode] = []
        self.state: int | NeedleError = 7
        self.searches = 0
        self.answered: list[SearchRequest] = []
        """What the recall is measured of."""
        self.resting = True
        self.begun = asyncio.Event()

    def is_at_rest(self, group: int) -> bool:
        return self.resting

    def applied_index(self, group: int) -> int:
        return 7

    def is_leader(self, group: int) -> bool:
        return True

    def begin_read(self, group: int, timeout: float) -> asyncio.Future[int]:
        self.rounds.append(asyncio.get_running_loop().create_future())
        self.begun.set()
        return self.rounds[-1]

    async def read_index(self, group: int, timeout: float) -> int:
        self.waited.append(ReadMode.STRONG)
        return 7

    async def read_leased(self, group: int, timeout: float) -> int:
        self.waited.append(ReadMode.LEASED)
        return 7

    async def search(self, request: SearchRequest, timeout: float) -> HitBatch:
        self.searches += 1
        if isinstance(self.state, NeedleError):
            raise self.state
        return HitBatch([], [], [], [], b"", self.state)


def reads_of(leader: Leader) -> Reads:
    hosted = SimpleNamespace(batcher=leader, recall=SimpleNamespace(saw=leader.answered.append))
    groups = {1: hosted}
    node = SimpleNamespace(
        node_id="n1", host=leader, hosted=groups.__getitem__, groups=groups, now=lambda: 0.0, topology=Topology()
    )
    return Reads(node)  # type: ignore[arg-type]


def asked(leader: Leader, **fresh: object) -> asyncio.Task[HitBatch]:
    return asyncio.ensure_future(reads_of(leader).search(SearchCall(1, REQUEST, Freshness(**fresh))))  # type: ignore[arg-type]


async def searched(leader: Leader) -> None:
    """Returns once the search has run, its round still open."""
    await asyncio.wait_for(leader.begun.wait(), 30)
    while not leader.searches:  # noqa: ASYNC110 - the next turns of the loop
        await asyncio.sleep(0)


async def test_the_answer_waits_for_the_round() -> None:
    leader = Leader()
    task = asked(leader)
    await searched(leader)
    await asyncio.sleep(0)
    assert not task.done()
    leader.rounds[0].set_result(7)
    assert (await task).applied_index == 7 and leader.searches == 1


async def test_what_was_seen_too_early_is_searched_again() -> None:
    leader = Leader()
    task = asked(leader)
    await searched(leader)
    leader.state = 9
    leader.rounds[0].set_result(8)
    assert (await task).applied_index == 9 and leader.searches == 2
    assert leader.answered == [REQUEST]


async def test_a_deposed_leader_answers_nothing() -> None:
    leader = Leader()
    task = asked(leader)
    await searched(leader)
    leader.rounds[0].set_exception(NotLeader("n2 does"))
    with pytest.raises(NotLeader):
        await task


async def test_a_refusal_is_judged_again_by_what_the_round_confirms() -> None:
    leader = Leader()
    leader.state = CollectionNotFound("no books yet")
    task = asked(leader)
    await searched(leader)
    assert not task.done()
    leader.state = 8
    leader.rounds[0].set_result(8)
    assert (await task).applied_index == 8
    leader.searches, leader.state = 0, CollectionNotFound("and never will be")
    leader.begun.clear()
    task = asked(leader)
    await searched(leader)
    leader.rounds[1].set_result(8)
    with pytest.raises(CollectionNotFound):
        await task


async def test_a_caller_that_gives_up_or_is_refused_leaves_no_round_behind() -> None:
    leader = Leader()
    leader.state = Overloaded("too many")
    with pytest.raises(Overloaded):
        await asked(leader)
    assert leader.rounds[0].cancelled()
    leader.state, leader.searches = 7, 0
    task = asked(leader)
    await searched(leader)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert leader.rounds[1].cancelled()


async def test_with_writes_under_way_or_another_mode_the_search_comes_after() -> None:
    leader = Leader()
    leader.resting = False
    await asked(leader)
    leader.resting = True
    await asked(leader, mode=ReadMode.LEASED)
    assert leader.waited == [ReadMode.STRONG, ReadMode.LEASED] and leader.rounds == []


async def test_a_read_that_is_refused_for_its_timeout_does_not_count_as_running() -> None:
    """Maintenance waits until no read runs any more."""
    reads = reads_of(Leader())
    with pytest.raises(InvalidArgument):
        await reads.search(SearchCall(1, REQUEST, Freshness(timeout=float("nan"))))
    with pytest.raises(InvalidArgument):
        await reads.get(GetCall(1, "books", ["a"], False, Freshness(timeout=float("nan"))))
    assert reads.reading == 0
