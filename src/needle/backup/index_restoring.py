"""Brings the index files of a collection, or of a named vector, back with the vectors that they serve, so that none is
inserted into a graph again (docs/adr/0093).

A shard's files serve ranges of ordinals, one behind the other. So the vectors are written in rounds: first those that
the first file of each shard has, then these files are adopted, then those of the second, and at the end what no file
has. Which file has a vector says its hash; the shard's leader compares the vectors themselves, and refuses a file that
does not have all that it would serve. A shard of which a file is refused builds its index as ever. It does not know
how rounds of several vectors of a document go together (index_rounds.py). Memory: 8 bytes for each vector of one
round, a byte for each document, and a few parts of files.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from needle.backup.around import Around
from needle.backup.format import CollectionBackup, IndexFile, Piece
from needle.backup.replaying import read_block
from needle.backup.store import Store
from needle.base.errors import CollectionNotFound, NeedleError, StorageError, Unavailable, UnknownMethod
from needle.base.ids import shard_group
from needle.base.parts import Payload
from needle.base.vector_hashes import row_hashes
from needle.client import Client
from needle.client.shards import ask_leader, tell_replicas
from needle.protocol import calls
from needle.protocol.index_file_calls import (
    INDEX_ADOPT,
    INDEX_HOLD,
    INDEX_PUT,
    IndexAdoptAnswer,
    IndexAdoptCall,
    IndexHoldCall,
    IndexPutCall,
)
from needle.protocol.named import taken_of

CALL_SECONDS: Final = 30.0
ADOPT_SECONDS: Final = 600.0
HOLD_SECONDS: Final = 60.0
RENEW_SECONDS: Final = 2.0
ATTEMPTS: Final = 10
AGAIN_SECONDS: Final = 1.0
BEHIND_SECONDS: Final = 0.1
Bools = npt.NDArray[np.bool_]
Call = IndexHoldCall | IndexPutCall | IndexAdoptCall
Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]
NOTHING_LEFT: Final[Mapping[int, int]] = {}


class IndexFilesChanged(Exception):
    """What a restore wrote before it was broken off cannot be told by the index files that there are now. For callers
    within this package: it is no error that anybody gets to see."""


def part_of(piece: Piece, chosen: list[int]) -> Piece:
    """These of its documents."""
    if len(chosen) == len(piece.ids):
        return piece
    width = len(piece.vectors) // max(1, len(piece.ids))
    return Piece(
        [piece.ids[at] for at in chosen],
        [piece.metadata[at] for at in chosen],
        b"".join(piece.vectors[at * width : (at + 1) * width] for at in chosen),
        [piece.expires[at] for at in chosen] if piece.expires else [],
        taken_of(piece.named, chosen),
    )


class IndexRestoring:
    """One collection's, or one named vector's. stored: what it is called in shards. left: of shards that build their
    index themselves, the first round that was begun without their file; what each round wrote follows from it. begun:
    the round that was broken off, if it goes on. left_out: why shards build. adopted: vectors that are served by files
    that came."""

    def __init__(
        self, client: Client, store: Store, around: Around, collection: CollectionBackup, rounds: list[list[IndexFile]],
        stored: str, *, vector: str = "", left: Mapping[int, int] = NOTHING_LEFT, begun: int = -1,
    ) -> None:  # fmt: skip
        self._client, self._store, self._around, self._stored = client, store, around, stored
        self._dimensions = (collection.vectors[vector] if vector else collection.spec).dimensions
        self._name = f"{collection.spec.name}/{vector}" if vector else collection.spec.name
        self.rounds = rounds
        self._firsts = np.cumsum([0, *(piece.documents for piece in collection.pieces)])
        self._written: Bools = np.zeros(int(self._firsts[-1]), np.bool_)
        self._table: Hashes | None = np.empty(0, np.uint64)
        self.left = dict(left)
        self._begun, self._next = begun, begun + 1
        self._waits = {file.shard for file in (rounds[0] if rounds else [])} - self.left.keys()
        self._renewal: asyncio.Task[None] | None = None
        self.left_out: list[str] = []
        self.adopted = 0

    async def __aenter__(self) -> IndexRestoring:
        if self._waits:
            await self._hold_all()
            self._renewal = asyncio.create_task(self._renew())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
        await self._hold_each(0.0)  # where that fails it is over by itself in a minute

    @property
    def given_up(self) -> bool:
        """Whether there never was a round of any shard."""
        return all(self.left.get(file.shard) == 0 for file in (self.rounds[0] if self.rounds else []))

    async def begin(self, number: int) -> None:
        """The next round; behind the last one comes what no file has."""
        if number == len(self.rounds):
            self._table = None
            return
        parts = [np.empty(0, np.uint64)]
        for file in self.rounds[number]:
            if self.left.get(file.shard, len(self.rounds)) <= number:
                continue
            try:
                parts.append(await self._around.blocking(self._hashes, file))
            except StorageError as error:
                if number <= self._begun:
                    raise IndexFilesChanged(
                        f"{error.message}, of an index file that this restore used before it was broken off, so that "
                        "nobody can tell what it served: all documents are written again"
                    ) from error
                await self._give_up(file.shard, error.message)
        self._next = max(self._next, number + 1)
        self._table = np.sort(np.concatenate(parts))

    def _hashes(self, file: IndexFile) -> Hashes:
        found = np.frombuffer(b"".join(read_block(self._store, ref) for ref in file.hashes), "<u8").astype(np.uint64)
        if len(found) != file.nodes:
            raise StorageError(f"the hashes of index file {file.checksum} are {len(found)}, not {file.nodes}")
        return found

    def chosen(self, at: int, rows: Rows, vectors: bytes) -> Bools:
        """Which vectors of the piece of that number, of documents at these places, are of this round; they count as
        written from now on."""
        places = self._firsts[at] + rows
        mine: Bools = ~self._written[places]
        if self._table is not None:
            hashes = row_hashes(np.frombuffer(vectors, "<f4").reshape(-1, self._dimensions))
            place = np.searchsorted(self._table, hashes)
            inside = place < len(self._table)
            inside[inside] = self._table[place[inside]] == hashes[inside]
            mine &= inside
        self._written[places[mine]] = True
        return mine

    async def end(self, number: int) -> None:
        """All vectors of the round are written: bring its files."""
        for file in self.rounds[number] if number < len(self.rounds) else []:
            if file.shard in self._waits:
                try:
                    self.adopted += await self._adopted(file)
                except NeedleError as error:
                    await self._give_up(file.shard, error.message)

    async def _adopted(self, file: IndexFile) -> int:
        """How many vectors it serves. A new leader knows nothing of what came before, and may build just now."""
        for attempt in range(ATTEMPTS):
            try:
                await self._hold(file.shard, HOLD_SECONDS)
                return await self._brought(file)
            except Unavailable:
                if attempt == ATTEMPTS - 1:
                    raise
            await self._around.rest(AGAIN_SECONDS)
        raise AssertionError  # the last attempt raises

    async def _brought(self, file: IndexFile) -> int:
        group, at = shard_group(file.shard), 0
        for ref in file.parts:
            data = await self._around.blocking(read_block, self._store, ref)
            put = IndexPutCall(group, self._stored, file.checksum, file.size, at, data)
            await self._ask(file.shard, INDEX_PUT, put)
            at += len(data)
        call = IndexAdoptCall(group, self._stored, file.checksum, ADOPT_SECONDS)
        return calls.decode(await self._ask(file.shard, INDEX_ADOPT, call, ADOPT_SECONDS), IndexAdoptAnswer).rows

    async def _give_up(self, shard: int, why: str) -> None:
        """What follows cannot be adopted either: files serve ordinals without a gap."""
        self._leave_out(shard, why)
        with contextlib.suppress(NeedleError):
            await self._hold(shard, 0.0)

    def _leave_out(self, shard: int, why: str) -> None:
        self.left_out.append(f"shard {shard}, collection {self._name}: {why}")
        self._waits.discard(shard)
        self.left.setdefault(shard, self._next)

    async def _renew(self) -> None:
        while True:
            await self._around.rest(RENEW_SECONDS)
            await self._hold_each(HOLD_SECONDS)  # where that fails the worst is that the shard builds

    async def _hold_all(self) -> None:
        for shard, error in (await self._hold_each(HOLD_SECONDS)).items():
            old = isinstance(error, UnknownMethod)
            self._leave_out(shard, "its leader is of an earlier release" if old else error.message)

    async def _hold_each(self, seconds: float) -> dict[int, NeedleError]:
        """All shards at once, so that a silent node of one holds up no other; which failed, and why."""
        failed: dict[int, NeedleError] = {}

        async def hold(shard: int) -> None:
            try:
                await self._hold(shard, seconds)
            except NeedleError as error:
                failed[shard] = error

        await asyncio.gather(*map(hold, sorted(self._waits)))
        return dict(sorted(failed.items()))

    async def _hold(self, shard: int, seconds: float) -> None:
        """Have its leader build nothing, and who may lead next."""
        call = IndexHoldCall(shard_group(shard), self._stored, seconds)
        await self._ask(shard, INDEX_HOLD, call)
        for _ in range(ATTEMPTS):
            failed = await tell_replicas(self._client, shard, INDEX_HOLD, calls.encode(call), RENEW_SECONDS)
            if not any(isinstance(error, CollectionNotFound) for error in failed.values()):
                break
            await self._around.rest(BEHIND_SECONDS)  # it has not applied yet that there is this collection

    async def _ask(self, shard: int, method: str, call: Call, seconds: float = CALL_SECONDS) -> Payload:
        body = partial(_same, calls.encode(call))
        return await ask_leader(self._client, shard, method, body, seconds, (Unavailable,))


def _same(body: bytes, _: float) -> bytes:
    return body
