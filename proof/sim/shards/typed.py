"""Collections whose vectors are of a type that the seed draws: a document's vector follows from its id, so whoever
reads it knows what is stored, and how far it is. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from needle.base.dtypes import DType
from needle.base.model import Hit
from proof.checkers.replay import TOLERANCE, distances
from proof.sim.machine import stream

_NUMBERS: dict[DType, Any] = {DType.FLOAT32: np.float32, DType.FLOAT16: np.float16, DType.INT8: np.int8}
BITS_SHARE, BITS_WIDTH = 0.25, 64
"""Of the runs so many have bits; and how many of them a vector has."""


def has_bits(seed: int) -> bool:
    """Whether the vectors of a run's collections are bits."""
    return stream(seed, "bits").random() < BITS_SHARE


def types_of(seed: int, names: Iterable[str], width: int) -> tuple[dict[str, DType], int]:
    """Of collections, and how long the vectors of all of them are, `width` where any length will do. All are bits, or
    none: an alias leads from one to the other."""
    if has_bits(seed):
        return dict.fromkeys(names, DType.BIT), BITS_WIDTH
    return {name: stream(seed, f"type of {name}").choice(list(_NUMBERS)) for name in names}, width


def vector_of(key: str, dimensions: int, types: Mapping[str, DType]) -> Any:
    """A document's, as it is given: some of its numbers have to be rounded for float16. types: of collections; the id
    begins with the name of its own, and a point."""
    rng, name = np.random.default_rng(zlib.crc32(key.encode())), key.partition(".")[0]
    if types[name] is DType.BIT:  # those of one call are all given one by one, or all packed
        bits = rng.integers(0, 2, dimensions)
        return bits if name == min(types) else np.packbits(bits)
    if types[name] is DType.INT8:
        return rng.integers(1, 128, dimensions) * rng.choice([-1, 1], dimensions)
    return rng.standard_normal(dimensions).astype(np.float32)


def query_of(drawn: Sequence[float], types: Mapping[str, DType]) -> Any:
    """A query of collections of these types."""
    numbers = np.array(drawn, np.float32)
    return numbers > 0 if DType.BIT in types.values() else numbers


def wrong_hit(hits: Iterable[Hit], query: Any, types: Mapping[str, DType]) -> str:
    """What is wrong with the vectors or the distances of hits under cosine, or of bits; "" for nothing."""
    for hit in hits:
        dtype = types[hit.id.partition(".")[0]]
        given = vector_of(hit.id, len(query), types)
        if dtype is DType.BIT:
            if wrong := _wrong_bits(hit, query, given):
                return wrong
            continue
        kept = given.astype(_NUMBERS[dtype])
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


def _wrong_bits(hit: Hit, query: Any, given: Any) -> str:
    kept = given if len(given) < len(query) else np.packbits(given)
    if not np.array_equal(hit.vector, kept):
        return f"{hit.id} of bits has {np.asarray(hit.vector).tolist()}, not {kept.tolist()}"
    far = int(np.count_nonzero(np.unpackbits(kept.astype(np.uint8)) != query))
    return "" if hit.distance == far else f"{hit.id} of bits is at {hit.distance}, truly {far}"
