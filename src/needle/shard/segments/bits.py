"""How many bits of two vectors differ, counted on the bytes that are stored: whole numbers, so that all ways of
counting them give the same float32. It knows neither files nor ordinals.

Measured, 1,024 bits: faiss takes 10 ns a row, NumPy 28 to 210 (docs/adr/0128).
"""

from __future__ import annotations

from typing import Final

import faiss
import numpy as np

from needle.base.dtypes import StoredRows
from needle.shard.arrays import Floats

_FLOAT: Final = np.float32

WORD_BYTES: Final = 8
"""faiss compares whole words; not every release takes other lengths."""


def differing(queries: StoredRows, rows: StoredRows) -> Floats:
    """(nq, n) float32. queries: (nq, bytes), rows: (n, bytes) uint8."""
    left, right = np.ascontiguousarray(queries), np.ascontiguousarray(rows)
    if left.shape[1] % WORD_BYTES or not left.size or not right.size:
        return np.stack([_counted(right ^ query) for query in left]) if len(left) else np.empty((0, len(right)), _FLOAT)
    counts = np.empty((len(left), len(right)), np.int32)
    arrays = [faiss.swig_ptr(array) for array in (left, right, counts)]
    faiss.hammings(*arrays[:2], len(left), len(right), left.shape[1], arrays[2])  # type: ignore[attr-defined]
    found: Floats = counts.astype(_FLOAT)
    return found


def differing_pairs(queries: StoredRows, rows: StoredRows) -> Floats:
    """(n,) float32: of queries[i], or of the only query, and rows[i]."""
    return _counted(rows ^ queries)


def _counted(rows: StoredRows) -> Floats:
    """(n,) how many bits of each row are set."""
    counts: Floats = np.bitwise_count(rows).sum(axis=1, dtype=np.uint32).astype(_FLOAT)
    return counts
