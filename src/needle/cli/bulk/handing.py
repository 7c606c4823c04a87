"""Hands one shard's files to its replicas, and has its leader propose the entry that names them.

What is there of a file is not sent again, and an entry that was applied is known by its file's checksum: so all of this
may be repeated at any point. A replica that cannot be reached fetches what it lacks from the others, once the entry
is there; before that it is handed over as soon as it can be reached, for it may lead by then.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
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
AGAIN_SECONDS: Final = 2.0
"""So often replicas are asked what they lack, while the leader is asked to load."""
BRING_ATTEMPTS: Final = 2

Part = tuple[int, int, bytes]
"""The size of a file, and what comes next of it: from which byte on, and the bytes."""
Read = Callable[[str, int], Awaitable[Part]]
"""read(name, at): of the file of that name, of which a replica has `at` bytes."""


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


async def judged_by(client: OverShards, shard: int, timeout: float) -> BulkHereAnswer:
    """The settings by which the leader of a shard judges documents. It has no file."""
    call = BulkHereCall(shard_group(shard), [])
    return calls.decode(
        await ask_leader(client, shard, BULK_HERE, lambda _: calls.encode(call), timeout, ()), BulkHereAnswer
    )


async def hand_in(
    client: OverShards,
    stored: str,
    mine: ShardJob,
    files: ShardFiles,
    read: Read,
    timeout: float,
    sent: Callable[[int], None],
) -> Handed:
    """Bring the files of a shard, and load them. timeout: seconds for the second, whoever leads by then. sent: told of
    bytes as they go. Raises what the leader refuses, or any replica as not allowed: the others would say the
    same."""
    said = await begin(client, mine.shard, stored, timeout)
    if said.loaded == files.checksum:
        return Handed(files.rows, 0, 0, {}, True)
    bringing = _Bringing(client, mine.shard, files.names, read, sent)
    await bringing.first()
    command = command_of(mine, files)
    goes_on = asyncio.ensure_future(bringing.go_on())
    try:
        result = await propose(client, mine.shard, command, timeout)
    except (Unavailable, DeadlineExceeded, OutcomeUnknown) as error:
        raise _with_reasons(error, bringing.lacking) from error
    finally:
        goes_on.cancel()
        await asyncio.gather(goes_on, return_exceptions=True)
    return Handed(result.count, bringing.sent, len(calls.encode(command)), bringing.lacking, result.existed)


def command_of(mine: ShardJob, files: ShardFiles) -> LoadRows:
    """The entry that names these files."""
    return LoadRows(
        mine.collection_id, files.rows, files.size, files.checksum, mine.owned, mine.generation, files.indexes
    )


async def propose(client: OverShards, shard: int, command: LoadRows, timeout: float) -> WriteResult:
    """Have the leader propose the entry, once its files are there; whoever leads, until the time is over. Raises what
    it refuses."""

    def body(left: float) -> bytes:
        return calls.encode(BulkLoadCall(shard_group(shard), command, left))

    answer = await ask_leader(client, shard, BULK_LOAD, body, timeout, (InvalidArgument, StaleEpoch))
    return calls.decode(answer, WriteResult)


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


class _Bringing:
    """Of a shard's files to its replicas. sent: bytes that went over the network. lacking: replicas that have not got
    all files, and why. Who has them, and does not answer when it is asked again, is none: it may be busy with them."""

    def __init__(
        self, client: OverShards, shard: int, names: list[str], read: Read, told: Callable[[int], None]
    ) -> None:
        """told: of bytes as they go."""
        self._client, self._shard, self._names, self._read, self._told = client, shard, names, read, told
        self.sent, self.lacking, self._whole = 0, dict[str, str](), set[str]()

    async def first(self) -> None:
        """To each replica once. Raises InvalidArgument, which all of them would say."""
        await _all_of(self._to(address, (InvalidArgument,)) for address in self._replicas())

    async def go_on(self) -> None:
        """While the leader is asked: whoever leads by now may have been away, or be new. One that says nothing holds
        up no other. Until cancelled."""
        running: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                await asyncio.sleep(AGAIN_SECONDS)
                self._client._shards.look()
                for address in self._replicas():
                    before = running.get(address)
                    if before is None or before.done():
                        running[address] = asyncio.create_task(self._to(address, ()))
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)

    def _replicas(self) -> Sequence[str]:
        replicas = self._client._shards.group(self._shard).replicas()
        for gone in self.lacking.keys() - set(replicas):
            del self.lacking[gone]
        return replicas

    async def _to(self, address: str, final: tuple[type[NeedleError], ...]) -> None:
        try:
            for name, at in zip(self._names, await self._here(address, self._names), strict=True):
                if at >= 0:
                    self._whole.discard(address)
                    await self._bring(address, name, at)
            self._whole.add(address)
            self.lacking.pop(address, None)
        except NeedleError as error:
            if isinstance(error, final):
                raise
            if address not in self._whole:
                self.lacking[address] = error.message

    async def _bring(self, address: str, name: str, at: int) -> None:
        """A file that comes out as another one is sent once more: a power cut may have taken what was there before."""
        for attempt in range(BRING_ATTEMPTS):
            try:
                await self._bring_rest(address, name, at)
                return
            except Unavailable:
                if attempt == BRING_ATTEMPTS - 1:
                    raise
            [at] = await self._here(address, [name])

    async def _bring_rest(self, address: str, name: str, at: int) -> None:
        while at >= 0:
            size, at, data = await self._read(name, at)
            put = BulkPutCall(shard_group(self._shard), name, size, at, data)
            [at] = await self._ask(address, BULK_PUT, calls.encode(put))
            self.sent += len(data)
            self._told(len(data))

    async def _here(self, address: str, names: list[str]) -> list[int]:
        return await self._ask(address, BULK_HERE, calls.encode(BulkHereCall(shard_group(self._shard), names)))

    async def _ask(self, address: str, method: str, body: bytes) -> list[int]:
        replicas = self._client._shards.group(self._shard)
        return calls.decode(await replicas.ask_replica(address, method, body, PUT_SECONDS), BulkHereAnswer).here


def reading(directory: Path) -> Read:
    """Of the files in a directory, in threads."""

    async def read(name: str, at: int) -> Part:
        return await asyncio.to_thread(part_of, directory, name, at)

    return read


def part_of(directory: Path, name: str, at: int) -> Part:
    """See Read. A replica that was killed when it had all of it, and had not compared it yet, is sent the end again."""
    with open(directory / name, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        at = at if at < size else max(0, size - PUT_BYTES_MAX)
        return size, at, os.pread(file.fileno(), PUT_BYTES_MAX, at)
