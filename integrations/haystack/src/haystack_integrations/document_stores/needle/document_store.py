"""`NeedleDocumentStore`: Haystack's DocumentStore over a Needle cluster, or over a database in this process."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from haystack import default_from_dict, default_to_dict
from haystack.dataclasses import Document
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.utils import Secret, deserialize_secrets_inplace
from haystack_integrations.document_stores.needle.filters import filter_of
from haystack_integrations.document_stores.needle.records import (
    EMBEDDED,
    check_documents,
    dates_of,
    document_of,
    retrieved,
    stored,
)

import needle
from needle import Filter, Metric

WRITERS: Final = 32
"""Documents that are inserted at the same time where each must be new."""
AT_ONCE: Final = 1000
"""Ids of one call: a cluster takes so many, and not any number."""


class NeedleDocumentStore:
    """Documents in one collection. Every write is acknowledged by a majority of its shard, and every read sees it.

    cluster: addresses of nodes ("host:port"), as `needle.connect_sync` takes them. directory: of a database in this
    process, instead (`needle.open_sync`; ":memory:" for one that is gone with the store). collection: made at the first
    call if it is not there, with `embedding_dim` and `metric` ("cosine", "l2", "dot"). api_key: a Secret. mode: of
    reads ("strong", "leased", "eventual").

    The connection is opened at the first call; `close` ends it.
    """

    def __init__(
        self,
        cluster: str | list[str] | None = None,
        *,
        directory: str | None = None,
        collection: str = "haystack",
        embedding_dim: int = 768,
        metric: str = "cosine",
        api_key: Secret | None = None,
        mode: str = "strong",
    ) -> None:
        if (cluster is None) == (directory is None):
            raise ValueError(
                "give either cluster, the addresses of nodes, or directory, for a database in this process"
            )
        self._cluster = cluster
        self._directory = directory
        self._collection = collection
        self._embedding_dim = embedding_dim
        self._metric = Metric(metric)
        self._api_key = api_key
        self._mode = mode
        self._client: needle.SyncClient | None = None
        self._opening = threading.Lock()  # asynchronous methods run in threads

    def to_dict(self) -> dict[str, Any]:
        """For `Pipeline.dumps`."""
        return default_to_dict(
            self,
            cluster=self._cluster,
            directory=self._directory,
            collection=self._collection,
            embedding_dim=self._embedding_dim,
            metric=str(self._metric),
            api_key=None if self._api_key is None else self._api_key.to_dict(),
            mode=self._mode,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NeedleDocumentStore:
        """What `to_dict` gave."""
        deserialize_secrets_inplace(data["init_parameters"], keys=["api_key"])
        return default_from_dict(cls, data)

    def close(self) -> None:
        """End the connection. Idempotent; the next call opens it again."""
        with self._opening:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    # --- Haystack's protocol ----------------------------------------------------------------------------------------
    def count_documents(self) -> int:
        """All documents."""
        return self._opened().count(collection=self._collection)

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """All that match, in the order of ids."""
        found = self._opened().scan(filter_of(filters), with_vectors=True, mode=self._mode, collection=self._collection)
        return [document_of(one.id, one.vector, one.metadata) for one in found]

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """How many were written. policy: NONE and FAIL raise DuplicateDocumentError for an id that is there; others of
        the call may be written then. SKIP leaves it as it is, OVERWRITE replaces it."""
        given = [stored(one, self._embedding_dim) for one in check_documents(documents)]
        if not given:
            return 0
        if policy is DuplicatePolicy.OVERWRITE:
            ids, vectors, kept = zip(*given, strict=True)
            self._opened().insert_batch(ids=ids, vectors=vectors, metadatas=kept, collection=self._collection)
            return len(given)
        if policy is not DuplicatePolicy.SKIP:
            self._check_new([id_ for id_, _, _ in given])
        self._opened()
        with ThreadPoolExecutor(WRITERS) as writers:
            there = [id_ for id_ in writers.map(self._insert_new, given) if id_ is not None]
        if there and policy is not DuplicatePolicy.SKIP:
            raise DuplicateDocumentError(f"documents with these ids are there already: {', '.join(there[:10])}")
        return len(given) - len(there)

    def delete_documents(self, document_ids: list[str]) -> None:
        """What is not there is no error."""
        for ids in _parts(document_ids):
            self._opened().delete(ids, collection=self._collection)

    # --- more -------------------------------------------------------------------------------------------------------
    def delete_all_documents(self) -> None:
        """All documents; the collection stays."""
        self._opened().delete_where(Filter.parse({}), collection=self._collection)

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """How many were deleted."""
        return self._opened().delete_where(filter_of(filters), collection=self._collection).count

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Set fields of the metadata of all that match; how many did."""
        dates = dates_of(meta)
        fields = {f"meta.{name}": value for name, value in meta.items()}
        fields |= {f"dates.{name}": value for name, value in dates.items()}
        no_dates = [f"dates.{name}" for name in meta if name not in dates]
        return (
            self._opened()
            .patch_where(filter_of(filters), set=fields, unset=no_dates, collection=self._collection)
            .count
        )

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """How many match."""
        return self._opened().count(filter_of(filters), collection=self._collection)

    def embedding_retrieval(
        self, query_embedding: Sequence[float], *, filters: dict[str, Any] | None = None, top_k: int = 10
    ) -> list[Document]:
        """The nearest that have embeddings, with scores: higher is nearer."""
        where = filter_of(filters) & Filter.eq(EMBEDDED, True)
        hits = self._opened().search(
            query_embedding, top_k, where, with_vectors=True, mode=self._mode, collection=self._collection
        )
        return retrieved(hits)

    # --- the same for asyncio ---------------------------------------------------------------------------------------
    async def count_documents_async(self) -> int:
        """As `count_documents`."""
        return await asyncio.to_thread(self.count_documents)

    async def filter_documents_async(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """As `filter_documents`."""
        return await asyncio.to_thread(self.filter_documents, filters)

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """As `write_documents`."""
        return await asyncio.to_thread(self.write_documents, documents, policy)

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """As `delete_documents`."""
        await asyncio.to_thread(self.delete_documents, document_ids)

    async def delete_all_documents_async(self) -> None:
        """As `delete_all_documents`."""
        await asyncio.to_thread(self.delete_all_documents)

    async def delete_by_filter_async(self, filters: dict[str, Any]) -> int:
        """As `delete_by_filter`."""
        return await asyncio.to_thread(self.delete_by_filter, filters)

    async def update_by_filter_async(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """As `update_by_filter`."""
        return await asyncio.to_thread(self.update_by_filter, filters, meta)

    async def count_documents_by_filter_async(self, filters: dict[str, Any]) -> int:
        """As `count_documents_by_filter`."""
        return await asyncio.to_thread(self.count_documents_by_filter, filters)

    # --- what they share --------------------------------------------------------------------------------------------
    def _opened(self) -> needle.SyncClient:
        with self._opening:
            if self._client is None:
                client = self._connected()
                try:
                    client.create_collection(
                        self._collection, dimensions=self._embedding_dim, metric=self._metric, if_absent=True
                    )
                except BaseException:  # a directory that stays open could not be opened again
                    client.close()
                    raise
                self._client = client
            return self._client

    def _connected(self) -> needle.SyncClient:
        if self._directory is not None:
            return needle.open_sync(self._directory)
        key = None if self._api_key is None else self._api_key.resolve_value()
        return needle.connect_sync(self._cluster or (), api_key=key)

    def _check_new(self, ids: list[str]) -> None:
        """Raises DuplicateDocumentError before anything is written, for what can be seen then."""
        named = sorted(id_ for id_, times in Counter(ids).items() if times > 1)
        for part in _parts(ids):
            there = self._opened().get(part, fields=[], with_vectors=False, collection=self._collection)
            named += [one.id for one in there]
        if named:
            raise DuplicateDocumentError(f"documents with these ids are there already: {', '.join(named[:10])}")

    def _insert_new(self, given: tuple[str, list[float], dict[str, Any]]) -> str | None:
        """The id, if a document of it is there already."""
        id_, vector, kept = given
        try:
            self._opened().insert_if_absent(id_, vector, kept, collection=self._collection)
        except needle.AlreadyExists:
            return id_
        return None


def _parts(ids: list[str]) -> Iterator[list[str]]:
    return (ids[at : at + AT_ONCE] for at in range(0, len(ids), AT_ONCE))
