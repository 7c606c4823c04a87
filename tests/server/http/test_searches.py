"""What handlers of searches, and of documents with several vectors, do beside the event loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.errors import InvalidArgument
from needle.base.filters.builder import Filter
from needle.base.model import HitBatch, Metric, WriteResult
from needle.client.router.routes import BESIDE_BYTES
from needle.protocol.calls import batch_bytes
from needle.server.http import bodies, events
from needle.server.http.documents import put_document
from needle.server.http.hybrid import hybrid_search
from needle.server.http.hybrid_bodies import Fusion, HybridSearch
from needle.server.http.searches import search_many
from needle.server.http.sparse import SparseVector


class Beside:
    """Threads: says what was done in them."""

    def __init__(self) -> None:
        self.ran = 0
        self.there = False

    async def __call__(self, work: Any, *arguments: Any) -> Any:
        self.ran, self.there = self.ran + 1, True
        try:
            return work(*arguments)
        finally:
            self.there = False


def call_of(body: Any, **router: Any) -> tuple[Any, Beside]:
    threads = Beside()

    async def beside(work: Any) -> Any:
        return await threads(work)

    share = SimpleNamespace(take=lambda count: None)
    reading = SimpleNamespace(mode="strong", max_staleness=0.0, session=False)
    call = SimpleNamespace(
        body=body, collection="c", path={"id": "a"}, packed=False, router=SimpleNamespace(**router), blocking=threads,
        share=share, beside=beside, reading=lambda: reading, metadata=lambda data: None,
    )  # fmt: skip
    return call, threads


def hits(count: int, vectors: bytes = b"", name: str = "d") -> HitBatch:
    ids = [f"{name}{n}" for n in range(count)]
    return HitBatch(ids, [float(n) for n in range(count)], [1] * count, [], vectors, 5, Metric.L2)


@pytest.mark.parametrize(("answers", "large"), [(3, False), (300, True)])
async def test_hits_of_many_searches_are_made_beside_the_loop(answers: int, large: bool) -> None:
    """Each of them is small: as if they were asked alone, the loop would be held for all of them, one by one."""
    batches = [hits(100) for _ in range(answers)]
    assert batch_bytes(batches[0]) < BESIDE_BYTES // 10

    async def routed(*_: Any, **__: Any) -> list[HitBatch]:
        return batches

    call, threads = call_of(bodies.SearchMany(vectors=[[1.0]] * answers), search_many=routed)
    before = threads.ran
    found = await search_many(call)
    assert [len(one) for one in found.results] == [100] * answers
    assert (threads.ran - before > 1) == large, "the request itself is read in a thread"
    assert batches == [], "to give back a million hits takes its time, too"


async def test_named_vectors_of_a_document_are_read_beside_the_loop() -> None:
    """There may be sixteen, each of a million numbers."""
    seen = list[Any]()

    async def routed(*call: Any) -> WriteResult:
        seen.append(call)
        return WriteResult(version=3, index=3)

    class Numbers(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            assert threads.there
            return super().__getitem__(name)

    call, threads = call_of(bodies.PutDocument(vector=[1.0], vectors=Numbers(title=[1.0, 2.0])), insert=routed)
    await put_document(call)
    assert [one.vector for one in seen[0][-1]] == ["title"]


@pytest.mark.parametrize(("numbers", "large"), [(2, False), (1000, True)])
async def test_large_lists_are_fused_beside_the_loop(numbers: int, large: bool) -> None:
    """Vectors of some hits are copied out of those of all candidates."""
    batch = hits(100, bytes(4 * numbers * 100))

    async def routed(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(batch=batch, applied={0: 5}, epoch=1)

    sparse = {"s": SparseVector([1], [1.0])}
    body = HybridSearch(vector=[1.0], sparse=sparse, k=5, with_vectors=True, vector_format="float32")
    call, threads = call_of(body, search=routed)
    found = await hybrid_search(call)
    assert [hit.id for hit in found.hits] == ["d0", "d1", "d2", "d3", "d4"]
    assert (threads.ran > 1) == large, "the request itself is read in a thread"
    call.body = HybridSearch(vector=[1.0], sparse=sparse, fusion=Fusion(weights=[1.0, 1e300]))
    with pytest.raises(InvalidArgument, match=r"fusion\.weights"):
        await hybrid_search(call)


async def test_what_is_watched_for_is_read_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Any]()

    async def begun(call: Any, feed: Any) -> Any:
        return feed

    def watched(collection: str, vector: Any, **how: Any) -> None:
        asked.append((vector.tolist(), how["filter"]))

    class Wanted(dict[str, Any]):
        def items(self) -> Any:
            assert threads.there
            return super().items()

    monkeypatch.setattr(events, "_begun", begun)
    call, threads = call_of(events.Watch(vector=[1.0, 2.0], max_distance=1.0, filter=Wanted(a=1)))
    call.client, call.go_on, call.last_event = SimpleNamespace(watch=watched), lambda: None, ""
    await events.watch(call)
    assert asked == [([1.0, 2.0], Filter.eq("a", 1))] and threads.ran == 1
    call.body = events.Watch(vector=[1.0, 2.0], max_distance=1.0)
    await events.watch(call)
    assert asked[-1][1] is None
