"""Fetching a file of a snapshot of which this node has parts: only the blocks that are nowhere here travel.

The sender tells the hashes of the file's blocks, some at a time. What a donor (a file of this node) has is copied from
it, the rest is asked for. The file is made from its beginning to its end, so an interrupted transfer goes on behind
what is there, as one without donors does.
Invariant: a block is copied only if what was read of it has the hash that the sender told: a donor may be written to,
cut, replaced or damaged meanwhile. That the hashes, and what was sent, are right is for the file's checksum to say.
It must not know Raft, nor what the file holds.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from needle.base.errors import CorruptSnapshot, StorageError
from needle.base.file_errors import SHORTAGES
from needle.base.runtime import Pool
from needle.multiraft.blocks import (
    HASH_BYTES,
    TABLE_BLOCKS,
    BlockIndex,
    block_count,
    block_size,
    hash_of,
)
from needle.multiraft.files import Files
from needle.multiraft.ports import SnapshotFile

DONOR_BLOCKS_MAX: Final = 4 << 20
"""Of a donor only so many blocks (16 GiB) are looked at: 50 MB of hashes."""
PIECE_BLOCKS: Final = 1024
"""So many (4 MiB) are put together at a time, in memory."""
_log = logging.getLogger("needle.multiraft")
AskHashes = Callable[[int, int], Awaitable[bytes]]
AskBlocks = Callable[[list[int]], Awaitable[bytes]]


class Donor:
    """A file of this node; the blocks that it had when they were hashed."""

    def __init__(self, path: str, files: Files, hashes: bytes) -> None:
        self._path = path
        self._files = files
        self._index = BlockIndex(hashes)

    def copy(self, hashes: Sequence[bytes], parts: list[bytes]) -> None:
        """Put what this file has into `parts`, where they are empty. Blocking."""
        missing = [at for at, part in enumerate(parts) if not part]
        if not missing:
            return
        found = self._index.find([hashes[at] for at in missing])
        there = [(at, block) for at, block in zip(missing, found.tolist(), strict=True) if block >= 0]
        try:
            blocks = self._files.read_blocks(self._path, [block for _, block in there])
        except (StorageError, *SHORTAGES) as error:
            _log.info("nothing more of %s is used for a snapshot: %s", self._path, error)
            return
        for (at, _), block in zip(there, blocks, strict=True):
            if hash_of(block) == hashes[at]:
                parts[at] = block


async def find_donors(paths: Sequence[str], files: Files, pool: Pool) -> list[Donor]:
    """Those of the files that are there and can be read."""
    donors = []
    for path in paths:
        try:
            blocks = min(block_count(await pool.run(files.size, path)), DONOR_BLOCKS_MAX)
            hashes = [
                await pool.run(files.block_hashes, path, first, min(TABLE_BLOCKS, blocks - first))
                for first in range(0, blocks, TABLE_BLOCKS)
            ]
        except (StorageError, *SHORTAGES) as error:
            _log.info("%s is not used for a snapshot: %s", path, error)
            continue
        if any(hashes):
            donors.append(await pool.run(Donor, path, files, b"".join(hashes)))
    return donors


class SharedFile:
    """A file of a snapshot of which donors have parts. bytes_reused: what was copied from them."""

    def __init__(
        self,
        file: SnapshotFile,
        donors: Sequence[Donor],
        pool: Pool,
        ask_hashes: AskHashes,
        ask_blocks: AskBlocks,
        ask_blocks_max: int,
    ) -> None:
        """ask_hashes: of so many blocks from a first one on. ask_blocks: these blocks, at most ask_blocks_max, one
        behind the other."""
        self.bytes_reused = 0
        self._file = file
        self._donors = donors
        self._pool = pool
        self._ask_hashes = ask_hashes
        self._ask_blocks = ask_blocks
        self._ask_blocks_max = ask_blocks_max
        self._first = 0
        self._hashes: list[bytes] = []

    async def piece(self, first: int) -> bytes:
        """What stands in the file from that block on: at least this block. Raises what asking raises, and
        CorruptSnapshot if the answer cannot be."""
        hashes = await self._hashes_from(first)
        parts = await self._pool.run(self._copy, hashes)
        missing = [at for at, part in enumerate(parts) if not part]
        if len(missing) > self._ask_blocks_max:
            del parts[missing[self._ask_blocks_max] :]
            del missing[self._ask_blocks_max :]
        self.bytes_reused += sum(map(len, parts))
        if missing:
            blocks = [first + at for at in missing]
            sizes = [block_size(self._file.size, block) for block in blocks]
            answer = await self._ask_blocks(blocks)
            _check_length(answer, sum(sizes), f"{len(blocks)} blocks of {self._file.name}")
            start = 0
            for at, size in zip(missing, sizes, strict=True):
                parts[at] = answer[start : start + size]
                start += size
        return b"".join(parts)

    async def _hashes_from(self, first: int) -> list[bytes]:
        """The hashes of the next blocks."""
        at = first - self._first
        if not 0 <= at < len(self._hashes):
            count = min(TABLE_BLOCKS, block_count(self._file.size) - first)
            table = await self._ask_hashes(first, count)
            _check_length(table, count * HASH_BYTES, f"hashes of {count} blocks of {self._file.name}")
            self._hashes = [table[start : start + HASH_BYTES] for start in range(0, len(table), HASH_BYTES)]
            self._first, at = first, 0
        return self._hashes[at : at + PIECE_BLOCKS]

    def _copy(self, hashes: Sequence[bytes]) -> list[bytes]:
        parts = [b""] * len(hashes)
        for donor in self._donors:
            donor.copy(hashes, parts)
        return parts


def _check_length(answer: bytes, wanted: int, what: str) -> None:
    if len(answer) != wanted:
        raise CorruptSnapshot(f"the sender of a snapshot answered {len(answer)} bytes for {what}, which take {wanted}")
