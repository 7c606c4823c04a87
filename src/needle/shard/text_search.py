"""Searches by words in one collection view: what a shard tells of the words of a query, then its best documents.

Invariant: an answer holds the k documents with the highest scores, by (score, id), exactly. Only of more than TIED_MAX
that are tied with the last the oldest count: on all replicas the same, and on all pages, of which none is longer.

It must not know apply or SQLite; the view and the store are arguments.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Final

import msgspec
import numpy as np
from pyroaring import BitMap

from needle.base.config import Limits
from needle.base.errors import Forbidden, invalid
from needle.base.explain import ShardExplanation
from needle.base.model import HitBatch, Metric, SearchRequest, near_enough
from needle.base.text import KEYWORDS_BYTES_MAX, TextQuery
from needle.base.text_checks import check_text
from needle.shard.analysis import asked_words
from needle.shard.apply.validation import check_hits
from needle.shard.documents.projection import projection
from needle.shard.documents.records import CollectionRecord
from needle.shard.documents.store import DocumentStore
from needle.shard.fields.builders import Builders
from needle.shard.fields.word_search import Counts, Floats, WordSearch
from needle.shard.hits import columns, read_documents
from needle.shard.query import Collection, allowed_ordinals, visible_ordinals

WORDS_MAX: Final = 256
"""Different words of one query."""
TIED_MAX: Final = 10_000
"""Of documents with one score so many are read for their ids, or as many as are asked for."""
TIED_ROWS: Final = 2000
"""Of documents with one score so many are read at a time."""


def search_words(
    collection: Collection,
    store: DocumentStore,
    request: SearchRequest,
    applied: int,
    limits: Limits,
    builders: Builders | None,
    go_on: Callable[[], None],
    clock: Callable[[], float],
) -> HitBatch:
    """A shard's part of a search by words: the statistics of all documents that the caller may see, whatever the
    filter; or, by the weights that those of all shards give, the best that the filter allows. Raises InvalidArgument,
    and as WordSearch."""
    asked = request.words
    if asked is None:
        raise invalid("words", None, "what a shard is asked of the keywords")
    if request.bound and request.explain:
        raise Forbidden("explain tells how many documents there are in all, and this API key is for some only")
    check_hits(request, limits)
    check_text(asked.text)
    if not 0 < len(request.keywords.encode(errors="replace")) <= KEYWORDS_BYTES_MAX:
        raise invalid("keywords", request.keywords, f"1 to {KEYWORDS_BYTES_MAX} bytes")
    words = asked_words(request.keywords, asked.text)
    if not words:
        raise invalid("keywords", request.keywords, "a text with a letter or a digit")
    if len(words) > WORDS_MAX:
        raise invalid("keywords", request.keywords, f"at most {WORDS_MAX} different words")
    instants = [clock()]
    counts = not asked.weights
    allow = allowed_ordinals(collection, b"" if counts else request.filter, limits, builders, go_on, request.bound)
    among = visible_ordinals(collection) if allow is None else allow.bitmap
    end, live = collection.record.next_ordinal, collection.record.documents
    instants.append(clock())
    search = WordSearch(collection.payload, asked.text, words, end, among, live, builders, go_on)
    if counts:
        return HitBatch([], [], [], [], b"", applied, Metric.DOT, statistics=search.statistics())
    _check_weights(asked, len(words))
    scored = search.scores(asked.weights, asked.average) if asked.average else None
    found = [] if scored is None else best(*scored, request.k, collection.record, store, go_on)
    instants.append(clock())
    batch = batch_of(found, request, collection.record, store, applied)
    notes = [_told(word, weight) for (word, _), weight in zip(words, asked.weights, strict=True)]
    return explaining(batch, request, collection, len(among), [*instants, clock()], notes)


def explaining(
    batch: HitBatch,
    request: SearchRequest,
    collection: Collection,
    allowed: int,
    instants: list[float],
    notes: list[str],
) -> HitBatch:
    """With how it was found, if that is asked for. allowed: documents. instants: when it began, and when the filter,
    the scores and the documents of the hits were done."""
    if not request.explain:
        return batch
    took = [round(1000 * (after - before), 3) for before, after in pairwise(instants)]
    told = ShardExplanation(
        shard=-1,  # who asked this shard knows its number
        applied_index=batch.applied_index,
        documents=collection.visible,
        allowed=allowed,
        together=1,
        filter_milliseconds=took[0],
        vectors_milliseconds=took[1],
        documents_milliseconds=took[2],
        segments=[],
        notes=notes,
    )
    return msgspec.structs.replace(batch, explained=[told])


def _told(word: bytes, weight: float) -> str:
    return f"the word {word.decode()!r} weighs {weight:.4g}" + ("" if weight else ": no document has it")


def _check_weights(asked: TextQuery, words: int) -> None:
    numbers = [*asked.weights, asked.average]
    if len(asked.weights) != words or not all(math.isfinite(one) and one >= 0 for one in numbers):
        raise invalid("words", asked.weights[:10], f"a weight of each of {words} words, and the average length")


def best(
    ordinals: Counts, scores: Floats, k: int, record: CollectionRecord, store: DocumentStore, go_on: Callable[[], None]
) -> list[tuple[float, int]]:
    """(distance, ordinal) of the k best of these; the distance is the score, below zero."""
    if len(ordinals) > k:
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        better = scores > least
        count = k - int(better.sum())
        tied = np.sort(ordinals[scores == least])[: max(count, TIED_MAX)].tolist()
        kept = _first_ids(tied, count, record, store, go_on)
        found = [*zip(scores[better].tolist(), ordinals[better].tolist(), strict=True), *((least, one) for one in kept)]
    else:
        found = list(zip(scores.tolist(), ordinals.tolist(), strict=True))
    return sorted((-float(score), ordinal) for score, ordinal in found)


def _first_ids(
    ordinals: list[int], count: int, record: CollectionRecord, store: DocumentStore, go_on: Callable[[], None]
) -> list[int]:
    """Of these documents those with the first ids. No more of them are in memory than are asked for and read at a
    time: very many may have one text."""
    if len(ordinals) == count:
        return ordinals
    kept: list[tuple[str, int]] = []
    for start in range(0, len(ordinals), TIED_ROWS):
        go_on()
        part = read_documents(record, store, ordinals[start : start + TIED_ROWS], metadata=False, vectors=False)
        kept = heapq.nsmallest(count, [*kept, *((one.id, ordinal) for ordinal, one in part.items())])
    return [ordinal for _, ordinal in kept]


def batch_of(
    found: list[tuple[float, int]],
    request: SearchRequest,
    record: CollectionRecord,
    store: DocumentStore,
    applied: int,
) -> HitBatch:
    """The hits of `best`, with what of their documents is asked for."""
    found = found[: near_enough([distance for distance, _ in found], Metric.DOT, request)]
    metadata = request.with_metadata or bool(request.order_by)
    ordinals = sorted(BitMap([ordinal for _, ordinal in found]))
    documents = read_documents(record, store, ordinals, metadata=metadata, vectors=request.with_vectors)
    pairs = sorted((distance, documents[ordinal].id, ordinal) for distance, ordinal in found)
    listed, distances = [documents[ordinal] for _, _, ordinal in pairs], [distance for distance, _, _ in pairs]
    made = columns(listed, distances, request, applied, record.spec, projection(request.fields))
    return msgspec.structs.replace(made, metric=Metric.DOT)
