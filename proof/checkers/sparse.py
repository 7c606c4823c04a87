"""Searches by sparse vectors in plain Python: which documents they have to find, with which scores."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any


def as_float32(value: float) -> float:
    """The nearest float32."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def weights_in(value: Any) -> dict[int, float]:
    """By index, of a field of metadata; of what is no sparse vector, none."""
    try:
        pairs = list(zip(value["indices"], value["values"], strict=True))
        whole = all(type(index) is int and 0 <= index < 2**32 for index, _ in pairs)
        weights = {index: as_float32(weight) for index, weight in pairs if type(weight) in (int, float)}
    except (TypeError, KeyError, ValueError, OverflowError, struct.error):
        return {}
    finite = all(map(math.isfinite, weights.values()))
    if not whole or not finite or len(weights) < len(pairs) or len(pairs) > 4096 or len(value) > 2:
        return {}
    return weights


def ranked_sparse(
    documents: Mapping[str, Any], query: Any, allowed: Callable[[str], bool] = lambda _: True
) -> list[tuple[str, float]]:
    """(id, score) of all documents that are allowed and have one of the indices: the highest score first, then by id.
    documents: of each what its field holds."""
    asked, scores = sorted(weights_in(query).items()), dict[str, float]()
    for name, value in documents.items():
        held = weights_in(value)
        if allowed(name) and any(index in held for index, _ in asked):
            total = 0.0
            for index, weight in asked:
                if index in held:
                    total += held[index] * weight
            scores[name] = total
    return sorted(scores.items(), key=lambda one: (-one[1], one[0]))
