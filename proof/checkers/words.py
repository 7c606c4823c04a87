"""BM25 and reciprocal rank fusion in plain Python: which documents a search by words, or by both, has to find, with
which scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from needle.base.text import K1, B, TextField
from needle.shard.analysis import analyzed

Ranks = tuple[int | None, ...]


class Weights(NamedTuple):
    """What the statistics of documents make of a query. words: each with its weight, in their order. average: words of
    a document that has any."""

    words: list[tuple[bytes, float]]
    average: float


def counted(texts: Mapping[str, Any], text: TextField) -> dict[str, Counter[bytes]]:
    """The words of the documents that have any, by id, and how often each has them."""
    counts = {name: Counter(word.encode() for word in analyzed(value, text)) for name, value in texts.items()}
    return {name: words for name, words in counts.items() if words}


def weighed(texts: Mapping[str, Any], keywords: str, text: TextField) -> Weights:
    """The weights of the keywords' words by the statistics of these documents."""
    counts = counted(texts, text)
    total, average = len(counts), sum(words.total() for words in counts.values()) / max(1, len(counts))
    weights: list[tuple[bytes, float]] = []
    for word, times in sorted(Counter(word.encode() for word in analyzed(keywords, text)).items()):
        having = sum(word in words for words in counts.values())
        weight = math.log1p((total - having + 0.5) / (having + 0.5)) * times if having else 0.0
        weights.append((word, weight))
    return Weights(weights, average)


def ranked_by(
    weights: Weights, texts: Mapping[str, Any], text: TextField, allowed: Callable[[str], bool] = lambda _: True
) -> list[tuple[str, float]]:
    """(id, score) of all documents that are allowed and have one of the words: the highest score first, then by id."""
    counts = {name: words for name, words in counted(texts, text).items() if allowed(name)}
    scores: dict[str, float] = {}
    for word, weight in weights.words if weights.average else ():
        for name, words in counts.items():
            if often := words[word]:
                norm = K1 * ((1 - B) + B * (words.total() / weights.average))
                scores[name] = scores.get(name, 0.0) + weight * (often * (K1 + 1) / (often + norm))
    return sorted(scores.items(), key=lambda one: (-one[1], one[0]))


def ranked(
    texts: Mapping[str, Any], keywords: str, text: TextField, allowed: Callable[[str], bool] = lambda _: True
) -> list[tuple[str, float]]:
    """The same by the statistics of all these texts: those that are not allowed count in them all the same."""
    return ranked_by(weighed(texts, keywords, text), texts, text, allowed)


def fused(
    near: Sequence[str], words: Sequence[str], k: float, weights: Sequence[float]
) -> list[tuple[str, float, Ranks]]:
    """(id, score, both ranks) of the documents of two lists, the best first, then by id."""
    return all_fused([near, words], k, weights)


def all_fused(lists: Sequence[Sequence[str]], k: float, weights: Sequence[float]) -> list[tuple[str, float, Ranks]]:
    """The same of any lists."""
    places = [{name: rank for rank, name in enumerate(one, start=1)} for one in lists]
    found: list[tuple[str, float, Ranks]] = []
    for name in {name for one in lists for name in one}:
        score = 0.0
        for ranks, weight in zip(places, weights, strict=True):
            if name in ranks:
                score += weight / (k + ranks[name])
        found.append((name, score, tuple(ranks.get(name) for ranks in places)))
    return sorted(found, key=lambda one: (-one[1], one[0]))
