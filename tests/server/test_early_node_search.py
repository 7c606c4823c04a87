"""A call for several shards that are searched while their rounds confirm this leader: each counts, or is read again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from needle.base.errors import NeedleError, NotLeader, Overloaded, Unavailable
from needle.base.model import Claim, HitBatch, ReadMode, SearchRequest
from needle.protocol import calls
from needle.protocol.calls import Freshness, SearchManyAnswer
from needle.protocol.node_calls import AskedShard, NodeHits, SearchShardsAnswer, SearchShardsCall
from needle.routing.shard_map import initial_map
from needle.routing.strategy import CONSISTENT_HASH
from needle.routing.topology import Ownership, Topology
from needle.server.service.node_searches import NodeSearches
from needle.server.service.reads import Reads
from needle.shard.several import Member, Members, Together

GROUPS = (1, 2, 3)
REQUEST = SearchRequest(collection="books", vector=b"", k=4)


def hits(groups: Sequence[int], applied: int) -> HitBatch:
    return HitBatch(
        [f"of-{one}" for one in groups], [float(one) for one in groups], [1] * len(groups), [], b"", applied
    )


class Several:
    """Searches the shards at once: those of each part together. parts: of so many shards at most. full: has no room."""

    def __init__(self, node: Node) -> None:
        self.node, self.parts, self.full = node, len(GROUPS), False
        self.forgotten = 0
        self.k = REQUEST.k

    def members(self, by: object, replicas: dict[int, Any], claim: Callable[[int], Claim]) -> Members:
        assert by is self.node.ownership and all(claim(group).since == 0 for group in replicas)
        return Members([Member(cast("Any", group), claim(group)) for group in replicas])

    def begin(self, requests: Sequence[SearchRequest], members: Members, timeout: float) -> list[Any]:
        if self.full:
            raise Overloaded("full")
        found: list[Any] = []
        for place, some in enumerate(members.parts(self.parts)):
            groups: list[Any] = [one.of for one in some.each]
            self.node.begun += groups * len(requests)
            searches = [self.search(groups) for _ in requests]
            found.append(SimpleNamespace(first=place * self.parts, members=some, found=searches))
        return found

    def search(self, some: list[int]) -> asyncio.Future[Together]:
        answer: asyncio.Future[Together] = asyncio.get_running_loop().create_future()
        states = [self.node.state[group] for group in some]
        if -1 not in states:
            applied = [None if isinstance(state, NeedleError) else state for state in states]
            near = [place for place, index in enumerate(applied) if index is not None][: self.k]
            answer.set_result(Together(hits([some[place] for place in near], 7), near, applied))
        return answer

    def forget(self, collection: str, parts: Sequence[Any]) -> None:
        self.forgotten += sum(not one.done() or one.cancelled() for part in parts for one in part.found)


class Node:
    """Node, host and searches in one. state: by group the index that an early search sees, an error for one that does
    not answer in it, -1 for one that never ends."""

    def __init__(self) -> None:
        self.node_id, self.host = "n1", self
        self.topology = Topology()
        self.state: dict[int, int | NeedleError] = dict.fromkeys(GROUPS, 7)
        self.rounds: dict[int, asyncio.Future[int]] = {}
        self.busy: set[int] = set()
        self.lost: set[int] = set()
        self.maintenance = False
        self.leases: dict[int, int] = {}
        self.lacking: set[int] = set()
        self.follows = False
        self.alone: list[int] = []
        self.begun: list[int] = []
        self.observed: list[str] = []
        self.groups = {group: self.hosted(group) for group in GROUPS}
        self.ownership: Ownership | None = Ownership(initial_map(CONSISTENT_HASH, 3))
        self.reads = Reads(self)  # type: ignore[arg-type]
        self.several = Several(self)
        self.unready: set[int] = set()

    def hosted(self, group: int) -> Any:
        rates = SimpleNamespace(searched=lambda now, count=1: None)
        return SimpleNamespace(calls=rates, recall=SimpleNamespace(saw=lambda request: None))

    def is_at_rest(self, group: int) -> bool:
        return group not in self.busy

    def applies_at_once(self, group: int, index: int) -> bool:
        return False

    def applied_index(self, group: int) -> int:
        return 7

    def check_serves(self, group: int) -> None:
        if group in self.lost:
            raise Unavailable("it lost state")

    @property
    def engine(self) -> Any:
        def replica(group: int) -> Any:
            raft = SimpleNamespace(read_lease=lambda now: self.leases.get(group), applied=7)
            return SimpleNamespace(lost="", raft=raft)

        clock = SimpleNamespace(monotonic=lambda: 0.0)
        return SimpleNamespace(stopped=False, clock=clock, groups={group: replica(group) for group in GROUPS})

    def leased_index(self, group: int) -> int | None:
        return self.leases.get(group)

    def begin_read(self, group: int, timeout: float) -> asyncio.Future[int]:
        if group in self.unready:
            raise NotLeader("n2 does")
        self.rounds[group] = asyncio.get_running_loop().create_future()
        return self.rounds[group]

    def now(self) -> float:
        return 0.0

    def observe(self, what: str, seconds: float, error: NeedleError | None, count: int = 1) -> None:
        self.observed += [what] * count

    async def read(self, run: object, call: Any) -> tuple[Ownership, Any]:
        """As ShardDocuments reads a shard that is asked alone."""
        self.alone.append(call.group)
        assert self.ownership is not None
        found, count = hits([call.group], 9), getattr(call, "count", 0)
        return self.ownership, SearchManyAnswer([found] * count) if count else found

    def asked(
        self, groups: tuple[int, ...] = GROUPS, at: int = 0, count: int = 0, vector: bytes = b"", **fresh: Any
    ) -> asyncio.Task[Any]:
        """at: the index that each shard must have applied. count: of searches in one call."""
        watch = SimpleNamespace(follows=lambda: self.follows, begin=lambda *_: None)
        bulk = SimpleNamespace(called=lambda work: None)
        documents = SimpleNamespace(
            watch=watch, read=self.read, lacks=lambda *groups: not self.lacking.isdisjoint(groups), bulk=bulk
        )
        searches = NodeSearches(self, documents, self.reads)  # type: ignore[arg-type]
        assert self.ownership is not None
        request = msgspec.structs.replace(REQUEST, vector=vector)
        each = [AskedShard(one, at) for one in groups]
        call = SearchShardsCall(each, request, Freshness(**fresh), self.ownership.epoch, count)  # type: ignore[arg-type]
        return asyncio.ensure_future(searches.search(call))


async def begun(node: Node, count: int) -> None:
    for _ in range(100):  # the next turns of the loop
        if len(node.rounds) >= count:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{len(node.rounds)} rounds have begun, not {count}")


def told(body: Any) -> tuple[dict[int, int], list[str]]:
    answer = calls.decode(body, SearchShardsAnswer)
    applied = {group: one.applied_index for group, one in zip(GROUPS, answer.shards, strict=True)}
    return applied, calls.decode(answer.body, NodeHits).batches[0].ids


async def confirmed(node: Node, **at: int) -> tuple[dict[int, int], list[str]]:
    task = node.asked()
    await begun(node, len(GROUPS))
    assert not task.done()
    for group, future in node.rounds.items():
        future.set_result(at.get(f"g{group}", 7))
    return told(await task)


async def test_all_rounds_and_searches_begin_before_one_is_waited_for() -> None:
    node = Node()
    assert await confirmed(node) == ({1: 7, 2: 7, 3: 7}, ["of-1", "of-2", "of-3"])
    assert not node.alone and node.observed == ["shard_search"] * 3 and not node.reads.reading


async def test_where_a_hit_does_not_count_all_that_were_searched_with_it_are_read_alone() -> None:
    """Where it stands, another shard's hit would: of that one nobody knows then."""
    node = Node()
    assert await confirmed(node, g2=8) == ({1: 9, 2: 9, 3: 9}, ["of-1", "of-2", "of-3"])
    assert sorted(node.alone) == [1, 2, 3] and node.observed == ["shard_search"] * 3


