"""Takes the index files of a collection along, so that a restore has not to build them (docs/adr/0093).

They are of no one moment, and need not be: which of the documents a file serves says the restore, by their vectors.
What cannot be had now is left out, and is built by the restore. A file that is known from before is not read again.
Memory: PARTS_AT_ONCE parts of a file, and 8 bytes for each vector of one.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from needle.backup.format import IndexFile, PieceRef
from needle.backup.state_copying import BLOCK_BYTES
from needle.base.errors import NeedleError, Unavailable, UnknownMethod
from needle.base.ids import shard_group
from needle.base.parts import Payload
from needle.client import Client
from needle.client.shards import ask_leader
from needle.protocol import calls
from needle.protocol.index_file_calls import (
    INDEX_BYTES,
    INDEX_FILES,
    INDEX_HASHES,
    IndexBytesCall,
    IndexFileInfo,
    IndexFilesAnswer,
    IndexFilesCall,
    IndexHashesCall,
)
from needle.routing.collection_names import called
from needle.routing.topology import CollectionInfo

CALL_SECONDS: Final = 30.0
PARTS_AT_ONCE: Final = 4
_log = logging.getLogger("needle.backup")
Put = Callable[[str, bytes], Awaitable[None]]


class IndexCopying:
    """Of one backup. there: sizes of the files that the store has; told of more. put: into the store. pace: waits until
    so many bytes more may have been read. known: files that the store may have. left_out: files that could not be had,
    one line for each shard."""

    def __init__(
        self, client: Client, there: dict[str, int], put: Put, pace: Callable[[int], Awaitable[None]],
        known: Iterable[IndexFile],
    ) -> None:  # fmt: skip
        self._client, self._there, self._put, self._pace = client, there, put, pace
        self._known = {(file.checksum, file.size): file for file in known}
        self.left_out: list[str] = []

    async def of_all(self, info: CollectionInfo, shards: list[int]) -> dict[str, list[IndexFile]]:
        """Those of a collection's vectors that have some, by name; "" for the vector without one."""
        found = {name: await self.copied(stored, shards) for name, stored in stored_names(info).items()}
        return {name: files for name, files in found.items() if files}

    async def copied(self, stored: str, shards: list[int]) -> list[IndexFile]:
        """Those of a collection, or a named vector, in the order of shards and of ordinals; they are in the store."""
        found: list[IndexFile] = []
        for shard in shards:
            try:
                found += await self._of_shard(stored, shard)
            except UnknownMethod:  # the leader is of an earlier release
                self.left_out.append(f"shard {shard}, collection {called(stored)}: its leader does not give them")
            except NeedleError as error:
                self.left_out.append(f"shard {shard}, collection {called(stored)}: {error.message}")
        return found

    async def _of_shard(self, stored: str, shard: int) -> list[IndexFile]:
        body = calls.encode(IndexFilesCall(shard_group(shard), stored))
        answer = calls.decode(await self._ask(shard, INDEX_FILES, body), IndexFilesAnswer)
        # What serves few of its vectors would not be taken by a restore, nor anything behind it.
        return [await self._copied(stored, shard, one) for one in answer.files if one.rows]

    async def _copied(self, stored: str, shard: int, info: IndexFileInfo) -> IndexFile:
        known = self._known.get((info.checksum, info.size))
        if known is not None and all(self._there.get(ref.name) == ref.size for ref in known.refs()):
            return IndexFile(
                shard=shard, checksum=info.checksum, size=info.size, nodes=info.nodes, parts=known.parts,
                hashes=known.hashes,
            )  # fmt: skip
        hashes = await self._hashes(stored, shard, info)
        parts: list[PieceRef] = []
        for first in range(0, info.size, PARTS_AT_ONCE * BLOCK_BYTES):
            offsets = range(first, min(info.size, first + PARTS_AT_ONCE * BLOCK_BYTES), BLOCK_BYTES)
            parts += await asyncio.gather(*(self._part(stored, shard, info, offset) for offset in offsets))
        return IndexFile(
            shard=shard, checksum=info.checksum, size=info.size, nodes=info.nodes, parts=parts, hashes=hashes
        )

    async def _part(self, stored: str, shard: int, info: IndexFileInfo, offset: int) -> PieceRef:
        length = min(BLOCK_BYTES, info.size - offset)
        call = IndexBytesCall(shard_group(shard), stored, info.checksum, offset, length)
        data = bytes(await self._ask(shard, INDEX_BYTES, calls.encode(call)))
        if len(data) != length:
            raise Unavailable(f"index file {info.checksum} ended at {offset + len(data)} of {info.size} bytes")
        return await self._kept(data)

    async def _hashes(self, stored: str, shard: int, info: IndexFileInfo) -> list[PieceRef]:
        found, block = list[PieceRef](), bytearray()
        at = 0
        while at < info.nodes:
            call = IndexHashesCall(shard_group(shard), stored, info.checksum, at)
            data = bytes(await self._ask(shard, INDEX_HASHES, calls.encode(call)))
            if not data:
                raise Unavailable(f"index file {info.checksum} has hashes of {at} vectors only")
            block += data
            at += len(data) // 8
            if len(block) >= BLOCK_BYTES or at >= info.nodes:
                found.append(await self._kept(bytes(block)))
                block.clear()
        return found

    async def _kept(self, data: bytes) -> PieceRef:
        await self._pace(len(data))
        ref = PieceRef(hashlib.sha256(data).hexdigest(), len(data), 0)
        if self._there.get(ref.name) != ref.size:
            await self._put(ref.name, data)
        return ref

    async def _ask(self, shard: int, method: str, body: bytes) -> Payload:
        return await ask_leader(self._client, shard, method, partial(_same, body), CALL_SECONDS, (Unavailable,))


def stored_names(info: CollectionInfo) -> dict[str, str]:
    """What a collection's vectors are called in the shards, by name; "" for the vector without one."""
    return {"": info.stored_name, **{one.name: info.stored_vector(one) for one in info.vectors}}


def _same(body: bytes, _: float) -> bytes:
    return body
