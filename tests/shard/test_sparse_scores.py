"""Scores of sparse vectors against plain Python, bit for bit: whatever is indexed, dead, merged, purged or has no
room."""

from __future__ import annotations

import json
import random
import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from needle.base.sparse import SPARSE_KIND, asked, query_of
from needle.shard.fields import payload_index
from needle.shard.fields.run_format import decode, encode
from needle.shard.fields.run_making import run_of, sparse_run
from needle.shard.fields.sparse_scores import SparseScores
from needle.shard.fields.weight_columns import Weights
from proof.checkers.sparse import ranked_sparse
from shard.test_payload_index import PLENTY, Store, made

INDICES = [0, 1, 2, 3, 7, 11, 2**31, 2**32 - 1, *range(100, 140)]


def vector(rng: random.Random, most: int = 12) -> dict[str, Any]:
    indices = rng.sample(INDICES, rng.randint(0, most))
    return {"indices": indices, "values": [rng.choice([rng.gauss(0, 1), rng.random(), 1, 0]) for _ in indices]}


def metadata(rng: random.Random) -> Any:
    good = {"s": vector(rng), "n": 1}
    odd = {"s": rng.choice([7, None, "x", [1], {"indices": [1, 1], "values": [1, 2]}, {"indices": [3], "values": []}])}
    return rng.choice([good, good, good, odd, {"t": vector(rng)}, None])


def found(index: Any, query: Any, end: int, live: int, among: BitMap) -> list[tuple[str, float]]:
    ordinals, scores = SparseScores(index, "s", asked(query_of({"s": query})), end, among, live).scores()
    assert len(set(ordinals.tolist())) == len(ordinals)
    pairs = zip(ordinals.tolist(), scores.tolist(), strict=True)
    return sorted(((f"{at:05}", score) for at, score in pairs), key=lambda one: (-one[1], one[0]))