async def test_only_what_the_round_confirms_counts() -> None:
    for parts, applied, alone in ((3, {1: 7, 2: 7, 3: 9}, [3]), (2, {1: 9, 2: 9, 3: 7}, [1, 2])):
        node = Node()
        node.several.parts = parts
        late = 3 if parts == 3 else 2
        node.several.k = 2 if parts == 3 else 4  # the third shard has no hit among the nearest
        assert (await confirmed(node, **{f"g{late}": 8}))[0] == applied, parts
        assert sorted(node.alone) == alone


async def test_who_does_not_answer_or_is_no_leader_is_read_alone() -> None:
    node = Node()
    node.state[1], node.unready = Overloaded("full"), {2}
    task = node.asked()
    await begun(node, 2)
    node.rounds[1].set_result(7)
    node.rounds[3].set_result(7)
    assert told(await task)[0] == {1: 9, 2: 9, 3: 7} and sorted(node.alone) == [1, 2]
    assert node.begun == [1, 3]


async def test_whose_round_fails_is_read_alone_and_says_why() -> None:
    node = Node()
    node.several.parts = 1
    task = node.asked()
    await begun(node, len(GROUPS))
    node.rounds[2].set_exception(NotLeader("n2 does"))
    for group in (1, 3):
        node.rounds[group].set_result(7)
    assert told(await task)[0] == {1: 7, 2: 9, 3: 7} and node.alone == [2]


