"""Blocks of files by their hashes: which blocks of one file another one has, wherever they stand there.

A block is 4 KiB, aligned, the last one of a file what is left: a page of SQLite, for that is what moves as a whole when
a database grows (docs/adr/0027). Its hash is xxh3-64: it only says where to look, the whole file has a checksum.
Pure: it must not know files, snapshots or the network.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

BLOCK_BYTES: Final = 4096
HASH_BYTES: Final = 8
TABLE_BLOCKS: Final = 16_384
"""Hashes of so many blocks (64 MiB) are computed, and sent, at a time."""


def block_count(size: int) -> int:
    """Blocks of a file of `size` bytes."""
    return -(-size // BLOCK_BYTES)


def block_size(size: int, block: int) -> int:
    """Bytes of one block of such a file."""
    return min(BLOCK_BYTES, size - block * BLOCK_BYTES)


def hash_of(block: bytes | memoryview) -> bytes:
    """HASH_BYTES bytes."""
    return xxhash.xxh3_64_intdigest(block).to_bytes(HASH_BYTES, "little")


def hashes_of(data: bytes) -> bytes:
    """HASH_BYTES for each block of `data`."""
    view = memoryview(data)
    return b"".join([hash_of(view[at : at + BLOCK_BYTES]) for at in range(0, len(view), BLOCK_BYTES)])


class BlockIndex:
    """Where the block with a hash stands in one file. 12 bytes of memory a block."""

    def __init__(self, hashes: bytes) -> None:
        """hashes: of its blocks, in their order; at least one."""
        found = np.frombuffer(hashes, "<u8")
        self._order = np.argsort(found, kind="stable").astype(np.uint32)
        self._sorted = found[self._order]

    def find(self, hashes: list[bytes]) -> npt.NDArray[np.int64]:
        """The number of a block with each hash, -1 if there is none."""
        wanted = np.frombuffer(b"".join(hashes), "<u8")
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return np.where(self._sorted[at] == wanted, self._order[at].astype(np.int64), -1)
