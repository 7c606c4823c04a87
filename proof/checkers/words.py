"""BM25 in plain Python: which documents a search by words has to find, with which scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from needle.base.text import K1, B, TextField
from needle.shard.analysis import analyzed


def ranked(
    texts: Mapping[str, Any], keywords: str, text: TextField, allowed: Callable[[str], bool] = lambda _: True
) -> list[tuple[str, float]]:
    """(id, score) of all documents that are allowed and have a word of the keywords: the highest score first, then by
    id. texts: of every document, by id; those that are not allowed count in the statistics all the same."""
    counts = {name: Counter(word.encode() for word in analyzed(value, text)) for name, value in texts.items()}
    counts = {name: words for name, words in counts.items() if words}
    total, average = len(counts), sum(words.total() for words in counts.values()) / max(1, len(counts))
    asked = sorted(Counter(word.encode() for word in analyzed(keywords, text)).items())
    scores: dict[str, float] = {}
    for word, times in asked:
        having = [name for name, words in counts.items() if word in words]
        weight = math.log1p((total - len(having) + 0.5) / (len(having) + 0.5)) * times
        for name in having:
            often, length = counts[name][word], counts[name].total()
            norm = K1 * ((1 - B) + B * (length / average))
            scores[name] = scores.get(name, 0.0) + weight * (often * (K1 + 1) / (often + norm))
    return sorted(((name, score) for name, score in scores.items() if allowed(name)), key=lambda one: (-one[1], one[0]))
