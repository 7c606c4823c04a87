"""The methods that search: the nearest documents of a vector, of many vectors, of a document.

A part of `DocumentMethods` (documents.py), which says what holds for all of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from needle.base.errors import InvalidArgument
from needle.base.model import HitBatch, ReadMode, SearchRequest
from needle.base.runtime import beside
from needle.client import answers, values
from needle.client.document_calls import DocumentCalls, Found, Hits, OverDocuments, PartialHits
from needle.client.feeds import DEFAULT_COLLECTION, TIMEOUT, FilterLike
from needle.client.hybrid import EVEN, RRF, candidates, check_fusion, fused
from needle.client.narrowed import Lists, Narrow, hybrid_requests, search_request
from needle.client.texts import vector_of, vectors_of
from needle.client.together import together
from needle.client.values import Reading, Seconds
from needle.protocol import calls

BESIDE_BYTES = 256 * 1024
"""Answers from this size on become values in a thread."""

_STRONG, _LEASED, _EVENTUAL = Reading(ReadMode.STRONG), Reading(ReadMode.LEASED), ReadMode.EVENTUAL
T = TypeVar("T")


class SearchMethods(OverDocuments):
    """What finds documents by how near they are."""

    async def search(
        self,
        query: Any = None,
        k: int = 10,
        filter: FilterLike = None,
        *,
        like: str | None = None,
        text: str | None = None,
        vector_name: str | None = None,
        keywords: str | None = None,
        sparse: Mapping[str, Any] | None = None,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        with_metadata: bool = True,
        with_vectors: bool = False,
        fields: Iterable[str] | None = None,
        max_distance: float | None = None,
        min_score: float | None = None,
        offset: int = 0,
        group_by: str | None = None,
        group_size: int = 1,
        diversify: float | None = None,
        pool: int | None = None,
        order_by: str | None = None,
        descending: bool = False,
        exact: bool = False,
        ef_search: int = 0,
        explain: bool = False,
        session: bool = False,
        max_staleness: Seconds | None = None,
        timeout: Seconds = TIMEOUT,
    ) -> Hits:
        """The k nearest documents, nearest first, ties by id; fewer if fewer match.

        query: `dimensions` numbers. text: instead, what these are made of, by the model that the collection names, as
        in `insert`. keywords: instead, words: the documents whose text has them, by BM25, which is Hit.score
        (docs/text-search.md). sparse: instead, a sparse vector by its name, {name: {"indices": [...], "values":
        [...]}}: documents with one of its indices, by inner product (docs/sparse-vectors.md). like: instead, the id of
        a document whose vector is meant; it is no hit itself; DocumentNotFound if there is none. vector_name: which of
        the documents' named vectors is searched (docs/named-vectors.md); documents without it are no hits. filter: a
        Filter or its dict form; one that pins the shard key asks the owning shards only. fields: the paths of metadata
        that come back, such as ["title", "author.name"]; None for all of it. max_distance, min_score: leave out hits
        that are farther, or score less (see Hit). offset: leave out the first ones; with k at most 10,000 together.
        group_by: a field: the k values with the nearest documents, and of each the group_size nearest that have it,
        group by group (Hit.group); k and offset count groups then. diversify: hits that are unlike each other, chosen
        of the `pool` nearest: 0 is as without it, 1 as different as can be. order_by: the hits that there are, in the
        order of a field, or from its greatest value. exact: score every vector instead of using the index. ef_search:
        accuracy of the index, 0 for the collection's own. explain: tell in `explained` of the hits how each shard found
        them. session: an eventual read that sees this client's own writes and never goes back. max_staleness: seconds,
        for eventual reads; TooStale otherwise."""
        by = Narrow(
            fields, max_distance, min_score, offset, like, explain, group_by, group_size, diversify, pool, order_by,
            descending, keywords, vector_name, sparse,
        )  # fmt: skip
        if text is not None:
            query, timeout = await self._query(query, text, vector_name, collection, timeout, mode)
        request = search_request(query, k, filter, collection, with_metadata, with_vectors, exact, ef_search, narrow=by)
        reading, seconds = values.reading(mode, session, max_staleness), values.check_timeout(timeout)
        found = await _asked(documents := await self._documents(), request, reading, seconds)
        return _hits(found.batch) if found.size < BESIDE_BYTES else await self._hits(documents, found)

    async def hybrid_search(
        self,
        vector: Any = None,
        keywords: str | None = None,
        k: int = 10,
        filter: FilterLike = None,
        *,
        like: str | None = None,
        text: str | None = None,
        vector_name: str | None = None,
        sparse: Mapping[str, Any] | None = None,
        fusion: RRF = EVEN,
        pool: int | None = None,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        with_metadata: bool = True,
        with_vectors: bool = False,
        fields: Iterable[str] | None = None,
        offset: int = 0,
        exact: bool = False,
        ef_search: int = 0,
        explain: bool = False,
        session: bool = False,
        max_staleness: Seconds | None = None,
        timeout: Seconds = TIMEOUT,
    ) -> Hits:
        """The k best of two searches at once or of three, for the documents near to a vector, for those with the words
        of `keywords`, and for those that a sparse vector finds (as of `search`): by reciprocal rank fusion, which makes
        Hit.score; ties by id. Hit.ranks is where a hit stands among the `pool` first of each that is asked for, in this
        order (docs/text-search.md, docs/sparse-vectors.md). text, like: instead of the vector, as of `search`; the
        document that hits are to be like is no hit. fusion: its k, and a weight for each. filter: of all searches. The
        rest as of `search`; explain: of all, in the same order."""
        count, left_out, size = candidates(k, offset, pool)
        no_text(text, vector_name)
        if text is not None:
            vector, timeout = await vector_of(
                self.embedder, self._documents, vector, text, collection, timeout, mode, "vector"
            )
        requests = hybrid_requests(
            Lists(vector, keywords, sparse), size, filter, collection, with_metadata, with_vectors, exact, ef_search,
            Narrow(fields, like=like, explain=explain, vector_name=vector_name),
        )  # fmt: skip
        weighed, reading = check_fusion(fusion, len(requests)), values.reading(mode, session, max_staleness)
        answers = await together(*(self._find(one, reading, timeout) for one in requests))
        lists, documents = [answer.batch for _, answer in answers], answers[0][0]
        weight = sum(answer.size for _, answer in answers)
        found = await made(documents, weight, fused, lists, weighed, count, left_out, like or "", size)
        hits = await made(documents, weight, _hits, found.batch)
        ranked = [msgspec.structs.replace(hit, ranks=ranks) for hit, ranks in zip(hits, found.ranks, strict=True)]
        return Hits(ranked, [told for one in lists for told in one.explained])

    async def search_many(
        self,
        queries: Any = None,
        k: int = 10,
        filter: FilterLike = None,
        *,
        texts: Iterable[str] | None = None,
        vector_name: str | None = None,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        with_metadata: bool = True,
        with_vectors: bool = False,
        fields: Iterable[str] | None = None,
        max_distance: float | None = None,
        min_score: float | None = None,
        offset: int = 0,
        group_by: str | None = None,
        group_size: int = 1,
        diversify: float | None = None,
        pool: int | None = None,
        order_by: str | None = None,
        descending: bool = False,
        exact: bool = False,
        ef_search: int = 0,
        explain: bool = False,
        session: bool = False,
        max_staleness: Seconds | None = None,
        timeout: Seconds = TIMEOUT,
    ) -> list[Hits]:
        """`search` for each row of a 2-d array, at most 1000, in one call of each shard (with group_by in calls for
        each row): the hits of each, in order. texts: instead, one for each search."""
        queries, timeout = await vectors_of(
            self.embedder, self._documents, queries, texts, collection, timeout, mode, "queries"
        )
        no_text(texts, vector_name)
        rows = values.as_array(queries, "queries", 2)
        narrow = Narrow(
            fields, max_distance, min_score, offset, None, explain, group_by, group_size, diversify, pool, order_by,
            descending, vector_name=vector_name,
        )  # fmt: skip
        request = search_request(
            rows[0], k, filter, collection, with_metadata, with_vectors, exact, ef_search, narrow=narrow
        )
        request = msgspec.structs.replace(request, vector=rows.tobytes())
        reading, seconds = values.reading(mode, session, max_staleness), values.check_timeout(timeout)
        documents = await self._documents()
        batches = await documents.search_many(
            request, len(rows), reading.mode, seconds, max_staleness=reading.max_staleness, session=reading.session
        )
        size = sum(map(calls.batch_bytes, batches))
        return await made(documents, size, lambda: [_hits(batch) for batch in batches])

    async def search_strong(
        self,
        query: Any = None,
        k: int = 10,
        filter: FilterLike = None,
        *,
        text: str | None = None,
        collection: str = DEFAULT_COLLECTION,
        with_metadata: bool = True,
        with_vectors: bool = False,
        exact: bool = False,
        ef_search: int = 0,
        timeout: Seconds = TIMEOUT,
    ) -> Hits:
        """`search` that sees every write acknowledged before it was called: one heartbeat round confirms the leader."""
        query, timeout = await vector_of(
            self.embedder, self._documents, query, text, collection, timeout, ReadMode.STRONG, "query"
        )
        request = search_request(query, k, filter, collection, with_metadata, with_vectors, exact, ef_search)
        return await self._search(request, _STRONG, timeout)

    async def search_leased(
        self,
        query: Any = None,
        k: int = 10,
        filter: FilterLike = None,
        *,
        text: str | None = None,
        collection: str = DEFAULT_COLLECTION,
        with_metadata: bool = True,
        with_vectors: bool = False,
        exact: bool = False,
        ef_search: int = 0,
        timeout: Seconds = TIMEOUT,
    ) -> Hits:
        """`search_strong` without the round while the leader's lease lasts: as fresh as long as clocks drift less than
        the configured bound."""
        query, timeout = await vector_of(
            self.embedder, self._documents, query, text, collection, timeout, ReadMode.LEASED, "query"
        )
        request = search_request(query, k, filter, collection, with_metadata, with_vectors, exact, ef_search)
        return await self._search(request, _LEASED, timeout)

    async def search_eventual(
        self,
        query: Any = None,
        k: int = 10,
        filter: FilterLike = None,
        *,
        text: str | None = None,
        collection: str = DEFAULT_COLLECTION,
        with_metadata: bool = True,
        with_vectors: bool = False,
        exact: bool = False,
        ef_search: int = 0,
        session: bool = False,
        max_staleness: Seconds | None = None,
        timeout: Seconds = TIMEOUT,
    ) -> Hits:
        """`search` on any replica, leader or not, that of this process first: sees some earlier state. See `search` for
        session, max_staleness."""
        query, timeout = await vector_of(
            self.embedder, self._documents, query, text, collection, timeout, _EVENTUAL, "query"
        )
        request = search_request(query, k, filter, collection, with_metadata, with_vectors, exact, ef_search)
        return await self._search(request, values.reading(_EVENTUAL, session, max_staleness), timeout)

    async def search_partial(
        self,
        query: Any = None,
        k: int = 10,
        filter: FilterLike = None,
        *,
        like: str | None = None,
        text: str | None = None,
        vector_name: str | None = None,
        keywords: str | None = None,
        sparse: Mapping[str, Any] | None = None,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        with_metadata: bool = True,
        with_vectors: bool = False,
        fields: Iterable[str] | None = None,
        max_distance: float | None = None,
        min_score: float | None = None,
        offset: int = 0,
        group_by: str | None = None,
        group_size: int = 1,
        diversify: float | None = None,
        pool: int | None = None,
        order_by: str | None = None,
        descending: bool = False,
        exact: bool = False,
        ef_search: int = 0,
        explain: bool = False,
        timeout: Seconds = TIMEOUT,
    ) -> PartialHits:
        """`search` that answers after `timeout` seconds without the shards that cannot, and says which."""
        narrow = Narrow(
            fields,
            max_distance,
            min_score,
            offset,
            like,
            explain,
            group_by,
            group_size,
            diversify,
            pool,
            order_by,
            descending,
            keywords,
            vector_name,
            sparse,
        )
        no_text(text, vector_name)
        query, timeout = await vector_of(
            self.embedder, self._documents, query, text, collection, timeout, mode, "query"
        )
        request = search_request(
            query, k, filter, collection, with_metadata, with_vectors, exact, ef_search, narrow=narrow
        )
        documents, found = await self._find(request, values.reading(mode), timeout, partial=True)
        missing = {shard: error.message for shard, error in found.missing.items()}
        return PartialHits(hits=await self._hits(documents, found), missing=missing, gaps=found.gaps)

    async def _query(
        self,
        query: Any,
        text: str,
        vector_name: str | None,
        collection: str,
        timeout: Seconds,
        mode: ReadMode | str,
    ) -> tuple[Any, Seconds]:
        """As `vector_of`, for a search that is given a text."""
        no_text(text, vector_name)
        return await vector_of(self.embedder, self._documents, query, text, collection, timeout, mode, "query")

    async def _search(self, request: SearchRequest, reading: Reading, timeout: Seconds) -> Hits:
        seconds = values.check_timeout(timeout)
        documents = await self._documents()
        found = await _asked(documents, request, reading, seconds)  # as `_find`, which most searches need not wait for
        if found.size < BESIDE_BYTES:
            return _hits(found.batch)
        return await self._hits(documents, found)

    async def _find(
        self, request: SearchRequest, reading: Reading, timeout: Seconds, *, partial: bool = False
    ) -> tuple[DocumentCalls, Found]:
        seconds = values.check_timeout(timeout)
        documents = await self._documents()
        return documents, await _asked(documents, request, reading, seconds, partial=partial)

    @staticmethod
    def _hits(documents: DocumentCalls, found: Found) -> Awaitable[Hits]:
        return made(documents, found.size, _hits, found.batch)


def _asked(
    documents: DocumentCalls, request: SearchRequest, reading: Reading, seconds: float, *, partial: bool = False
) -> Awaitable[Found]:
    mode, max_staleness, session = reading
    return documents.search(request, mode, seconds, max_staleness=max_staleness, session=session, partial=partial)


def no_text(texts: object, vector_name: str | None) -> None:
    """A collection's model makes the vector without a name. Raises InvalidArgument."""
    if texts is not None and vector_name is not None:
        raise InvalidArgument("give the vector itself: the collection's model makes those without a name", field="text")


def made(documents: DocumentCalls, size: int, fn: Callable[..., T], *arguments: object) -> Awaitable[T]:
    """Make values of `size` bytes of an answer; in a thread, if there are some and the bytes are many."""
    return beside(documents.blocking if size >= BESIDE_BYTES else None, fn, *arguments)


def _hits(batch: HitBatch) -> Hits:
    return Hits(answers.hits(batch), batch.explained)
