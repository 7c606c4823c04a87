"""A client that knows nothing of shards, as those of earlier releases and of whoever writes one without a map: it sends
the calls of `protocol.calls` to one node after the other, and the node routes (server/service/proxy.py).

Invariant: a batch is cut into entries in its order; after one failed no other is begun: nothing of it is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from needle.base.errors import NeedleError, Unavailable
from needle.base.filters.ordering import ScanOrder
from needle.base.ids import GroupId
from needle.base.model import CollectionSpec, HitBatch, ReadMode, SearchRequest, WriteResult
from needle.base.parts import Payload
from needle.base.runtime import Rng
from needle.client.batches import BatchMethods
from needle.client.columns import cut
from needle.client.directory import Caller
from needle.client.document_calls import BatchPart, DocumentCalls, Found, Held
from needle.client.router.routes import BATCH_BYTES_MAX
from needle.client.where import MakePart, OnProgress, WhereWork
from needle.protocol import calls
from needle.protocol.calls import (
    CollectionsAnswer,
    CollectionsCall,
    CountAnswer,
    CountCall,
    DocumentBatch,
    FacetAnswer,
    FacetCall,
    Freshness,
    GetCall,
    ScanAnswer,
    ScanCall,
    ScanPin,
    SearchCall,
    SearchManyAnswer,
    SearchManyCall,
)
from needle.protocol.commands import (
    AS_IT_IS,
    Change,
    ChangeWhere,
    CreateCollection,
    Delete,
    DropCollection,
    Insert,
    Patch,
    UpdateVectors,
)
from needle.protocol.named import Named
from needle.routing.topology import CollectionInfo
from proof.plain_nodes import AnyNode, PlainGroup
from proof.without_catalog import UNKNOWN, WithoutCatalog

BATCH_DOCUMENTS_MAX = 10_000
BATCHES_IN_FLIGHT = 4


class PlainClient(BatchMethods):
    """See the module. Use as an async context manager, or close its caller."""

    def __init__(
        self, caller: Caller, addresses: Iterable[str], *, rng: Rng, batch_bytes_max: int = BATCH_BYTES_MAX
    ) -> None:
        """addresses: of the nodes to ask; no others are learned. batch_bytes_max: a larger batch becomes several
        writes."""
        self._caller = caller
        self._group = PlainGroup(AnyNode(caller, addresses), rng)
        self._calls = PlainCalls(self._group, batch_bytes_max)

    async def _documents(self) -> DocumentCalls:
        return self._calls

    async def __aenter__(self) -> PlainClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._caller.close()

    @property
    def last_index(self) -> int:
        """The newest index that an answer has carried; 0 before the first."""
        return self._group.last_index


class PlainCalls(WithoutCatalog):
    """`DocumentCalls`, of whichever node answers; without named vectors, which only who knows the catalog can name."""

    blocking = None

    def __init__(self, group: PlainGroup, batch_bytes_max: int) -> None:
        self._group = group
        self._batch_bytes_max = batch_bytes_max

    # --- writes ------------------------------------------------------------------------------------------------------
    async def insert(
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
    ) -> WriteResult:
        """As `DocumentCalls.insert`."""
        instants = [expires] if expires else []
        return await self._group.write(
            lambda session: Insert(collection, [name], vector, [metadata], expected, session, matches, instants),
            timeout,
        )

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
        """As `DocumentCalls.insert_batch`; who routes looks at all of a part, whatever is `whole`. Documents that were
        not sent because others failed are one part."""
        size = rows.nbytes // len(ids)
        parts = cut(ids, metadata, size, self._batch_bytes_max, BATCH_DOCUMENTS_MAX)
        permits = asyncio.Semaphore(BATCHES_IN_FLIGHT)
        failure: NeedleError | None = None

        async def send(part: range) -> WriteResult | NeedleError | None:
            nonlocal failure
            async with permits:
                if failure is not None:
                    return None
                data = bytes(rows[part.start * size : part.stop * size])
                names, json = ids[part.start : part.stop], metadata[part.start : part.stop]
                instants = list(expires[part.start : part.stop])
                try:
                    return await self._group.write(
                        lambda session: Insert(collection, names, data, json, None, session, b"", instants), timeout
                    )
                except NeedleError as error:
                    failure = error
                    return error

        if len(parts) == 1:
            outcomes = [await send(parts[0])]
        else:
            outcomes = list(await asyncio.gather(*(send(part) for part in parts)))
        done = [BatchPart(part, outcome) for part, outcome in zip(parts, outcomes, strict=True) if outcome is not None]
        if failure is not None and len(done) < len(parts):  # permits are taken in order: what was not sent is the rest
            why = f"not sent, and so not written: another part of the batch failed: {failure.message}"
            done.append(BatchPart(range(parts[len(done)].start, len(ids)), Unavailable(why)))
        return done

    async def delete(self, collection: str, names: list[str], timeout: float, matches: bytes = b"") -> WriteResult:
        """As `DocumentCalls.delete`, all at once."""
        return await self._group.write(
            lambda session: Delete(collection, names, None, session, matches=matches), timeout
        )

    async def patch(
        self,
        collection: str,
        names: list[str],
        change: Change,
        expected: int | None,
        matches: bytes,
        timeout: float,
    ) -> WriteResult:
        """As `DocumentCalls.patch`, all at once."""
        return await self._group.write(
            lambda session: Patch(collection, names, change, expected, session, matches=matches), timeout
        )

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
        """As `DocumentCalls.update_vectors`, all at once."""
        command = UpdateVectors(collection, names, vectors, expected, matches=matches, expires=expires)
        return await self._group.write(lambda session: msgspec.structs.replace(command, session=session), timeout)

    async def change_where(
        self, command: ChangeWhere, timeout: float, progress: OnProgress | None = None
    ) -> WriteResult:
        """As `DocumentCalls.change_where`."""
        work, loop = WhereWork(command, progress), asyncio.get_running_loop()
        deadline = loop.time() + timeout

        async def write(make: MakePart) -> WriteResult:
            left = max(0.001, deadline - loop.time())
            return await self._group.write(lambda session: make(command.collection, session, 0, []), left)

        await work.run(write)
        return work.result()

    # --- reads -------------------------------------------------------------------------------------------------------
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
        """As `DocumentCalls.get`."""
        answer = await self._read(
            calls.GET,
            lambda group, fresh: GetCall(group, collection, names, with_vectors, fresh, fields=fields),
            self._fresh(mode, max_staleness, session),
            timeout,
        )
        batch = calls.decode(answer, DocumentBatch)
        self._group.saw(batch.applied_index)
        return batch

    async def search(
        self,
        request: SearchRequest,
        mode: ReadMode,
        timeout: float,
        *,
        max_staleness: float = 0.0,
        session: bool = False,
        partial: bool = False,
    ) -> Found:
        """As `DocumentCalls.search`; the group counts as shard 0."""
        try:
            answer = await self._read(
                calls.SEARCH,
                lambda group, fresh: SearchCall(group, request, fresh),
                self._fresh(mode, max_staleness, session),
                timeout,
            )
        except NeedleError as error:
            if not partial or not error.retryable:
                raise
            return Found(HitBatch([], [], [], [], b"", 0), {0: error}, [(b"", None)], {}, 1, 0)
        batch = calls.decode(answer, HitBatch)
        self._group.saw(batch.applied_index)
        return Found(batch, {}, [], {0: batch.applied_index}, 1, 0)

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
        """As `DocumentCalls.search_many`."""
        answer = await self._read(
            calls.SEARCH_MANY,
            lambda group, fresh: SearchManyCall(group, request, count, fresh),
            self._fresh(mode, max_staleness, session),
            timeout,
        )
        return calls.decode(answer, SearchManyAnswer).batches

    async def count(
        self,
        collection: str,
        filter_json: bytes,
        mode: ReadMode,
        timeout: float,
        *,
        max_staleness: float = 0.0,
        session: bool = False,
    ) -> int:
        """As `DocumentCalls.count`."""
        answer = await self._read(
            calls.COUNT,
            lambda group, fresh: CountCall(group, collection, filter_json, fresh),
            self._fresh(mode, max_staleness, session),
            timeout,
        )
        return calls.decode(answer, CountAnswer).count

    async def facet(
        self,
        collection: str,
        field: str,
        filter_json: bytes,
        limit: int,
        mode: ReadMode,
        timeout: float,
        *,
        max_staleness: float = 0.0,
        session: bool = False,
    ) -> FacetAnswer:
        """As `DocumentCalls.facet`."""
        answer = await self._read(
            calls.FACET,
            lambda group, fresh: FacetCall(group, collection, field, filter_json, limit, fresh),
            self._fresh(mode, max_staleness, session),
            timeout,
        )
        return calls.decode(answer, FacetAnswer)

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
        """As `DocumentCalls.scan`."""
        given = (slice_, 0, fields, only, b"", pin, order)
        answer = await self._read(
            calls.SCAN,
            lambda group, fresh: ScanCall(group, collection, filter_json, after, limit, with_vectors, fresh, *given),
            self._fresh(mode, 0.0, session),
            timeout,
        )
        return calls.decode(answer, ScanAnswer)

    def _fresh(self, mode: ReadMode, max_staleness: float, session: bool) -> Freshness:
        return Freshness(mode, self._group.last_index if session else 0, max_staleness)

    async def _read(
        self, method: str, make: Callable[[GroupId, Freshness], object], fresh: Freshness, timeout: float
    ) -> Payload:
        group = self._group

        def body(left: float) -> bytes:
            asked = Freshness(fresh.mode, fresh.min_index, fresh.max_staleness, left)
            return calls.encode(make(group.group, asked))

        if fresh.mode is ReadMode.EVENTUAL:
            return await group.ask_any(method, body, timeout)
        return await group.ask_leader(method, body, timeout)

    # --- collections -------------------------------------------------------------------------------------------------
    async def create_collection(
        self, spec: CollectionSpec, if_absent: bool, timeout: float, fields: Any = (), vectors: Any = (), *more: Any
    ) -> WriteResult:
        """As `DocumentCalls.create_collection`, without fields, named and sparse vectors."""
        if fields or vectors or any(more):
            raise UNKNOWN
        return await self._group.write(lambda session: CreateCollection(spec, if_absent, session), timeout)

    async def drop_collection(self, name: str, timeout: float) -> WriteResult:
        """As `DocumentCalls.drop_collection`."""
        return await self._group.write(lambda session: DropCollection(name, session), timeout)

    async def collections(self, mode: ReadMode, timeout: float) -> list[CollectionSpec]:
        """As `DocumentCalls.collections`."""
        return (await self._all(mode, timeout)).collections

    async def counts(self, mode: ReadMode, timeout: float) -> dict[str, dict[int, int]]:
        """As `DocumentCalls.counts`; the group counts as shard 0."""
        answer = await self._all(mode, timeout)
        return {spec.name: {0: count} for spec, count in zip(answer.collections, answer.counts, strict=True)}

    async def sizes(
        self, mode: ReadMode, timeout: float, only: CollectionInfo | None = None
    ) -> dict[str, dict[int, Held]]:
        """As `DocumentCalls.sizes`."""
        return {name: {0: Held(held[0], None)} for name, held in (await self.counts(mode, timeout)).items()}

    async def _all(self, mode: ReadMode, timeout: float) -> CollectionsAnswer:
        answer = await self._read(calls.COLLECTIONS, CollectionsCall, Freshness(mode), timeout)
        return calls.decode(answer, CollectionsAnswer)
