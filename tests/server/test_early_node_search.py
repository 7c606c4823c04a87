"""A call for several shards that are searched while their rounds confirm this leader: each counts, or is read again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from needle.base.errors import NeedleError, NotLeader, Overloaded
from needle.base.model import HitBatch, ReadMode, SearchRequest
from needle.protocol import calls
from needle.protocol.calls import Freshness, SearchCall
from needle.protocol.node_calls import AskedShard, NodeHits, SearchShardsAnswer, SearchShardsCall
from needle.routing.shard_map import initial_map
from needle.routing.strategy import CONSISTENT_HASH
from needle.routing.topology import Ownership, Topology
from needle.server.service.node_searches import NodeSearches
from needle.server.service.reads import Reads

GROUPS = (1, 2, 3)
REQUEST = SearchRequest(collection="books", vector=b"", k=4)


def hits(group: int, applied: int) -> HitBatch:
    return HitBatch([f"of-{group}"], [float(group)], [1], [], b"", applied)


class Node:
    """Node, host and batchers in one. state: by group the index that an early search sees, or what it raises."""

    def __init__(self) -> None:
        self.node_id, self.host = "n1", self
        self.topology = Topology()
        self.state: dict[int, int | NeedleError] = dict.fromkeys(GROUPS, 7)
        self.rounds: dict[int, asyncio.Future[int]] = {}
        self.found: dict[int, asyncio.Future[HitBatch]] = {}
        self.busy: set[int] = set()
        self.leases: dict[int, int] = {}
        self.lacking: set[int] = set()
        self.follows = False
        self.alone: list[int] = []
        self.forgotten: list[int] = []
        self.observed: list[str] = []
        self.groups = {group: self.hosted(group) for group in GROUPS}
        self.ownership: Ownership | None = Ownership(initial_map(CONSISTENT_HASH, 3))
        self.reads = Reads(self)  # type: ignore[arg-type]

    def hosted(self, group: int) -> Any:
        batcher = SimpleNamespace(
            begin=lambda request, timeout: self.begin(group), forget=lambda *_: self.forgotten.append(group)
        )
        rates = SimpleNamespace(searched=lambda now: None)
        return SimpleNamespace(batcher=batcher, calls=rates, recall=SimpleNamespace(saw=lambda request: None))

    def begin(self, group: int) -> asyncio.Future[HitBatch]:
        state = self.state[group]
        if isinstance(state, NeedleError):
            raise state
        self.found[group] = asyncio.get_running_loop().create_future()
        if state >= 0:
            self.found[group].set_result(hits(group, state))
        return self.found[group]

    def is_at_rest(self, group: int) -> bool:
        return group not in self.busy

    def applied_index(self, group: int) -> int:
        return 7

    def leased_index(self, group: int) -> int | None:
        return self.leases.get(group)

    def begin_read(self, group: int, timeout: float) -> asyncio.Future[int]:
        self.rounds[group] = asyncio.get_running_loop().create_future()
        return self.rounds[group]

    def now(self) -> float:
        return 0.0

    def observe(self, what: str, seconds: float, error: NeedleError | None) -> None:
        self.observed.append(what)

    async def read(self, run: object, call: SearchCall) -> tuple[Ownership, HitBatch]:
        """As ShardDocuments reads a shard that is asked alone."""
        self.alone.append(call.group)
        assert self.ownership is not None
        return self.ownership, hits(call.group, 9)

    def asked(self, groups: tuple[int, ...] = GROUPS, **fresh: Any) -> asyncio.Task[Any]:
        watch = SimpleNamespace(follows=lambda: self.follows, begin=lambda *_: None)
        bulk = SimpleNamespace(called=lambda work: None)
        documents = SimpleNamespace(watch=watch, read=self.read, lacks=self.lacking.__contains__, bulk=bulk)
        searches = NodeSearches(self, documents, self.reads)  # type: ignore[arg-type]
        assert self.ownership is not None
        epoch = self.ownership.epoch
        return asyncio.ensure_future(
            searches.search(SearchShardsCall([AskedShard(one) for one in groups], REQUEST, Freshness(**fresh), epoch))  # type: ignore[arg-type]
        )


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


async def test_only_what_the_round_confirms_counts() -> None:
    node = Node()
    assert await confirmed(node, g2=8) == ({1: 7, 2: 9, 3: 7}, ["of-1", "of-2", "of-3"])
    assert node.alone == [2]


async def test_who_is_refused_or_no_leader_is_read_alone() -> None:
    node = Node()
    node.state[1] = Overloaded("full")
    task = node.asked()
    await begun(node, len(GROUPS))
    assert node.rounds[1].cancelled()
    node.rounds[2].set_exception(NotLeader("n2 does"))
    node.rounds[3].set_result(7)
    assert told(await task)[0] == {1: 9, 2: 9, 3: 7} and sorted(node.alone) == [1, 2]


async def test_what_must_be_waited_for_or_followed_is_read_alone() -> None:
    for change in ("busy", "follows", "lacking", "mode", "map"):
        node = Node()
        more: dict[str, Any] = {}
        waiting = len(GROUPS)
        if change == "busy":
            node.busy, waiting = {2}, 2
        elif change == "lacking":
            node.lacking = {2}
        elif change == "follows":
            node.follows, waiting = True, 0
        elif change == "mode":
            more, waiting = {"mode": ReadMode.EVENTUAL}, 0
        task = node.asked(**more)
        await begun(node, waiting)
        if change == "map":
            node.ownership = Ownership(initial_map(CONSISTENT_HASH, 3))

        for future in node.rounds.values():
            future.set_result(7)
        await task
        assert sorted(node.alone) == ([2] if change in ("busy", "lacking") else list(GROUPS)), change


async def test_leased_searches_need_no_round_while_the_lease_holds_and_its_index_is_applied() -> None:
    node = Node()
    node.leases, node.busy = {1: 7, 2: 5, 3: 6}, {1}  # a lease names an index: a write under way is beyond it
    applied, ids = told(await node.asked(mode=ReadMode.LEASED))
    assert applied == {1: 7, 2: 7, 3: 7} and ids == ["of-1", "of-2", "of-3"]
    assert not node.alone and not node.rounds and node.observed == ["shard_search"] * 3


async def test_without_a_lease_or_behind_it_a_leased_search_is_read_alone() -> None:
    node = Node()
    node.leases = {1: 7, 3: 8}
    assert told(await node.asked(mode=ReadMode.LEASED))[0] == {1: 7, 2: 9, 3: 9}
    assert sorted(node.alone) == [2, 3] and not node.rounds


async def test_a_caller_that_gives_up_leaves_nothing_behind() -> None:
    node = Node()
    node.state[2] = -1
    task = node.asked()
    await begun(node, len(GROUPS))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() and all(one.cancelled() for one in node.rounds.values())
    assert node.forgotten == [2] and not node.reads.reading
