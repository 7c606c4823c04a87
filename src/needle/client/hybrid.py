"""Hits of a vector, of words and of a sparse vector as one list: reciprocal rank fusion (Cormack et al. 2009).

A document's score is the sum of weight / (k + its rank) over all lists, whose ranks begin at 1; where it is not among
the candidates of a list, that adds nothing. So distances and scores, which have no common measure, are not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from needle.base.errors import invalid
from needle.base.model import HitBatch, Metric
from needle.base.plain import refused
from needle.client import values
from needle.client.narrowed import POOL_MAX, pool_for
from needle.client.router.merge import chosen

K_MAX: Final = 1_000_000.0
WEIGHT_MIN, WEIGHT_MAX = 1e-9, 1e9
"""Of a list that counts: sums of shares of other ones would be no numbers, or all the same."""


class RRF(msgspec.Struct, frozen=True, kw_only=True):
    """Reciprocal rank fusion. k: the larger, the less the first ranks count beside the others. weights: of the hits of
    the vector, of those of the words, and of those of the sparse vector, as far as they are asked for: 0, or from 1e-9
    to 1e9; () for all alike."""

    k: float = 60.0
    weights: Sequence[float] = ()


EVEN: Final = RRF()


class Fused(msgspec.Struct, frozen=True):
    """batch: the metric is dot, so that the score is what fusion made. ranks: of each hit among the candidates of each
    list, from 1 on; None where it is not among them."""

    batch: HitBatch
    ranks: list[tuple[int | None, ...]]


def check_fusion(value: Any, lists: int) -> RRF:
    """For so many lists. Raises InvalidArgument."""
    if not isinstance(value, RRF):
        raise refused("fusion", value, "RRF(k=60, weights=(1, 1))")
    given: list[Any] = list(value.weights) if isinstance(value.weights, list | tuple) else [None]
    weights = given or [1.0] * lists
    if len(weights) != lists or not all(map(_is_weight, weights)) or not any(weights):
        allowed = f"{lists} numbers, each 0 or from {WEIGHT_MIN:g} to {WEIGHT_MAX:g}, and not all 0"
        raise refused("fusion.weights", value.weights, allowed)
    if not _is_number(value.k) or not 0 <= value.k <= K_MAX:
        raise refused("fusion.k", value.k, f"a number from 0 to {K_MAX:,.0f}")
    return RRF(k=float(value.k), weights=tuple(map(float, weights)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_weight(value: Any) -> bool:
    return _is_number(value) and (value == 0 or WEIGHT_MIN <= value <= WEIGHT_MAX)


def candidates(k: Any, offset: Any, pool: Any) -> tuple[int, int, int]:
    """k, offset, and how many hits of each list are fused. Raises InvalidArgument."""
    count, left_out = values.check_count(k, "k"), values.check_count(offset, "offset", 0)
    take = count + left_out
    if take > POOL_MAX:
        raise invalid("k", take, f"with offset at most {POOL_MAX} in a hybrid search")
    size = pool_for(take) if pool is None else values.check_count(pool, "pool")
    if not take <= size <= POOL_MAX:
        raise invalid("pool", size, f"at least k and offset together ({take}), at most {POOL_MAX}")
    return count, left_out, size


def fused(lists: Sequence[HitBatch], fusion: RRF, k: int, offset: int, like: str = "", pool: int = 0) -> Fused:
    """The k best of all lists after the first `offset`, by (score, id). A document that changed between the searches is
    shown as the last one of them saw it. like: a document that is no hit; pool: then so many of each are candidates."""
    rows = [_rows(batch, like, pool) for batch in lists]
    ranks = [{name: rank for rank, name in enumerate(one, start=1)} for one in rows]
    scores: dict[str, float] = {}
    weights = fusion.weights or [1.0] * len(lists)
    for places, weight in zip(ranks, weights, strict=True):
        for name, rank in places.items():
            scores[name] = scores.get(name, 0.0) + weight / (fusion.k + rank)
    best = sorted(scores, key=lambda name: (-scores[name], name))[offset : offset + k]
    shown = {name: (which, row) for which, one in enumerate(rows) for name, row in one.items()}
    taken = [shown[name] for name in best]
    batch = msgspec.structs.replace(chosen(lists, taken), distances=[-scores[name] for name in best], metric=Metric.DOT)
    return Fused(batch, [tuple(one.get(name) for one in ranks) for name in best])


def _rows(batch: HitBatch, like: str, pool: int) -> dict[str, int]:
    """Where each candidate is in the batch, the best first."""
    rows = {name: row for row, name in enumerate(batch.ids) if name != like}
    return dict(list(rows.items())[:pool]) if like else rows