def expected(store: Store, query: Any, live: BitMap, among: BitMap) -> list[tuple[str, float]]:
    def value(at: int) -> Any:
        decoded = json.loads(store.rows[at]) if store.rows[at] else None
        return decoded.get("s") if isinstance(decoded, dict) else None

    return ranked_sparse({f"{at:05}": value(at) for at in live}, query, lambda name: int(name) in among)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 300), st.sampled_from([PLENTY, 1, 9000]), st.sampled_from([1, 50, 1 << 15])
)
def test_scores_are_those_of_plain_python(seed: int, count: int, bytes_max: int, merge_max: int) -> None:
    rng = random.Random(seed)
    store, index, budget = made(bytes_max=bytes_max)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payload_index, "MERGE_MAX", merge_max)
        dead = BitMap()
        while len(store.rows) < count:
            store.append(index, *(metadata(rng) for _ in range(rng.choice([1, 7, 90]))))
            end = len(store.rows)
            dead |= BitMap(at for at in range(end) if rng.random() < 0.1)
            live = BitMap(range(end)) - dead
            among = live & BitMap(at for at in range(end) if rng.random() < rng.choice([0.05, 0.9]))
            query = vector(rng, rng.choice([2, 30]))
            query = query if query["indices"] else {"indices": [3], "values": [0.5]}
            assert found(index, query, end, len(live), among) == expected(store, query, live, among)
            early = BitMap(at for at in live if at < end // 2)  # an older view
            assert found(index, query, end // 2, len(early), early) == expected(store, query, early, early)
            if rng.random() < 0.5:
                store.gone |= dead
            while budget.waits:
                budget.work()
            assert found(index, query, end, len(live), among) == expected(store, query, live, among)


@pytest.mark.parametrize("every", [1, 400])
def test_a_score_is_the_same_bits_wherever_the_document_lies(every: int) -> None:
    """Sums of many different weights, of an index that all documents have and of one that few have."""
    rng = random.Random(every)
    indices = list(range(200))
    rows = [
        {"s": {"indices": indices, "values": [rng.gauss(0, 1) * 10 ** rng.randint(-6, 6) for _ in indices]}}
        if not at % every
        else {"s": {"indices": [999], "values": [1]}}
        for at in range(1000)
    ]
    query = {"indices": indices[::-1], "values": [rng.gauss(0, 1) for _ in indices]}
    want = None
    for bytes_max in (PLENTY, 1):
        store, index, _ = made(*rows, bytes_max=bytes_max)
        live = BitMap(range(1000))
        want = expected(store, query, live, live) if want is None else want
        assert found(index, query, 1000, 1000, live) == want
        few = BitMap(range(0, 1000, 7))
        assert found(index, query, 1000, 1000, few) == [one for one in want if int(one[0]) in few]


def test_what_has_no_room_is_read_and_what_has_is_not() -> None:
    rows = [{"s": {"indices": [n % 7, 50], "values": [n, 0.5]}} for n in range(3000)]
    for bytes_max, reads in ((PLENTY, False), (1, True)):
        store, index, _ = made(*rows, bytes_max=bytes_max)
        live, query = BitMap(range(3000)), {"indices": [3], "values": [1]}
        assert len(found(index, query, 3000, 3000, live)) == 429
        store.read = 0
        assert len(found(index, query, 3000, 3000, live)) == 429
        assert (store.read > 0) == reads


def test_a_run_of_sparse_vectors_is_the_same_after_it_was_a_file() -> None:
    documents = [{"s": {"indices": [9, 4], "values": [0.1, 2]}}, {"s": 4}, {"s": {"indices": [4], "values": [-1]}}, 3]
    key = (("s",), SPARSE_KIND)
    run = run_of(key[0], 3, 9, [3, 4, 6, 8], documents, kind=key[1])
    data = b"".join(bytes(part) for part in encode(5, key, 77, run))
    again = decode(data, 5, key, 77)
    assert again is not None and again.marks[0] == run.marks[0] == BitMap([3, 6])
    column, other = again.columns["sparse"], run.columns["sparse"]
    assert isinstance(column, Weights) and isinstance(other, Weights)
    assert column.keys.tolist() == [4, 9] and column.starts.tolist() == [0, 2, 3]
    assert column.ordinals.tolist() == other.ordinals.tolist() == [3, 6, 3]
    assert np.array_equal(column.weights, other.weights) and column.weights.dtype == np.float32
    assert data == b"".join(bytes(part) for part in encode(5, key, 77, run))  # of the same rows the same bytes


def test_weights_stay_beside_their_ordinals_when_columns_are_merged() -> None:
    rng = random.Random(8)
    documents = [{"s": vector(rng)} for _ in range(60)]
    whole = sparse_run(("s",), 0, 60, range(60), documents).columns["sparse"]
    cuts = [0, 7, 8, 40, 60]
    parts = [
        sparse_run(("s",), first, end, range(first, end), documents[first:end]).columns["sparse"]
        for first, end in pairwise(cuts)
    ]
    merged = Weights.merged(parts)
    assert isinstance(whole, Weights)
    for name in ("keys", "starts", "ordinals", "weights"):
        assert np.array_equal(getattr(merged, name), getattr(whole, name)), name


def test_documents_that_are_read_take_memory_as_arrays_and_not_as_lists() -> None:
    values = [round(n / 7, 3) for n in range(1000)]
    rows = [{"s": {"indices": list(range(1000, 2000)), "values": values}} for _ in range(300)]
    _, index, _ = made(*rows, bytes_max=1)
    live, query = BitMap(range(300)), {"indices": [1001], "values": [1]}
    assert len(found(index, query, 300, 300, live)) == 300  # from now on it is known how long they are
    tracemalloc.start()
    try:
        assert len(found(index, query, 300, 300, live)) == 300
        assert tracemalloc.get_traced_memory()[1] < 18_000_000
    finally:
        tracemalloc.stop()
