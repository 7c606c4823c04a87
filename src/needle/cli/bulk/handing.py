"""Hands one shard's files to its replicas, and has its leader propose the entry that names them.

What is there of a file is not sent again, and an entry that was applied is known by its file's checksum: so all of this
may be repeated at any point. A replica that cannot be reached fetches what it lacks from the others.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from needle.base.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NeedleError,
    OutcomeUnknown,
    StaleEpoch,
    Unavailable,
)
from needle.base.ids import shard_group
from needle.base.model import WriteResult
from needle.cli.bulk.job import ShardFiles, ShardJob
from needle.client.shards import OverShards, ask_leader
from needle.protocol import calls
from needle.protocol.bulk_calls import (
    BULK_BEGIN,
    BULK_HERE,
    BULK_LOAD,
    BULK_PUT,
    PUT_BYTES_MAX,
    BulkBeginAnswer,
    BulkBeginCall,
    BulkHereAnswer,
    BulkHereCall,
    BulkLoadCall,
    BulkPutCall,
)
from needle.protocol.upkeep_commands import LoadRows

PUT_SECONDS: Final = 30.0
ATTEMPTS: Final = 5
AGAIN_SECONDS: Final = 1.0


class Handed(NamedTuple):
    """sent: bytes that went over the network. log: bytes of the entry. lacking: replicas that could not be reached, and
    why. there: it was loaded before."""

    documents: int
    sent: int
    log: int
    lacking: dict[str, str]
    there: bool


async def begin(client: OverShards, shard: int, stored: str, timeout: float) -> BulkBeginAnswer:
    """What a load into a collection has to be made for in this shard."""
    call = BulkBeginCall(shard_group(shard), stored)
    answer = await ask_leader(client, shard, BULK_BEGIN, lambda _: calls.encode(call), timeout, (InvalidArgument,))
    return calls.decode(answer, BulkBeginAnswer)


async def hand_in(
    client: OverShards,
    stored: str,
    mine: ShardJob,
    files: ShardFiles,
    directory: Path,
    timeout: float,
    sent: Callable[[int], None],
) -> Handed:
    """Bring the files of a shard, and load them. sent: told of bytes as they go. Raises what the leader refuses, or any
    replica as not allowed: the others would say the same."""
    group, total, lacking = shard_group(mine.shard), 0, dict[str, str]()
    said = await begin(client, mine.shard, stored, timeout)
    if said.loaded == files.checksum:
        return Handed(files.rows, 0, 0, {}, True)

    def told(size: int) -> None:
        nonlocal total
        total += size
        sent(size)

    async def bring(address: str) -> None:
        try:
            for name in files.names:
                await _bring(client, mine.shard, address, directory / name, told)
        except InvalidArgument:
            raise
        except NeedleError as error:
            lacking[address] = error.message

    await _all_of(bring(address) for address in client._shards.group(mine.shard).replicas())
    command = LoadRows(
        mine.collection_id, files.rows, files.size, files.checksum, mine.owned, mine.generation, files.indexes
    )
    call = BulkLoadCall(group, command, timeout)
    final = (InvalidArgument, StaleEpoch)
    for attempt in range(ATTEMPTS):
        try:
            answer = await ask_leader(client, mine.shard, BULK_LOAD, lambda _: calls.encode(call), timeout, final)
            break
        except (Unavailable, DeadlineExceeded, OutcomeUnknown) as error:
            if attempt == ATTEMPTS - 1 or not isinstance(error, Unavailable):
                raise _with_reasons(error, lacking) from error
        await asyncio.sleep(AGAIN_SECONDS)  # a new leader may lack what the former one had
    result = calls.decode(answer, WriteResult)
    return Handed(result.count, total, len(calls.encode(command)), lacking, result.existed)


async def _all_of(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of it; the first error ends the rest."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _with_reasons(error: NeedleError, lacking: dict[str, str]) -> NeedleError:
    """The same, and why some replicas lack the files, which may be why nothing is loaded."""
    whys = "".join(f"; {address} got no files: {why}" for address, why in sorted(lacking.items()))
    return type(error)(error.message + whys, **error.details)


async def _bring(client: OverShards, shard: int, address: str, path: Path, told: Callable[[int], None]) -> None:
    group, replicas = shard_group(shard), client._shards.group(shard)
    asked = calls.encode(BulkHereCall(group, [path.name]))
    [at] = calls.decode(await replicas.ask_replica(address, BULK_HERE, asked, PUT_SECONDS), BulkHereAnswer).here
    while at >= 0:
        size, at, data = await asyncio.to_thread(_part, path, at)
        put = calls.encode(BulkPutCall(group, path.name, size, at, data))
        [at] = calls.decode(await replicas.ask_replica(address, BULK_PUT, put, PUT_SECONDS), BulkHereAnswer).here
        told(len(data))


def _part(path: Path, at: int) -> tuple[int, int, bytes]:
    """The size of a file, and what comes next of it, and where. A replica that was killed when it had all of it, and
    had not compared it yet, is sent the end again."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        at = at if at < size else max(0, size - PUT_BYTES_MAX)
        return size, at, os.pread(file.fileno(), PUT_BYTES_MAX, at)
