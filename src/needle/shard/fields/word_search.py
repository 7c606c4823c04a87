"""What the documents of a shard say of the words of a query: the statistics of BM25, and scores.

Invariants: a document counts, and has a score, if it is in the set that was asked for, whatever the index has of
others, and whether the index has it or it has to be read. A score is a sum in the order of the query's words of
products and quotients of float64, which are the same on every machine: so equal documents have equal scores on all
replicas, and however they are spread over shards.

Threads: any; one object is one search's. It must not know vectors, views or the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from needle.base.text import K1, B, Statistics, TextField
from needle.shard.fields.builders import Builders
from needle.shard.fields.field_index import PRESENT, Path, Run
from needle.shard.fields.payload_index import PayloadIndex
from needle.shard.fields.run_making import kind_of, words_in
from needle.shard.fields.value_columns import Texts, bitmap

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Ordinals = npt.NDArray[np.uint32]
DENSE: Final = 16
"""Of postings that are at least one part in so many of a run's ordinals a mask is made; fewer are sorted."""


class Postings(NamedTuple):
    """Of one word: the documents that have it, ascending, and how often each does."""

    ordinals: Ordinals
    times: Counts


class WordSearch:
    """The words of a query in the documents below `end` of one collection."""

    def __init__(
        self,
        index: PayloadIndex,
        text: TextField,
        words: Sequence[tuple[bytes, int]],
        end: int,
        among: BitMap,
        live: int,
        builders: Builders | None = None,
        go_on: Callable[[], None] = lambda: None,
    ) -> None:
        """words: different ones in their order, and how often the query has each. among: the ordinals that count, all
        below `end`. live: how many documents there are. builders, go_on: as of PayloadIndex.within. Raises
        StorageError, BeingIndexed."""
        self._words = [Texts.key(word) for word, _ in words]
        self._times = [times for _, times in words]
        self._go_on, self._among = go_on, among
        path: Path = tuple(text.field.split("."))
        state = index.postings((path, kind_of(text)), end, live, builders, go_on)
        self._runs = state.runs
        self._read = _Read()
        for ordinal, document in index.documents(among & BitMap(range(state.end, max(end, state.end))), path, go_on):
            self._read.add(ordinal, words_in(document, path, text), self._words)

    def statistics(self) -> Statistics:
        documents, length, having = self._read.documents, self._read.length, [0] * len(self._words)
        for run in self._runs:
            self._go_on()
            there, gone = run.marks[PRESENT] & self._among, run.marks[PRESENT] - self._among
            documents += len(there)
            # Most runs have few dead documents: what is left is known from these.
            length += _length(there, run) if len(there) < len(gone) else run.words - _length(gone, run)
            for at, word in enumerate(self._words):
                if (found := _postings(run, word)) is not None:
                    having[at] += bitmap(found.ordinals, ascending=True).intersection_cardinality(self._among)
        for _, times in self._read.times.values():
            having = [count + bool(one) for count, one in zip(having, times, strict=True)]
        return Statistics(documents, length, having)

    def scores(self, weights: Sequence[float], average: float) -> tuple[Counts, Floats]:
        """Of the documents that have a word of the query: their ordinals, ascending, and scores. weights: of each word;
        average: words of a document."""
        asked = [weight * times for weight, times in zip(weights, self._times, strict=True)]
        found = list(self._scored(asked, average))
        ordinals = [one for one, _ in found]
        scores = [one for _, one in found]
        return np.concatenate([np.zeros(0, np.int64), *ordinals]), np.concatenate([np.zeros(0), *scores])

    def _scored(self, weights: Sequence[float], average: float) -> Iterator[tuple[Counts, Floats]]:
        for run in self._runs:
            self._go_on()
            parts = [_postings(run, word) for word in self._words]
            here = having([part.ordinals for part in parts if part is not None], run) & self._among
            if not here:
                continue
            places = places_of(here, run)
            scores, norms = np.zeros(len(places)), _norms(run.lengths()[places], average)
            for part, weight in zip(parts, weights, strict=True):
                if part is not None:
                    at, hit = matching(places, part.ordinals, run)
                    scores[at] += _score(weight, part.times[hit], norms[at])
            yield places + run.first, scores
        if read := sorted(self._read.times):
            norms = _norms(np.array([self._read.times[ordinal][0] for ordinal in read]), average)
            all_times = np.array([self._read.times[ordinal][1] for ordinal in read])
            scores = np.zeros(len(read))
            for which, weight in enumerate(weights):
                at = np.flatnonzero(all_times[:, which])
                scores[at] += _score(weight, all_times[at, which], norms[at])
            yield np.array(read, np.int64), scores


class _Read:
    """Documents that the index does not have. documents: with a word at least; length: words of these; times: of those
    with words of the query their length, and how often they have each."""

    def __init__(self) -> None:
        self.documents = self.length = 0
        self.times: dict[int, tuple[int, list[int]]] = {}

    def add(self, ordinal: int, found: Sequence[bytes], wanted: Sequence[bytes]) -> None:
        if found:
            self.documents += 1
            self.length += len(found)
            counts = Counter(found)
            if any(times := [counts[word] for word in wanted]):
                self.times[ordinal] = len(found), times


def _postings(run: Run, word: bytes) -> Postings | None:
    column = run.columns.get("words")
    if column is None or len(word) > column.keys.dtype.itemsize:
        return None
    at = column.position(word, "left")
    if at == len(column.keys) or column.keys[at] != word:
        return None
    owners = column.ordinals[column.starts[at] : column.starts[at + 1]]
    first = np.flatnonzero(np.concatenate(([True], owners[1:] != owners[:-1])))
    return Postings(owners[first], np.diff(np.append(first, len(owners))))


def having(parts: Sequence[Ordinals], run: Run) -> BitMap:
    """The documents of a run that have one of the words, or indices."""
    total = sum(map(len, parts))
    if not total:
        return BitMap()
    if total * DENSE < run.end - run.first:
        return bitmap(np.unique(np.concatenate(parts)), ascending=True)
    mask = np.zeros(run.end - run.first, np.bool_)
    for part in parts:
        mask[part - np.uint32(run.first)] = True
    return bitmap((np.flatnonzero(mask) + run.first).astype(np.uint32), ascending=True)


def places_of(ordinals: BitMap, run: Run) -> Counts:
    """Where these are among the ordinals of a run."""
    return np.array(ordinals.to_array(), np.int64) - run.first


def _length(ordinals: BitMap, run: Run) -> int:
    """How many words these documents have."""
    return int(run.lengths()[places_of(ordinals, run)].sum()) if ordinals else 0


def matching(places: Counts, ordinals: Ordinals, run: Run) -> tuple[Counts, npt.NDArray[np.bool_]]:
    """Which of the places have one of the ordinals, and which of these are at one."""
    owners = ordinals.astype(np.int64) - run.first
    at = np.minimum(np.searchsorted(places, owners), len(places) - 1)
    hit = places[at] == owners
    return at[hit], hit


def _norms(lengths: npt.NDArray[np.integer], average: float) -> Floats:
    """What a document's length adds below the line; see `_score`."""
    share: Floats = lengths / average
    return K1 * ((1 - B) + B * share)


def _score(weight: float, times: Counts, norms: Floats) -> Floats:
    score: Floats = weight * (times * (K1 + 1) / (times + norms))
    return score
