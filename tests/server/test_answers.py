"""Answers with many bytes or many rows are encoded in a thread, into the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.model import HitBatch
from needle.base.parts import whole
from needle.protocol import calls
from needle.protocol.calls import DocumentBatch, FacetAnswer, SearchManyAnswer
from needle.server.service.node_searches import NodeSearches, _Hits, _hits, _merged_once, merged
from needle.server.service.served import LARGE_ROWS, encoded
from needle.shard.several import Together


class Node:
    beside = 0

    async def blocking(self, fn: Callable[..., Any], *arguments: object) -> Any:
        self.beside += 1
        return fn(*arguments)


def hits(count: int) -> HitBatch:
    return HitBatch([f"d{n}" for n in range(count)], [0.5] * count, [7] * count, [], b"", 9)


def counts(count: int) -> FacetAnswer:
    return FacetAnswer([f"v{n}" for n in range(count)], [1] * count, count, count, 0, 9)


DOCUMENTS = DocumentBatch(["a", "b"], [1, 2], [b"{}" * 300_000, b"{}" * 300_000], b"", 9)


@pytest.mark.parametrize(
    ("answer", "beside"),
    [
        (hits(10), 0),
        (hits(LARGE_ROWS), 1),
        (SearchManyAnswer([hits(10)] * 5), 0),
        (SearchManyAnswer([hits(10)] * (LARGE_ROWS // 10)), 1),
        (DOCUMENTS, 1),
        (counts(10), 0),
        (counts(LARGE_ROWS), 1),
    ],
)
async def test_what_takes_long_to_encode_is_encoded_beside_the_event_loop(answer: Any, beside: int) -> None:
    node, plain = Node(), calls.encode(answer)
    assert whole(await encoded(node, answer)) == plain
    assert node.beside == beside


async def test_hits_of_many_searches_are_given_back_beside_the_event_loop() -> None:
    """A million objects take a tenth of a second: what held them holds nothing when the thread has ended."""
    node = Node()
    answered = [_Hits([hits(LARGE_ROWS), hits(3)], [place, place]) for place in range(3)]
    plain = calls.encode(merged(answered, 100, 2))
    found = await node.blocking(_merged_once, answered, 100, 2)
    assert calls.encode(found) == plain
    assert [one.batches for one in answered] == [[], [], []]
    answer = SearchManyAnswer([hits(LARGE_ROWS), hits(3)])
    plain = calls.encode(answer)
    assert whole(await encoded(node, answer)) == plain
    assert [batch.ids for batch in answer.batches] == [[], []]
    alone = hits(LARGE_ROWS)
    await encoded(node, alone)
    assert len(alone.ids) == LARGE_ROWS


def test_hits_without_metadata_weigh_something() -> None:
    assert calls.batch_bytes(hits(1000)) > 20_000


def test_what_one_shard_alone_has_found_is_given_on_as_it_is() -> None:
    """It is in order: to order ten thousand hits once more held the event loop for a tenth of a second."""
    found = _Hits([hits(LARGE_ROWS), hits(0)], [4, 4])
    told = merged([found], LARGE_ROWS, 2)
    assert all(one is other for one, other in zip(told.batches, found.batches, strict=True))
    assert told.places == [[4] * LARGE_ROWS, []]


async def test_whose_hits_of_a_part_are_is_told_beside_the_event_loop() -> None:
    """Of many vectors there may be hundreds of thousands in each part of a call."""

    class Places(list[int]):
        walked = 0

        def __iter__(self) -> Iterator[int]:
            Places.walked += 1
            return super().__iter__()

    part: Any = SimpleNamespace(first=1, members=[None] * 2)
    waiting: Any = [SimpleNamespace(place=place) for place in (0, 3, 5)]
    told = _hits(part, [Together(hits(LARGE_ROWS), Places([0, 1] * (LARGE_ROWS // 2)), [7, 7])], waiting)
    assert not Places.walked
    searches, call = NodeSearches(node := Node(), None, None), SimpleNamespace(count=0)  # type: ignore[arg-type]
    call.request = SimpleNamespace(k=LARGE_ROWS)
    merged_ = await searches._merged([told], call)  # type: ignore[arg-type]
    assert node.beside == 1 and merged_.places == [[3, 5] * (LARGE_ROWS // 2)]
