"""Hashes by which equal vectors find each other: rows of an index file, and documents of a backup (docs/adr/0093).

Hashes only propose (a multilinear hash over 32-bit words, mod 2^64; Dietzfelbinger 1996); who must be sure compares
bytes. Backups keep them: another hash would only have their index files built again. Pure.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

_SEED: Final = 0x6E65_6564_6C65
_BLOCK: Final = 1024
_WORD_BYTES: Final = 4

Hashes = npt.NDArray[np.uint64]


def row_hashes(rows: npt.NDArray[Any]) -> Hashes:
    """(n,) uint64: equal for rows with equal bytes. rows: (n, d), of any type."""
    data = np.ascontiguousarray(rows).view(np.uint8)
    if data.shape[1] % _WORD_BYTES:
        data = np.pad(data, ((0, 0), (0, -data.shape[1] % _WORD_BYTES)))
    words = data.view(np.uint32)
    factors = np.random.Generator(np.random.PCG64(_SEED)).integers(0, 2**64, words.shape[1], dtype=np.uint64) | 1
    hashes = np.empty(len(rows), np.uint64)
    for at in range(0, len(rows), _BLOCK):
        block = words[at : at + _BLOCK].astype(np.uint64)
        block *= factors
        # The high bits of each product depend on all bits of the word.
        block ^= block >> np.uint64(29)
        hashes[at : at + _BLOCK] = block.sum(axis=1, dtype=np.uint64)
    return hashes
