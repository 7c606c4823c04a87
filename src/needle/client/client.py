"""The asynchronous client: documents and collections in, hits out; and looking after the nodes.

Every method is safe to call concurrently from one event loop. Writes are acknowledged after quorum commit and apply,
and executed exactly once even when they are repeated. Reads are strong unless another mode is asked for. Raises only
NeedleErrors. It is handed its network (a `Caller`) and its randomness; `needle.connect` makes both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, overload

from needle.base.errors import NeedleError
from needle.base.filters.builder import Filter
from needle.base.ids import shard_group
from needle.base.model import (
    Document,
    Hit,
    HitBatch,
    ReadMode,
    SearchRequest,
    WriteResult,
)
from needle.base.runtime import Blocking, Rng, beside
from needle.client import values
from needle.client.collections import DEFAULT_COLLECTION, CollectionCalls
from needle.client.directory import Caller
from needle.client.operations import TIMEOUT
from needle.protocol import calls
from needle.protocol.calls import (
    DocumentBatch,
    Freshness,
    GetCall,
    SearchCall,
)
from needle.protocol.commands import Delete, Insert

BATCH_BYTES_MAX = 1 << 20
BATCH_DOCUMENTS_MAX = 10_000
BATCHES_IN_FLIGHT = 4

BESIDE_BYTES = 256 * 1024
"""Answers from this size on are read in a thread."""

T = TypeVar("T")
FilterLike = Filter | Mapping[str, Any] | None


class Client(CollectionCalls):
    """A client of one cluster. Made by `needle.connect`; use as an async context manager or call `close`."""

    def __init__(
        self,
        caller: Caller,
        addresses: Iterable[str],
        *,
        rng: Rng,
        prefer: str | None = None,
        batch_bytes_max: int = BATCH_BYTES_MAX,
    ) -> None:
        """addresses: of some or all nodes, "host:port"; the others are learned. prefer: the address that eventual
        reads ask first. batch_bytes_max: insert_batch splits what is larger into several log entries."""
        super().__init__(caller, addresses, rng, prefer)
        self.blocking: Blocking | None = None
        """Threads for large answers; without them the event loop waits while they are read."""
        self._batch_bytes_max = values.check_count(batch_bytes_max, "batch_bytes_max")

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Calls in flight end soon: reads with ClientClosed, writes that were sent with
        OutcomeUnknown. Idempotent."""
        await self._caller.close()

    # --- writes ------------------------------------------------------------------------------------------------------
    async def insert(
        self,
        id: str,
        vector: Any,
        metadata: Any = None,
        *,
        collection: str = DEFAULT_COLLECTION,
        timeout: float = TIMEOUT,
    ) -> WriteResult:
        """Insert a document, or replace the one with this id.

        vector: `dimensions` numbers, anything numpy makes a float32 array of. metadata: any JSON value.
        """
        return await self._put(id, vector, metadata, None, collection, timeout)

    async def insert_if_absent(
        self,
        id: str,
        vector: Any,
        metadata: Any = None,
        *,
        collection: str = DEFAULT_COLLECTION,
        timeout: float = TIMEOUT,
    ) -> WriteResult:
        """Insert a document; raises AlreadyExists (details["version"]) if there is one with this id."""
        return await self._put(id, vector, metadata, 0, collection, timeout)

    async def compare_and_set(
        self,
        id: str,
        expected_version: int,
        vector: Any,
        metadata: Any = None,
        *,
        collection: str = DEFAULT_COLLECTION,
        timeout: float = TIMEOUT,
    ) -> WriteResult:
        """Replace a document only if its version is `expected_version` (0: only if there is none); raises
        VersionMismatch (details["actual"]) or AlreadyExists otherwise."""
        expected = values.check_count(expected_version, "expected_version", 0)
        return await self._put(id, vector, metadata, expected, collection, timeout)

    async def _put(
        self, id: str, vector: Any, metadata: Any, expected: int | None, collection: str, timeout: float
    ) -> WriteResult:
        ids, name = [values.check_id(id)], values.check_name(collection)
        data = values.vector_bytes(vector)
        json = [values.metadata_bytes(metadata)]
        return await self._data().write(
            lambda session: Insert(name, ids, data, json, expected, session), values.check_timeout(timeout)
        )

    async def insert_batch(
        self,
        documents: Iterable[Sequence[Any]] | None = None,
        *,
        ids: Iterable[str] | None = None,
        vectors: Any = None,
        metadatas: Sequence[Any] | None = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: float = TIMEOUT,
    ) -> list[WriteResult]:
        """Insert or replace many documents: either (id, vector[, metadata]) tuples, or ids, a 2-d array of vectors and
        optionally metadatas, one a row. Of documents with one id the last one counts, as if written one by one.

        Split into log entries of at most `batch_bytes_max`; each entry is all or nothing, and gets one WriteResult
        (`count` documents). On an error, details["documents_written"] says how many documents were acknowledged.
        """
        batch = values.columns(documents, ids, vectors, metadatas)
        seconds, name = values.check_timeout(timeout), values.check_name(collection)
        if not batch.ids:
            return []
        parts = values.slices(batch, self._batch_bytes_max, BATCH_DOCUMENTS_MAX)
        permits = asyncio.Semaphore(BATCHES_IN_FLIGHT)
        failed = False

        async def send(part: slice) -> WriteResult | NeedleError | None:
            nonlocal failed
            async with permits:
                if failed:
                    return None
                rows = batch.vectors[part].tobytes()
                try:
                    return await self._data().write(
                        lambda session: Insert(name, batch.ids[part], rows, batch.metadata[part], None, session),
                        seconds,
                    )
                except NeedleError as error:
                    failed = True
                    return error

        if len(parts) == 1:
            outcomes = [await send(parts[0])]
        else:
            outcomes = list(await asyncio.gather(*(send(part) for part in parts)))
        results = [outcome for outcome in outcomes if isinstance(outcome, WriteResult)]
        for outcome in outcomes:
            if isinstance(outcome, NeedleError):
                outcome.details["documents_written"] = sum(result.count for result in results)
                raise outcome
        return results

    async def delete(
        self, ids: str | Iterable[str], *, collection: str = DEFAULT_COLLECTION, timeout: float = TIMEOUT
    ) -> WriteResult:
        """Delete one document or several, all at once; absent ids are fine. existed: whether any was there; count: how
        many were."""
        names, name = values.different_ids(ids), values.check_name(collection)
        return await self._data().write(
            lambda session: Delete(name, names, None, session), values.check_timeout(timeout)
        )

    # --- reads -------------------------------------------------------------------------------------------------------
    @overload
    async def get(  # type: ignore[overload-overlap]  # a str is an iterable of str, but it means one id
        self,
        ids: str,
        *,
        mode: ReadMode | str = ...,
        collection: str = ...,
        with_vectors: bool = ...,
        session: bool = ...,
        max_staleness: float | None = ...,
        timeout: float = ...,
    ) -> Document | None: ...
    @overload
    async def get(
        self,
        ids: Iterable[str],
        *,
        mode: ReadMode | str = ...,
        collection: str = ...,
        with_vectors: bool = ...,
        session: bool = ...,
        max_staleness: float | None = ...,
        timeout: float = ...,
    ) -> list[Document]: ...
    async def get(
        self,
        ids: str | Iterable[str],
        *,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        with_vectors: bool = True,
        session: bool = False,
        max_staleness: float | None = None,
        timeout: float = TIMEOUT,
    ) -> Document | list[Document] | None:
        """One document, or None; or for several ids a list of those that exist, in the order asked."""
        if isinstance(ids, str):
            names = [values.check_id(ids, "ids")]
        else:
            names = values.check_ids(ids)
        freshness = self._freshness(mode, session, max_staleness)
        name, whole = values.check_name(collection), values.check_flag(with_vectors, "with_vectors")
        answer = await self._read(
            calls.GET,
            freshness,
            lambda fresh: GetCall(shard_group(0), name, names, whole, fresh),
            timeout,
        )
        batch, found = await self._beside(len(answer), _documents, answer)
        self._data().saw(batch.applied_index)
        if isinstance(ids, str):
            return found[0] if found else None
        return found

    async def get_many(
        self,
        ids: Iterable[str],
        *,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        with_vectors: bool = True,
        session: bool = False,
        max_staleness: float | None = None,
        timeout: float = TIMEOUT,
    ) -> list[Document]:
        """`get` of several ids: those that exist, in the order asked."""
        return await self.get(
            values.check_ids(ids),
            mode=mode,
            collection=collection,
            with_vectors=with_vectors,
            session=session,
            max_staleness=max_staleness,
            timeout=timeout,
        )

    async def search(
        self,
        query: Any,
        k: int = 10,
        filter: FilterLike = None,
        *,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        with_metadata: bool = True,
        with_vectors: bool = False,
        exact: bool = False,
        ef_search: int = 0,
        session: bool = False,
        max_staleness: float | None = None,
        timeout: float = TIMEOUT,
    ) -> list[Hit]:
        """The k nearest documents, nearest first, ties by id; fewer if fewer match.

        query: `dimensions` numbers. filter: a Filter or its dict form. exact: score every vector instead of using the
        index. ef_search: accuracy of the index, 0 for the collection's own. session: an eventual read that sees this
        client's own writes and never goes back. max_staleness: seconds, for eventual reads; TooStale otherwise.
        """
        request = _request(query, k, filter, collection, with_metadata, with_vectors, exact, ef_search)
        return await self._search(request, self._freshness(mode, session, max_staleness), timeout)

    async def _search(self, request: SearchRequest, freshness: Freshness, timeout: float) -> list[Hit]:
        answer = await self._read(
            calls.SEARCH, freshness, lambda fresh: SearchCall(shard_group(0), request, fresh), timeout
        )
        batch, found = await self._beside(len(answer), _hits, answer)
        self._data().saw(batch.applied_index)
        return found

    async def _beside(self, size: int, fn: Callable[..., T], *arguments: object) -> T:
        """Make values of `size` bytes of an answer; in a thread, if there are some and the bytes are many."""
        return await beside(self.blocking if size >= BESIDE_BYTES else None, fn, *arguments)

    async def search_strong(
        self,
        query: Any,
        k: int = 10,
        filter: FilterLike = None,
        *,
        collection: str = DEFAULT_COLLECTION,
        with_metadata: bool = True,
        with_vectors: bool = False,
        exact: bool = False,
        ef_search: int = 0,
        timeout: float = TIMEOUT,
    ) -> list[Hit]:
        """`search` that sees every write acknowledged before it was called: one heartbeat round confirms the leader."""
        request = _request(query, k, filter, collection, with_metadata, with_vectors, exact, ef_search)
        return await self._search(request, self._freshness(ReadMode.STRONG, False, None), timeout)

    async def search_leased(
        self,
        query: Any,
        k: int = 10,
        filter: FilterLike = None,
        *,
        collection: str = DEFAULT_COLLECTION,
        with_metadata: bool = True,
        with_vectors: bool = False,
        exact: bool = False,
        ef_search: int = 0,
        timeout: float = TIMEOUT,
    ) -> list[Hit]:
        """`search_strong` without the round while the leader's lease lasts: as fresh as long as clocks drift less than
        the configured bound."""
        request = _request(query, k, filter, collection, with_metadata, with_vectors, exact, ef_search)
        return await self._search(request, self._freshness(ReadMode.LEASED, False, None), timeout)

    async def search_eventual(
        self,
        query: Any,
        k: int = 10,
        filter: FilterLike = None,
        *,
        collection: str = DEFAULT_COLLECTION,
        with_metadata: bool = True,
        with_vectors: bool = False,
        exact: bool = False,
        ef_search: int = 0,
        session: bool = False,
        max_staleness: float | None = None,
        timeout: float = TIMEOUT,
    ) -> list[Hit]:
        """`search` on any replica, leader or not: sees some earlier state. See `search` for session, max_staleness."""
        request = _request(query, k, filter, collection, with_metadata, with_vectors, exact, ef_search)
        return await self._search(request, self._freshness(ReadMode.EVENTUAL, session, max_staleness), timeout)


def _documents(answer: bytes) -> tuple[DocumentBatch, list[Document]]:
    batch = calls.decode(answer, DocumentBatch)
    return batch, values.documents(batch)


def _hits(answer: bytes) -> tuple[HitBatch, list[Hit]]:
    batch = calls.decode(answer, HitBatch)
    return batch, values.hits(batch)


def _request(
    query: Any,
    k: int,
    filter: FilterLike,
    collection: str,
    with_metadata: bool,
    with_vectors: bool,
    exact: bool,
    ef_search: int,
) -> SearchRequest:
    return SearchRequest(
        collection=values.check_name(collection),
        vector=values.vector_bytes(query, "query"),
        k=values.check_count(k, "k"),
        filter=values.filter_bytes(filter),
        with_metadata=values.check_flag(with_metadata, "with_metadata"),
        with_vectors=values.check_flag(with_vectors, "with_vectors"),
        exact=values.check_flag(exact, "exact"),
        ef_search=values.check_count(ef_search, "ef_search", 0),
    )
