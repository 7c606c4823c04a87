"""Remembered allow-lists against judging every document again: under random writes, patches, deletes and purges, for
views of any age; and what they cost."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from pyroaring import BitMap

from needle.base.filters.builder import Filter
from needle.base.filters.nodes import Node
from needle.base.model import SearchRequest
from needle.protocol.commands import Change, CreateCollection, Delete, Expire, Patch
from needle.shard.fields.allow_lists import FILTER_BYTES_MAX, AllowLists, Moment
from needle.shard.query import allowed_ordinals, both, visible_ordinals
from shard.replica_util import Log, floats, open_replica, put, spec

NODE = Filter.eq("a", 1).node
ODD = (b"odd", b"")


class Documents:
    """Every third of ODD's documents matches; `judged` counts those that were looked at."""

    def __init__(self) -> None:
        self.live, self.end, self.changes, self.judged, self.used = BitMap(), 0, 0, 0, 0

    def moment(self) -> Moment:
        live = BitMap(self.live)
        return Moment(self.changes, self.end, lambda: live)

    def change(self, added: int, dead: BitMap) -> None:
        self.live |= BitMap(range(self.end, self.end + added))
        self.live -= dead
        self.end, self.changes = self.end + added, self.changes + 1

    def judge(self, node: Node, among: BitMap, live: int) -> BitMap:
        assert node is NODE and live >= len(among)
        self.judged += len(among)
        return BitMap([one for one in among if one % 3 == 0])

    def use(self, node: Node) -> None:
        self.used += 1


def find(lists: AllowLists, documents: Documents, moment: Moment, asked: tuple[bytes, bytes] = ODD) -> BitMap:
    return lists.find("c", asked, moment, lambda: NODE, documents.judge, documents.use).bitmap


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("room", [1 << 20, 6000, 0])
def test_a_list_is_what_judging_anew_finds_at_any_moment(seed: int, room: int) -> None:
    rng, lists, documents = random.Random(seed), AllowLists(room), Documents()
    moments = [documents.moment()]
    for _ in range(120):
        if rng.random() < 0.6:
            dead = BitMap([one for one in documents.live if rng.random() < 0.05])
            documents.change(rng.choice([0, 0, 1, 7]), dead)
            moments.append(documents.moment())
        moment = rng.choice(moments[-3:])  # searches go on with views that others have left behind
        asked = (b"%d" % rng.randrange(4), b"")
        assert list(find(lists, documents, moment, asked)) == [one for one in moment.live() if one % 3 == 0]
        assert lists.used <= room


def test_what_was_judged_is_not_judged_again() -> None:
    lists, documents = AllowLists(1 << 20), Documents()
    documents.change(300, BitMap())
    first = find(lists, documents, documents.moment())
    assert (documents.judged, documents.used) == (300, 0)
    assert find(lists, documents, documents.moment()) is first
    documents.change(2, BitMap([0, 1]))
    assert len(find(lists, documents, documents.moment())) == 99 + 1
    assert (documents.judged, documents.used) == (302, 2)


def test_a_list_that_stays_the_same_keeps_what_searches_made_of_it() -> None:
    lists, documents = AllowLists(1 << 20), Documents()
    documents.change(300, BitMap())
    first = find(lists, documents, documents.moment())
    documents.change(1, BitMap([1]))  # the new one is 300, which matches
    second = find(lists, documents, documents.moment())
    documents.change(2, BitMap([2]))  # neither 301 nor 302 does
    assert second is not first and find(lists, documents, documents.moment()) is second


def test_lists_take_no_more_than_their_room_and_the_oldest_goes_first() -> None:
    lists, documents = AllowLists(20_000), Documents()
    documents.change(300, BitMap())
    for n in range(30):
        find(lists, documents, documents.moment(), (b"%d" % n, b""))
        find(lists, documents, documents.moment())
        assert 0 < lists.used <= 20_000
    judged = documents.judged
    find(lists, documents, documents.moment())
    assert documents.judged == judged
    find(lists, documents, documents.moment(), (b"0", b""))
    assert documents.judged > judged
    lists.forget("c")
    assert lists.used == 0


def test_a_long_filter_is_not_remembered() -> None:
    lists, documents = AllowLists(1 << 30), Documents()
    documents.change(3, BitMap())
    for _ in range(2):
        find(lists, documents, documents.moment(), (b"x" * (FILTER_BYTES_MAX + 1), b""))
    assert documents.judged == 6 and lists.used == 0


CONDITIONS: list[dict[str, Any]] = [
    {"a": 1},
    {"a": {"$gt": 2}},
    {"$not": {"b": "x"}},
    {"b": {"$exists": False}},
    {"$ids": ["d1", "d5", "d9"]},
    {"$or": [{"a": 0}, {"b": "y"}]},
]


@pytest.mark.parametrize("seed", range(4))
def test_a_replica_remembers_no_list_that_differs_from_judging_anew(tmp_path: Any, seed: int) -> None:
    """Of views of any age, while documents are written, patched, deleted, expire and are purged."""
    rng, log, replica = random.Random(seed), Log(), open_replica(tmp_path)
    limits, go_on = replica.limits, (lambda: None)

    def do(command: Any) -> None:
        replica.apply(log.add(command))

    def metadata() -> dict[str, Any]:
        return rng.choice([{"a": rng.randrange(5)}, {"b": rng.choice("xyz")}, {"a": rng.randrange(5), "b": "x"}])

    do(CreateCollection(spec()))
    views = []
    for step in range(60):
        ids = [f"d{rng.randrange(12)}" for _ in range(rng.randint(1, 3))]
        ids = list(dict.fromkeys(ids))
        change = Change(set=[("a", json.dumps(rng.randrange(5)).encode())])
        kinds = [
            lambda ids=ids: put(ids, [[1.0, 2.0, 3.0]] * len(ids), [metadata() for _ in ids], expires=[9] * len(ids)),
            lambda ids=ids: put(ids, [[3.0, 2.0, 1.0]] * len(ids), [metadata() for _ in ids]),
            lambda ids=ids, change=change: Patch("c", ids, change),
            lambda ids=ids: Delete("c", ids),
            lambda: Expire("c", 10, 1000),
        ]
        do(rng.choice(kinds)())
        if not step % 7:
            replica.checkpoint()
        views = [*views[-2:], replica.view.collection("c")]
        for condition in CONDITIONS:
            view = rng.choice(views) if step % 7 else views[-1]  # a purge takes what only former views see
            if "$ids" in condition and view is not views[-1]:
                continue
            text = Filter.parse(condition).to_json()
            node = both(text, b"", limits)
            assert node is not None
            again = view.payload.within(node, view.record.next_ordinal, visible_ordinals(view))
            found = allowed_ordinals(view, text, limits, None, go_on)
            assert found is not None and found.bitmap == again, condition
            if view is views[-1]:
                request = SearchRequest(collection="c", vector=floats([1.0, 2.0, 3.0]), k=50, filter=text)
                assert len(replica.search(request).ids) == len(again)
    assert replica.field_indexes.lists.used > 0
    replica.close()
    assert replica.field_indexes.lists.used == 0
