"""The words of queries against plain Python, bit for bit: whatever is indexed, dead, merged, purged or has no room."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from needle.base.text import TextField, added, weights_of
from needle.shard.analysis import asked_words
from needle.shard.fields import payload_index
from needle.shard.fields.run_format import decode, encode
from needle.shard.fields.run_making import kind_of, run_of
from needle.shard.fields.word_search import WordSearch
from proof.checkers.words import ranked
from shard.test_payload_index import PLENTY, Store, made

TEXT = TextField(field="in.body")
VOCABULARY = ["alpha", "beta", "running", "runs", "max_retries", "getUserId", "x" * 80, "x" * 79 + "y", "Ünï", "9"]


def body(rng: random.Random) -> Any:
    words = [rng.choice(VOCABULARY) for _ in range(rng.choice([0, 1, 3, 9]))]
    text: Any = " ".join(words)
    return rng.choice(
        [{"in": {"body": text}}, {"in": {"body": [text, "alpha", 4]}}, {"in": {"body": 7}}, {"in": 3}, None]
    )


def found(index: Any, keywords: str, end: int, live: BitMap, among: BitMap) -> list[tuple[str, float]]:
    """By two rounds, as a shard that is alone."""
    words = asked_words(keywords, TEXT)
    statistics = WordSearch(index, TEXT, words, end, live, len(live)).statistics()
    weights, average = weights_of(added([statistics]))
    if not average:
        return []
    ordinals, scores = WordSearch(index, TEXT, words, end, among, len(live)).scores(weights, average)
    assert len(set(ordinals.tolist())) == len(ordinals)
    pairs = zip(ordinals.tolist(), scores.tolist(), strict=True)
    return sorted(((f"{at:05}", score) for at, score in pairs), key=lambda one: (-one[1], one[0]))


def expected(store: Store, keywords: str, live: BitMap, among: BitMap) -> list[tuple[str, float]]:
    import json

    def text(at: int) -> Any:
        value = json.loads(store.rows[at]) if store.rows[at] else None
        inner = value.get("in") if isinstance(value, dict) else None
        return inner.get("body") if isinstance(inner, dict) else None

    return ranked({f"{at:05}": text(at) for at in live}, keywords, TEXT, lambda name: int(name) in among)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 300), st.sampled_from([PLENTY, 1, 6000]), st.sampled_from([1, 50, 1 << 15])
)
def test_scores_are_those_of_plain_python(seed: int, count: int, bytes_max: int, merge_max: int) -> None:
    rng = random.Random(seed)
    store, index, budget = made(bytes_max=bytes_max)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payload_index, "MERGE_MAX", merge_max)
        dead = BitMap()
        while len(store.rows) < count:
            store.append(index, *(body(rng) for _ in range(rng.choice([1, 7, 90]))))
            end = len(store.rows)
            dead |= BitMap(at for at in range(end) if rng.random() < 0.1)
            live = BitMap(range(end)) - dead
            among = live & BitMap(at for at in range(end) if rng.random() < rng.choice([0.05, 0.9]))
            keywords = " ".join(rng.sample(VOCABULARY, rng.choice([1, 2, 5])))
            assert found(index, keywords, end, live, among) == expected(store, keywords, live, among)
            early = BitMap(
                at for at in live if at < end // 2
            )  # an older view: what it does not have counts for nothing
            assert found(index, keywords, end // 2, early, early) == expected(store, keywords, early, early)
            if rng.random() < 0.5:
                store.gone |= dead
            while budget.waits:
                budget.work()
            assert found(index, keywords, end, live, among) == expected(store, keywords, live, among)


def test_a_text_that_has_no_room_is_read_and_one_that_has_is_not() -> None:
    rows = [{"in": {"body": f"{'abcdefg'[n % 7]}zz alpha"}} for n in range(3000)]
    for bytes_max, reads in ((PLENTY, False), (1, True)):
        store, index, budget = made(*rows, bytes_max=bytes_max)
        live = BitMap(range(3000))
        assert len(found(index, "dzz", 3000, live, live)) == 429
        store.read = 0
        assert len(found(index, "dzz", 3000, live, live)) == 429
        assert (store.read > 0) == reads
        assert budget.used <= max(bytes_max, budget.used if not reads else 0)


def test_a_run_of_words_is_the_same_after_it_was_a_file() -> None:
    documents = [{"in": {"body": text}} for text in ("alpha alpha beta", "beta", 4, "x" * 90)]
    run = run_of(("in", "body"), 3, 9, [3, 4, 6, 8], documents, kind=kind_of(TEXT))
    key = (("in", "body"), kind_of(TEXT))
    data = b"".join(bytes(part) for part in encode(5, key, 77, run))
    again = decode(data, 5, key, 77)
    assert again is not None and again.lengths().tolist() == run.lengths().tolist() == [3, 1, 0, 0, 0, 1]
    assert np.array_equal(again.columns["words"].ordinals, run.columns["words"].ordinals)
    assert again.words == 5 and decode(data, 5, (key[0], "english-2"), 77) is None
    assert data == b"".join(bytes(part) for part in encode(5, key, 77, run))  # of the same rows the same bytes
