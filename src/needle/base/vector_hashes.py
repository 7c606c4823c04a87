"""Hashes by which equal vectors find each other: rows of an index file, and documents of a backup (docs/adr/0093).

Hashes only propose (a multilinear hash over 32-bit words, mod 2^64; Dietzfelbinger 1996); who must be sure compares
bytes. Backups keep them: another hash would only have their index files built again. Pure.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

_SEED: Final = 0x6E65_6564_6C65
_BLOCK: Final = 1024

Hashes = npt.NDArray[np.uint64]


def row_hashes(rows: npt.NDArray[np.float32]) -> Hashes:
    """(n,) uint64: equal for rows with equal bytes. rows: (n, d) float32."""
    factors = np.random.Generator(np.random.PCG64(_SEED)).integers(0, 2**64, rows.shape[1], dtype=np.uint64) | 1
    words = np.ascontiguousarray(rows).view(np.uint32)
    hashes = np.empty(len(rows), np.uint64)
    for at in range(0, len(rows), _BLOCK):
        block = words[at : at + _BLOCK].astype(np.uint64)
        block *= factors
        # The high bits of each product depend on all bits of the word.
        block ^= block >> np.uint64(29)
        hashes[at : at + _BLOCK] = block.sum(axis=1, dtype=np.uint64)
    return hashes
