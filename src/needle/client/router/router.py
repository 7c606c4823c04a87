"""The router: which shards a request concerns, asking them, and making one answer of theirs.

Writes go to the shard that owns the routing key, batches by shard; reads fan out (fan_out.py proves coverage) and are
merged. Who is answered StaleEpoch gets the newer map and tries again: of writes what no shard has done. No randomness.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Self

import msgspec

from needle.base.errors import CollectionNotFound, DeadlineExceeded, StaleEpoch, in_seconds
from needle.base.filters.ordering import ScanOrder
from needle.base.model import HitBatch, ReadMode, SearchRequest, WriteResult
from needle.base.runtime import Blocking
from needle.client.document_calls import BatchPart, Found
from needle.client.router import searching
from needle.client.router.batch_inserts import Batch, insert_batch
from needle.client.router.by_filter import change_in_shards
from needle.client.router.by_ids import doubtful_ids, spread_by_ids
from needle.client.router.by_sparse import search_sparse
from needle.client.router.by_words import search_words
from needle.client.router.counting import Counting
from needle.client.router.deletion import Deletion
from needle.client.router.feeding import Feeding
from needle.client.router.getting import get_documents
from needle.client.router.of_collections import OfCollections
from needle.client.router.of_one_shard import search_of_one
from needle.client.router.packing import packed, packed_update
from needle.client.router.routes import BATCH_BYTES_MAX, Routes, Shards, in_callers_names
from needle.client.router.scanning import scan_page
from needle.client.router.stats import FanOutStats
from needle.client.where import OnProgress, WhereWork
from needle.protocol.calls import DocumentBatch, Freshness, ScanAnswer, ScanCall, ScanPin
from needle.protocol.commands import (
    AS_IT_IS,
    Change,
    ChangeWhere,
    Command,
    Delete,
    Insert,
    Named,
    Patch,
    Session,
    Spread,
    UpdateVectors,
)


class Router(OfCollections, Counting):
    """Requests in, shards' answers out. Safe to call concurrently on one event loop. What is asked most hands out the
    coroutine of its work instead of awaiting it: each one between costs the caller a part of a microsecond."""

    def __init__(
        self,
        shards: Shards,
        *,
        batch_bytes_max: int = BATCH_BYTES_MAX,
        monotonic: Callable[[], float] | None = None,
        blocking: Blocking | None = None,
    ) -> None:
        """batch_bytes_max: a larger part of a batch becomes several log entries of its shard. monotonic: measures
        merges, which are shorter than the event loop's clock can tell. blocking: threads for large batches and
        answers; without them the event loop waits."""
        self._routes = Routes(shards, batch_bytes_max=batch_bytes_max, blocking=blocking)
        self._monotonic = monotonic
        self.blocking = blocking

    def in_session(self, seen: dict[int, int]) -> Self:
        """A router to the same shards with a session of its own. seen: the log index of each shard that it has seen."""
        return self._by(self._routes.in_session(seen))

    def bound_to(self, filter_json: bytes) -> Self:
        """A router that works for an API key that is bound to a filter."""
        return self._by(self._routes.bound_to(filter_json))

    def _by(self, routes: Routes) -> Self:
        other = copy.copy(self)
        other._routes = routes
        return other

    def shard_of(self, name: str, metadata: bytes = b"") -> int:
        """The shard that owns a document. metadata: JSON bytes, needed for custom strategies."""
        return self._routes.owner(name, metadata)

    def feeding(self) -> Feeding:
        """What a change feed asks of the shards."""
        return Feeding(self._routes)

    @property
    def seen(self) -> dict[int, int]:
        """The log index of each shard that this session has seen."""
        return self._routes.seen

    @property
    def stats(self) -> FanOutStats:
        """What the fan-outs did, also those of copies of this router."""
        return self._routes.fan_out.stats

    # --- writes ------------------------------------------------------------------------------------------------------
    def insert(
        self,
        collection: str,
        name: str,
        vector: bytes,
        metadata: bytes,
        expected: int | None,
        timeout: float,
        matches: bytes = b"",
        expires: int = AS_IT_IS,
        named: Sequence[Named] = (),
    ) -> Coroutine[Any, Any, WriteResult]:
        """Insert or replace one document; expected, matches, expires, named as in `commands.Insert`."""
        instants = [expires] if expires else []

        def run(stored: str, left: float, vectors: Sequence[Named] = ()) -> Awaitable[WriteResult]:
            data, dtype = packed(vector, 1, self._routes.form(stored))
            theirs = list(vectors)

            def make(session: Session) -> Command:
                return Insert(
                    stored, [name], data, [metadata], expected, session, matches, instants, None, dtype, theirs
                )

            return self._write(lambda: self._routes.owner(name, metadata), make, left)

        async def run_named(stored: str, left: float) -> WriteResult:
            return await run(stored, left, await self._routes.vectors(stored, named, left))

        return self._routes.named(collection, timeout, run_named if named else run)

    async def _write(self, owner: Callable[[], int], make: Callable[[Session], Command], timeout: float) -> WriteResult:
        """Write to the owning shard. StaleEpoch means that nothing was done: route again by a newer map."""
        loop, make = asyncio.get_running_loop(), self._routes.binding(make)
        deadline, left = loop.time() + timeout, timeout
        while left > 0:
            try:
                shard = owner()
                result = await self._routes.shards.group(shard).write(make, left)
            except StaleEpoch as stale:
                await self._routes.fan_out.renew(stale, max(0.001, deadline - loop.time()))
                left = deadline - loop.time()
            else:
                self._routes.saw(shard, result.index)
                return result
        raise DeadlineExceeded(f"no shard accepted the write within {in_seconds(timeout)}: its map is changing")

    async def insert_batch(
        self,
        collection: str,
        ids: list[str],
        rows: memoryview,
        metadata: list[bytes],
        timeout: float,
        expires: Sequence[int] = (),
        *,
        whole: bool = False,
        named: Sequence[Named] = (),
    ) -> list[BatchPart]:
        """Insert or replace many documents. rows: len(ids) rows of float32 bytes. expires, named: as in
        `commands.Insert`.

        Grouped by shard, in parallel. Each part (up to batch_bytes_max of one shard) is all or nothing; after one has
        failed no other of its shard is begun. Of documents with one id only the last is written; the others are in no
        part. whole: as in `DocumentCalls.insert_batch`."""
        batch = Batch(collection, ids, rows, metadata, expires, named, whole)
        return await insert_batch(self._routes, self._write, batch, timeout)

    async def delete(self, collection: str, names: list[str], timeout: float, matches: bytes = b"") -> WriteResult:
        """Delete documents; all or nothing in each shard. count: how many were there."""
        return await self._by_ids(Delete(collection, names, matches=matches), timeout)

    async def patch(
        self,
        collection: str,
        names: list[str],
        change: Change,
        expected: int | None,
        matches: bytes,
        timeout: float,
    ) -> WriteResult:
        """Change the metadata of documents; all or nothing in each shard. count: how many were there."""
        return await self._by_ids(Patch(collection, names, change, expected, matches=matches), timeout)

    async def update_vectors(
        self,
        collection: str,
        names: list[str],
        vectors: bytes,
        expected: int | None,
        matches: bytes,
        timeout: float,
        expires: int = AS_IT_IS,
        vector_name: str = "",
        gone: bool = False,
    ) -> WriteResult:
        """Give documents other vectors; all or nothing in each shard. count: how many were there. vector_name: "" for
        those without a name. gone: as in `commands.UpdateVectors`."""
        command = UpdateVectors(
            collection, names, vectors, expected, matches=matches, expires=expires, name=vector_name, gone=gone
        )
        return await self._by_ids(command, timeout)

    async def _by_ids(self, command: Spread, timeout: float) -> WriteResult:
        routes, write = self._routes, self._write
        size = len(command.matches) + (len(command.vectors) if isinstance(command, UpdateVectors) else 0)
        info = routes.shards.topology().collection(command.collection)
        vector = command.name if isinstance(command, UpdateVectors) else ""
        form = None if info is None else info.form(vector)
        odd = await routes.beside(size, doubtful_ids, command, form)
        deletion, ownership, (_, most) = Deletion(command.ids), routes.fan_out.ownership, routes.part_max
        try:

            async def run(stored: str, left: float) -> WriteResult:
                what = command
                if isinstance(command, UpdateVectors) and command.name:
                    name = await routes.vector(stored, command.name, left)
                    what = msgspec.structs.replace(command, name=name)
                elif isinstance(command, UpdateVectors):
                    what = packed_update(command, routes.form(stored))
                return await spread_by_ids(deletion, what, stored, left, ownership, write, odd, most)

            return await routes.named(command.collection, timeout, run)
        except CollectionNotFound as error:
            raise deletion.gone(error) from error

    async def change_where(
        self, command: ChangeWhere, timeout: float, progress: OnProgress | None = None, *, told_bytes_max: int = 0
    ) -> WriteResult:
        """Change or delete the documents that match a filter, in parts, in each shard on its own. count: how many they
        were. Raises as `WhereWork.result` tells. told_bytes_max: of ids that are returned; 0 for any."""
        work = WhereWork(command, progress, told_bytes_max)
        return await self._routes.named(
            command.collection,
            timeout,
            lambda stored, left: change_in_shards(work, stored, left, self._routes.fan_out.ownership, self._write),
        )

    # --- reads -------------------------------------------------------------------------------------------------------
    async def scan(
        self,
        collection: str,
        filter_json: bytes,
        after: str,
        limit: int,
        with_vectors: bool,
        slice_: tuple[int, int],
        mode: ReadMode,
        timeout: float,
        fields: tuple[str, ...] | None = None,
        only: int = 0,
        pin: ScanPin | None = None,
        order: ScanOrder | None = None,
        *,
        session: bool = False,
        named: Sequence[str] = (),
    ) -> ScanAnswer:
        """A page of documents in the order of their ids; see ScanCall. More than `limit` only if documents of several
        shards have the last place. only: the id that the collection must have, 0 for any. pin: of a consistent scan."""
        fresh = self._routes.fresh(mode, 0.0, session)
        if pin is not None and not pin.token:
            pin = ScanPin(self._routes.shards.nonce())
        asked = ScanCall(
            0, collection, filter_json, after, limit, with_vectors, fresh(0), slice_, 0, fields, only, b"", pin, order
        )

        async def run(stored: str, left: float) -> ScanAnswer:
            routes = self._routes
            names = [await routes.vector(stored, one, left) for one in dict.fromkeys(named)]
            whole = msgspec.structs.replace(asked, named=tuple(names)) if names else asked
            page = await scan_page(whole, stored, left, routes.fan_out, fresh, routes.beside, routes.saw)
            if not names:
                return page
            documents = msgspec.structs.replace(page.documents, named=in_callers_names(page.documents.named))
            return msgspec.structs.replace(page, documents=documents)

        return await self._routes.named(collection, timeout, run)

    def search(
        self,
        request: SearchRequest,
        mode: ReadMode,
        timeout: float,
        *,
        max_staleness: float = 0.0,
        session: bool = False,
        partial: bool = False,
    ) -> Coroutine[Any, Any, Found]:
        """The k nearest documents of all shards (or of those that a filter on the shard key leaves). session: eventual
        reads see this router's own writes and never go back. partial: answer without shards that cannot."""

        fresh = self._routes.fresh(mode, max_staleness, session)

        def run(stored: str, left: float) -> Awaitable[Found]:
            inner = self._routes.as_stored(request, stored)
            if request.keywords or request.sparse is not None:
                asked = search_words if request.keywords else search_sparse
                return asked(self._routes, inner, fresh, left, self._clock(), partial=partial)
            if request.like:
                return self._search_like(inner, stored, fresh, left, partial)
            return self._search(inner, fresh, left, partial)

        async def run_named(stored: str, left: float) -> Found:
            routes = self._routes
            name = await routes.vector(stored, request.vector_name, left)
            inner = msgspec.structs.replace(routes.as_stored(request, stored), vector_name=name)
            if request.like:
                return await self._search_like(inner, stored, fresh, left, partial)
            return await self._search(inner, fresh, left, partial)

        def usual(left: float, tried: int = 0) -> Coroutine[Any, Any, Found]:
            return self._routes.named(request.collection, left, run_named if request.vector_name else run, tried)

        alone = None if partial else search_of_one(self._routes, request, fresh, timeout, self._clock(), usual)
        return usual(timeout) if alone is None else alone

    async def _search_like(
        self, request: SearchRequest, stored: str, fresh: Callable[[int], Freshness], timeout: float, partial: bool
    ) -> Found:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        named = (request.vector_name,) if request.vector_name else ()
        of = await get_documents(self._routes, stored, [request.like], not named, fresh, timeout, (), named)
        left = max(0.001, deadline - loop.time())
        return await self._search(searching.near(request, of), fresh, left, partial)

    async def search_many(
        self,
        request: SearchRequest,
        count: int,
        mode: ReadMode,
        timeout: float,
        *,
        max_staleness: float = 0.0,
        session: bool = False,
    ) -> list[HitBatch]:
        """As `search` for `count` vectors, which all are in the request's: one call of each shard, or with groups
        at least one for each vector."""

        async def run(stored: str, left: float) -> list[HitBatch]:
            routes = self._routes
            fresh = routes.fresh(mode, max_staleness, session)
            inner, name = routes.as_stored(request, stored), await routes.vector(stored, request.vector_name, left)
            inner = msgspec.structs.replace(inner, vector_name=name)
            if inner.group_by:
                how = fresh, left, routes.beside, routes.saw, self._clock()
                return await searching.search_each(routes.fan_out, inner, count, *how)
            seen, batches = await searching.search_many(routes.fan_out, inner, count, fresh, left, routes.beside)
            for shard, index in seen.items():
                routes.saw(shard, index)
            return batches

        return await self._routes.named(request.collection, timeout, run)

    def _search(
        self, request: SearchRequest, fresh: Callable[[int], Freshness], timeout: float, partial: bool
    ) -> Awaitable[Found]:
        routes, monotonic = self._routes, self._clock()
        return searching.search(
            routes.fan_out, request, fresh, timeout, routes.beside, routes.saw, monotonic, partial=partial
        )

    def _clock(self) -> Callable[[], float]:
        return self._monotonic or asyncio.get_running_loop().time

    async def get(
        self,
        collection: str,
        names: list[str],
        with_vectors: bool,
        mode: ReadMode,
        timeout: float,
        *,
        max_staleness: float = 0.0,
        session: bool = False,
        fields: tuple[str, ...] | None = None,
        named: Sequence[str] = (),
    ) -> DocumentBatch:
        """The documents with these ids that exist, in the order asked for. named: their named vectors, too."""
        routes = self._routes
        fresh = routes.fresh(mode, max_staleness, session)

        async def run(stored: str, left: float) -> DocumentBatch:
            vectors = tuple([await routes.vector(stored, one, left) for one in dict.fromkeys(named)])
            found = await get_documents(routes, stored, names, with_vectors, fresh, left, fields, vectors)
            return msgspec.structs.replace(found, named=in_callers_names(found.named)) if named else found

        return await routes.named(collection, timeout, run)
