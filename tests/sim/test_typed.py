"""The simulation's check of hits of bits: right ones pass, and each way to be wrong is told."""

from __future__ import annotations

import numpy as np
import pytest

from needle.base.dtypes import DType
from needle.base.model import Hit
from proof.sim.shards.typed import BITS_WIDTH, query_of, vector_of, wrong_hit

TYPES = {"a": DType.BIT, "b": DType.BIT}
QUERY = query_of(np.random.default_rng(1).standard_normal(BITS_WIDTH).tolist(), TYPES)


def hit_of(key: str, *, vector: object = None, farther: int = 0) -> Hit:
    given = vector_of(key, BITS_WIDTH, TYPES)
    packed = given if len(given) < BITS_WIDTH else np.packbits(given)
    far = int((np.unpackbits(packed) != QUERY).sum()) + farther
    return Hit(id=key, distance=far, score=-far, vector=packed.astype(np.float32) if vector is None else vector)


def test_both_ways_to_give_bits_are_drawn_and_right_hits_pass() -> None:
    keys = [f"{name}.{n}" for name in TYPES for n in range(10)]
    assert {len(vector_of(key, BITS_WIDTH, TYPES)) for key in keys} == {BITS_WIDTH, BITS_WIDTH // 8}
    assert wrong_hit(map(hit_of, keys), QUERY, TYPES) == ""


@pytest.mark.parametrize("key", ["a.1", "a.2", "b.3", "b.4"])
def test_wrong_hits_are_told(key: str) -> None:
    assert "truly" in wrong_hit([hit_of(key, farther=1)], QUERY, TYPES)
    assert "not" in wrong_hit([hit_of(key, vector=np.zeros(BITS_WIDTH // 8))], QUERY, TYPES)
