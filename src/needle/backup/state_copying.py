"""Copies a shard's whole state from its leader into a store, piece by piece. Memory: a piece."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import xxhash

from needle.backup.archive_format import BaseFile
from needle.backup.format import PieceRef
from needle.base.errors import Unavailable
from needle.base.ids import shard_group
from needle.client import Client
from needle.client.shards import ask_leader
from needle.protocol import calls
from needle.protocol.archive_calls import IMAGE, IMAGE_CHUNK, ImageAnswer, ImageCall, ImageChunkCall, ImageFile

BLOCK_BYTES: Final = 1 << 20
"""A state's files are cut into pieces of so many bytes: what did not change since the last time is there already."""
CHUNK_SECONDS: Final = 10.0
IMAGE_SECONDS: Final = 120.0
"""For a shard's leader to copy its state on its own disk."""


async def image_of(client: Client, shard: int, after: int) -> ImageAnswer:
    """What there is to copy, of the index `after` or later."""
    group = shard_group(shard)
    answer = await ask_leader(
        client, shard, IMAGE, lambda left: calls.encode(ImageCall(group, after, left)), IMAGE_SECONDS
    )
    return calls.decode(answer, ImageAnswer)


async def copied(
    client: Client,
    shard: int,
    image: ImageAnswer,
    there: dict[str, int],
    put: Callable[[str, bytes], Awaitable[None]],
) -> list[BaseFile]:
    """Its files, whose pieces are in the store then. there: sizes of those that it has; told of more. Raises
    Unavailable if the shard's leader changed meanwhile, or another image took its place."""
    return [await _copied(client, shard, image, file, there, put) for file in image.files]


async def _copied(
    client: Client,
    shard: int,
    image: ImageAnswer,
    file: ImageFile,
    there: dict[str, int],
    put: Callable[[str, bytes], Awaitable[None]],
) -> BaseFile:
    group, pieces, at, whole = shard_group(shard), list[PieceRef](), 0, xxhash.xxh3_128()
    while at < file.size:
        block = bytearray()
        while len(block) < min(BLOCK_BYTES, file.size - at):
            left = min(BLOCK_BYTES, file.size - at) - len(block)
            call = calls.encode(ImageChunkCall(group, image.snapshot, file.name, at + len(block), left))
            data = await ask_leader(client, shard, IMAGE_CHUNK, partial(_same, call), CHUNK_SECONDS, (Unavailable,))
            if not data:
                raise Unavailable(f"the state of shard {shard} ends before {file.name} does: it is copied again")
            block += data
        whole.update(block)
        ref = PieceRef(hashlib.sha256(block).hexdigest(), len(block), 0)
        if there.get(ref.name) != ref.size:
            await put(ref.name, bytes(block))
            there[ref.name] = ref.size
        pieces.append(ref)
        at += len(block)
    if whole.hexdigest() != file.checksum:
        raise Unavailable(f"{file.name} of the state of shard {shard} fails its checksum: it is copied again")
    return BaseFile(file.name, file.size, pieces)


def _same(body: bytes, _: float) -> bytes:
    return body