async def test_a_node_that_has_no_room_says_so_once() -> None:
    """Each shard by itself would only wait in another queue."""
    node = Node()
    node.several.full = True
    with pytest.raises(Overloaded):
        await node.asked()
    assert not node.alone and all(one.cancelled() for one in node.rounds.values()) and not node.reads.reading


async def test_what_must_be_waited_for_or_followed_is_read_alone() -> None:
    for change in ("busy", "follows", "lacking", "map"):
        node, waiting = Node(), len(GROUPS)
        if change == "busy":
            node.busy, waiting = {2}, 2
        elif change == "lacking":
            node.lacking = {2}
        elif change == "follows":
            node.follows, waiting = True, 0
        task = node.asked()
        await begun(node, waiting)
        if change == "map":
            node.ownership = Ownership(initial_map(CONSISTENT_HASH, 3))

        for future in node.rounds.values():
            future.set_result(7)
        await task
        assert sorted(node.alone) == ([2] if change == "busy" else list(GROUPS)), change


async def test_leased_searches_need_no_round_while_the_lease_holds_and_its_index_is_applied() -> None:
    node = Node()
    node.leases, node.busy = {1: 7, 2: 5, 3: 6}, {1}  # a lease names an index: a write under way is beyond it
    applied, ids = told(await node.asked(mode=ReadMode.LEASED))
    assert applied == {1: 7, 2: 7, 3: 7} and ids == ["of-1", "of-2", "of-3"]
    assert not node.alone and not node.rounds and node.observed == ["shard_search"] * 3


async def test_behind_its_lease_a_leased_search_is_read_alone() -> None:
    node = Node()
    node.leases = {1: 7, 2: 8, 3: 8}
    assert told(await node.asked(mode=ReadMode.LEASED))[0] == {1: 7, 2: 9, 3: 9}
    assert sorted(node.alone) == [2, 3] and not node.rounds


@pytest.mark.parametrize("what", ["leased", "session"])
async def test_who_has_not_applied_what_a_lease_or_the_session_asks_for_is_read_alone(what: str) -> None:
    node = Node()
    node.leases = {1: 7, 2: 8, 3: 6} if what == "leased" else dict.fromkeys(GROUPS, 7)
    applied, _ = told(await node.asked(mode=ReadMode.LEASED, at=8 if what == "session" else 6))
    late = [2] if what == "leased" else [1, 2, 3]
    assert sorted(node.alone) == late and not set(node.begun) & set(late) and not node.rounds
    assert applied == {group: 9 if group in late else 7 for group in GROUPS}


