"""Collections whose vectors are of a type that the seed draws: a document's vector follows from its id, so whoever
reads it knows what is stored, and how far it is. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from needle.base.dtypes import DType
from needle.base.model import Hit
from proof.checkers.replay import TOLERANCE, distances
from proof.sim.machine import stream

_NUMBERS: dict[DType, Any] = {DType.FLOAT32: np.float32, DType.FLOAT16: np.float16, DType.INT8: np.int8}


def dtype_of(seed: int, name: str) -> DType:
    """Of a collection."""
    return stream(seed, f"type of {name}").choice(list(DType))


def vector_of(key: str, dimensions: int, types: Mapping[str, DType]) -> Any:
    """A document's, as it is given: some of its numbers have to be rounded for float16. types: of collections; the id
    begins with the name of its own, and a point."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if types[key.partition(".")[0]] is DType.INT8:
        return rng.integers(1, 128, dimensions) * rng.choice([-1, 1], dimensions)
    return rng.standard_normal(dimensions).astype(np.float32)


def wrong_hit(hits: Iterable[Hit], query: Any, types: Mapping[str, DType]) -> str:
    """What is wrong with the vectors or the distances of hits under cosine; "" for nothing."""
    for hit in hits:
        dtype = types[hit.id.partition(".")[0]]
        kept = vector_of(hit.id, len(query), types).astype(_NUMBERS[dtype])
        if dtype is DType.FLOAT32:
            same = np.allclose(hit.vector, kept / np.linalg.norm(kept), atol=1e-6)
        else:
            same = np.array_equal(hit.vector, kept.astype(np.float32))
        if not same:
            return f"{hit.id} of {dtype} has {np.asarray(hit.vector).tolist()}, not {kept.tolist()}"
        (far,) = distances(query, kept[None], "cosine")
        if abs(hit.distance - far) > TOLERANCE:
            return f"{hit.id} of {dtype} is at {hit.distance}, truly {far:.6f}"
    return ""
