"""The methods that tell what is written, as it is committed (docs/changes.md).

A part of `DocumentMethods` (documents.py), which says what holds for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from needle.base.errors import InvalidArgument, invalid
from needle.base.filters.builder import Filter
from needle.client import named_values, values
from needle.client.document_calls import OverDocuments
from needle.client.feed import NOW, START, Changes, Wish
from needle.client.narrowed import bound_of
from needle.client.texts import vector_of
from needle.client.values import Seconds
from needle.protocol.change_calls import Near

DEFAULT_COLLECTION = "default"
TIMEOUT = 10.0
FilterLike = Filter | Mapping[str, Any] | None


class FeedMethods(OverDocuments):
    """What is told of changes."""

    def changes(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        since: str = NOW,
        filter: FilterLike = None,
        with_vectors: bool = True,
        vectors: Iterable[str] | None = None,
        timeout: Seconds = TIMEOUT,
    ) -> Changes:
        """Each committed change of a collection once, in the order in which each shard committed them: an async
        iterator of `Change` (docs/changes.md). Those of one document keep their order, also when its key moves to
        another shard.

        since: "now", which is when the feed begins: with its first step, or `async with` it, or `await feed.begin()`;
        "start" for all documents first; or the `token` of a feed, to go on behind the last change that it gave, from
        any client. A change of kind "reset" says to forget all documents, since those that there are follow, up to
        "ready": where a feed comes too late for what the shards remember, too. filter: as if there were only documents
        that match: one that begins to comes as "insert", one that stops as "delete"; go on by a token with the same
        filter. vectors: names of named vectors that documents come with, in `Change.vectors`; a feed that goes on by a
        token may ask for others. timeout: seconds that a shard may say nothing, or an answer about where to begin
        take. Raises InvalidArgument with the first step for a vector that the collection does not have."""
        name, wanted = values.check_name(collection), values.filter_bytes(filter)
        whole, seconds = values.check_flag(with_vectors, "with_vectors"), values.check_timeout(timeout)
        wish = Wish(whole, wanted, named=named_values.wanted(vectors))
        return Changes(self._documents, name, since, wish, timeout=seconds)

    def watch(
        self,
        collection: str = DEFAULT_COLLECTION,
        query: Any = None,
        *,
        text: str | None = None,
        max_distance: float | None = None,
        min_score: float | None = None,
        vector_name: str | None = None,
        filter: FilterLike = None,
        since: str = NOW,
        with_vectors: bool = True,
        timeout: Seconds = TIMEOUT,
    ) -> Changes:
        """Be told when a document comes near: `changes` as if there were only documents whose vectors are at most
        `max_distance` from the query, or score `min_score` at least, as a search gives these. An async iterator of
        `Change`: "insert" of a document that came near, by being written or moved; "update" of one that was near and
        still is; "delete" of one that was, and was deleted, or moved away, or does not match the filter any more.

        query: a vector. text: instead, where the collection names a model. vector_name: documents are near by their
        vectors of this name, and a change has that as its `vector`; one that gets it comes near, one that loses it
        leaves. since: "now", or the `token` of a `watch` with the same query, bounds, vector_name and filter. "reset"
        says that the place is not known any more: what came and went meanwhile is not told, a search with the same
        bounds finds what is near, and changes go on from there. Raises InvalidArgument, for the query with the first
        step."""
        if (query is None) == (text is None):
            raise InvalidArgument("give either a query vector or a text", field="query")
        if text is not None and vector_name is not None:
            raise InvalidArgument(
                "give the vector itself: the collection's model makes those without a name", field="text"
            )
        given = b"" if query is None else values.vector_bytes(query)
        of = "" if vector_name is None else values.check_name(vector_name, "vector_name")
        near = Near(given, bound_of(max_distance, "max_distance"), bound_of(min_score, "min_score"), of)
        if near.max_distance is None and near.min_score is None:
            raise InvalidArgument("give max_distance, or min_score: how near documents are to be", field="max_distance")
        if since == START:
            raise invalid("since", since, '"now", or a token; a search finds what is near already')
        name, wanted = values.check_name(collection), values.filter_bytes(filter)
        whole, seconds = values.check_flag(with_vectors, "with_vectors"), values.check_timeout(timeout)

        async def embedded() -> bytes:
            row, _ = await vector_of(self.embedder, self._documents, None, text, name, seconds, field="query")
            return values.vector_bytes(row)

        made = None if text is None else embedded
        return Changes(self._documents, name, since, Wish(whole, wanted, near), timeout=seconds, query=made)