async def test_without_a_lease_a_leased_search_is_confirmed_by_a_round() -> None:
    """On a busy machine leases often run out: then every shard was read by a task of its own."""
    node = Node()
    node.leases, node.busy = {1: 7}, {3}
    task = node.asked(mode=ReadMode.LEASED)
    await begun(node, 1)
    assert not task.done() and [*node.rounds] == [2]
    node.rounds[2].set_result(7)
    assert told(await task)[0] == {1: 7, 2: 7, 3: 9} and node.alone == [3]


async def test_what_is_found_in_parts_is_merged() -> None:
    for parts in (1, 2):
        node = Node()
        node.several.parts, node.leases = parts, dict.fromkeys(GROUPS, 7)
        body = await node.asked((3, 1, 2), mode=ReadMode.LEASED)
        answer = calls.decode(body, SearchShardsAnswer)
        [batch], [places] = (hits := calls.decode(answer.body, NodeHits)).batches, hits.places
        assert batch.ids == ["of-1", "of-2", "of-3"] and places == [1, 2, 0], parts
        assert [one.applied_index for one in answer.shards] == [7, 7, 7] and not node.alone


async def test_a_caller_that_gives_up_leaves_nothing_behind() -> None:
    node = Node()
    node.state[2] = -1
    task = node.asked()
    await begun(node, len(GROUPS))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() and all(one.cancelled() for one in node.rounds.values())
    assert node.several.forgotten == 1 and not node.reads.reading


async def test_an_eventual_search_asks_no_leader_and_waits_for_no_log() -> None:
    node = Node()
    applied, ids = told(await node.asked(mode=ReadMode.EVENTUAL, at=7))
    assert applied == {1: 7, 2: 7, 3: 7} and ids == ["of-1", "of-2", "of-3"]
    assert not node.alone and not node.rounds


async def test_an_eventual_search_is_refused_by_a_replica_that_lags_behind_its_session() -> None:
    """Who asks has other replicas; one that waits would hold up what the other shards have found."""
    node = Node()
    answer = calls.decode(await node.asked(mode=ReadMode.EVENTUAL, at=8), SearchShardsAnswer)
    assert [one.refused.code for one in answer.shards if one.refused] == ["too_stale"] * len(GROUPS)
    assert not node.begun and not node.alone


async def test_what_an_eventual_search_has_to_be_judged_for_is_read_alone() -> None:
    for change, alone in (("maintenance", [1, 2, 3]), ("lost", [2]), ("bound", [1, 2, 3])):
        node = Node()
        node.maintenance = change == "maintenance"
        node.lost = {2} if change == "lost" else set()
        more = {"max_staleness": 1.0} if change == "bound" else {}
        await node.asked(mode=ReadMode.EVENTUAL, **more)
        assert sorted(node.alone) == alone, change


async def test_several_vectors_begin_together_and_each_has_to_see_what_the_lease_names() -> None:
    node = Node()
    node.leases = {1: 7, 2: 8, 3: 7}
    found = await node.asked(mode=ReadMode.LEASED, count=2, vector=b"12345678")
    answer = calls.decode(found, SearchShardsAnswer)
    assert [one.applied_index for one in answer.shards] == [7, 9, 7] and node.alone == [2]
    assert [batch.ids for batch in calls.decode(answer.body, NodeHits).batches] == [["of-1", "of-2", "of-3"]] * 2
    assert sorted(node.begun) == [1, 1, 3, 3] and node.observed.count("shard_search_many") == len(GROUPS)


async def test_vectors_of_no_length_are_for_each_shard_to_refuse() -> None:
    node = Node()
    node.leases = dict.fromkeys(GROUPS, 7)
    await node.asked(mode=ReadMode.LEASED, count=3, vector=b"1234")
    assert not node.begun and sorted(node.alone) == list(GROUPS)
