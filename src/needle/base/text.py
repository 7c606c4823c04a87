"""What a collection says of the text that it can be searched by, and what such a search asks of shards. Plain values.

Scores are BM25 (Robertson and Zaragoza 2009) with K1 and B, and with the statistics of the whole cluster: shards are
asked for theirs first, then for scores with the sums. So neither hits nor scores depend on how documents are spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

K1: Final = 1.2
"""How fast the score of a term that is repeated in a document saturates."""
B: Final = 0.75
"""How far the length of a document counts: 0 not at all, 1 in full."""
KEYWORDS_BYTES_MAX: Final = 4096
"""Of one search."""
NO_LANGUAGE: Final = "none"
LANGUAGES: Final = (
    NO_LANGUAGE, "danish", "dutch", "english", "finnish", "french", "german", "hungarian", "italian", "norwegian",
    "portuguese", "romanian", "russian", "spanish", "swedish", "turkish",
)  # fmt: skip
"""By whose rules endings are taken off words; with `none` words are found as they are written."""
ANALYZER_VERSION: Final = 1
"""Of how a text becomes words (shard.analysis). Texts of collections that were made with another one stay with that."""


class TextField(msgspec.Struct, frozen=True, kw_only=True):
    """By which text documents are found with `keywords`. field: the path of a field of metadata with a text, or a list
    of texts. language: one of LANGUAGES. version: of how a text becomes words."""

    field: str
    language: str = "english"
    version: int = ANALYZER_VERSION


class TextQuery(msgspec.Struct, frozen=True, array_like=True):
    """The part of a text search that a shard is asked for. text: of the collection, by the catalog. weights: of the
    query's different words in their order, from the statistics of all shards; [] to ask for a shard's statistics.
    average: words of a document, over all shards."""

    text: TextField
    weights: list[float] = []
    average: float = 0.0


class Statistics(msgspec.Struct, frozen=True, array_like=True):
    """Of the documents that the caller may see. documents: with a word at least; words: of all these; having: how many
    have each of the query's different words."""

    documents: int
    words: int
    having: list[int]


def added(parts: Sequence[Statistics]) -> Statistics:
    """Of several shards. Raises ValueError if they tell of different words."""
    if len({len(part.having) for part in parts}) > 1:
        raise ValueError("parts of different words")
    having = [sum(counts) for counts in zip(*(part.having for part in parts), strict=True)]
    return Statistics(sum(one.documents for one in parts), sum(one.words for one in parts), having)


def weights_of(found: Statistics) -> tuple[list[float], float]:
    """The weight of each of the query's words, 0 for one that no document has, and the average length. A weight is
    never negative, as Lucene has it: ln(1 + (N - n + 0.5) / (n + 0.5)).

    One process computes them for all shards: the last bit of a logarithm is the platform's."""
    total = found.documents
    weights = [math.log1p((total - n + 0.5) / (n + 0.5)) if n else 0.0 for n in found.having]
    return weights, found.words / total if total else 0.0
