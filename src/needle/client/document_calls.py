"""What document methods stand on: a few calls in the values of the wire, whoever answers them.

The router makes them of the shards' answers (router/router.py). Knows nothing of the types that callers pass in: those
become bytes in documents.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from needle.base.collection_sizes import CollectionSize
from needle.base.errors import CollectionNotFound, NeedleError
from needle.base.explain import ShardExplanation
from needle.base.filters.ordering import ScanOrder
from needle.base.model import (
    CollectionSpec,
    Hit,
    HitBatch,
    IndexParams,
    ReadMode,
    SearchRequest,
    VectorChange,
    VectorSpec,
    WriteResult,
)
from needle.base.runtime import Blocking
from needle.client.embedding import Embedder
from needle.client.feed_calls import FeedCalls
from needle.client.where import OnProgress
from needle.protocol.calls import DocumentBatch, FacetAnswer, ScanAnswer, ScanPin
from needle.protocol.commands import AS_IT_IS, Change, ChangeWhere, Named
from needle.routing.shard_map import KeyRange
from needle.routing.topology import CollectionInfo


class Found(msgspec.Struct, frozen=True):
    """A search's answer. missing: shards without an answer and why, gaps: the ranges of the key space they own; both
    empty unless partial answers were asked for. applied: the log index at which each shard was searched. fanout: how
    many shards were asked. epoch: of the map. size: bytes of the shards' answers."""

    batch: HitBatch
    missing: dict[int, NeedleError]
    gaps: list[KeyRange]
    applied: dict[int, int]
    fanout: int
    epoch: int
    size: int = 0


class Hits(list[Hit]):
    """The hits of a search, nearest first. explained: with explain=True, how each shard found them."""

    __slots__ = ("explained",)

    def __init__(self, hits: Iterable[Hit] = (), explained: list[ShardExplanation] | None = None) -> None:
        super().__init__(hits)
        self.explained: list[ShardExplanation] = explained or []


class PartialHits(msgspec.Struct, frozen=True, kw_only=True):
    """Hits of the shards that answered. missing: why other shards did not, by number. gaps: the ranges of routing keys
    that were not searched, [start, end) with end None for the end of the key space. complete: nothing is missing."""

    hits: Hits
    missing: dict[int, str]
    gaps: list[KeyRange]

    @property
    def complete(self) -> bool:
        """Whether every shard answered."""
        return not self.missing


class ValueCount(msgspec.Struct, frozen=True):
    """How many documents have a value."""

    value: str | int | float | bool
    count: int


class Facet(msgspec.Struct, frozen=True, kw_only=True):
    """How many documents have each value of a field. values: those with the most documents first, then by value.
    distinct: how many values there are in all. documents: that match; without: of these, those that have no value."""

    values: list[ValueCount]
    distinct: int
    documents: int
    without: int

    @staticmethod
    def of(answer: FacetAnswer) -> Facet:
        """From what shards answer."""
        values = [ValueCount(value, count) for value, count in zip(answer.values, answer.counts, strict=True)]
        return Facet(values=values, distinct=answer.distinct, documents=answer.documents, without=answer.without)


class BatchPart(NamedTuple):
    """What became of some documents of a batch: of one log entry, or of those that got into none. rows: their places
    in the batch, ascending. outcome: an error other than OutcomeUnknown says that none of them was written."""

    rows: Sequence[int]
    outcome: WriteResult | NeedleError


class Held(NamedTuple):
    """What a shard has of a collection. size: None if it did not say, as nodes of a release before this do not."""

    documents: int
    size: CollectionSize | None


def find_collection(name: str, collections: Sequence[CollectionInfo], aliases: Mapping[str, str]) -> CollectionInfo:
    """Of a name or an alias. Raises CollectionNotFound."""
    found = {info.spec.name: info for info in collections}.get(aliases.get(name, name))
    if found is None:
        raise CollectionNotFound(f"there is no collection {name[:80]!r}", collection=name[:80])
    return found


class DocumentCalls(Protocol):
    """Documents and collections of one cluster. Safe to call concurrently on one event loop."""

    @property
    def blocking(self) -> Blocking | None:
        """Threads for large batches and answers; without them the event loop waits."""
        ...

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
        """Insert or replace one document; expected, matches, expires, named as in `commands.Insert`, but that vectors
        have the names that callers know."""
        ...

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
        """Insert or replace many documents with different ids: each is in one part, parts are in the order of their
        first documents. rows: len(ids) rows of float32 bytes. expires, named: as of `insert`. whole: nothing is
        written if it can be known beforehand that a document is refused for what it is."""
        ...

    async def delete(self, collection: str, names: list[str], timeout: float, matches: bytes = b"") -> WriteResult:
        """Delete documents. count: how many were there. matches: as in `commands.Delete`."""
        ...

    async def patch(
        self,
        collection: str,
        names: list[str],
        change: Change,
        expected: int | None,
        matches: bytes,
        timeout: float,
    ) -> WriteResult:
        """Change the metadata of documents. count: how many were there. See `commands.Patch`."""
        ...

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
        """Give documents other vectors. count: how many were there. vector_name: of named ones. gone: these are taken
        away. See `commands.UpdateVectors`."""
        ...

    async def change_where(
        self, command: ChangeWhere, timeout: float, progress: OnProgress | None = None
    ) -> WriteResult:
        """Change or delete the documents that match a filter, in parts. count: how many they were. When it breaks off,
        details["documents_changed"] of the error tells how many were. progress: told after each part."""
        ...

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
        """How many documents match a filter (b"": all)."""
        ...

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
        """How many documents that match a filter (b"": all) have each value of a field; see `calls.FacetCall`."""
        ...

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
        """A page of documents in the order of their ids, or of a field; see `calls.ScanCall`. named: with these named
        vectors."""
        ...

    def feeding(self) -> FeedCalls:
        """What a change feed asks of the shards."""
        ...

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
        """The documents with these ids that exist, in the order asked for; with these named vectors."""
        ...

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
        """The k nearest documents. session: an eventual read sees writes made through here and never goes back.
        partial: answer without shards that cannot."""
        ...

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
        """`search` for each of `count` vectors; the request's vector holds all of them."""
        ...

    async def create_collection(
        self,
        spec: CollectionSpec,
        if_absent: bool,
        timeout: float,
        fields: Sequence[str] = (),
        vectors: Sequence[tuple[str, VectorSpec]] = (),
        sparse: Sequence[str] = (),
    ) -> WriteResult:
        """Create a collection. fields: paths of metadata that have a declared index from the beginning; vectors: named
        ones that documents may have; sparse: fields of metadata that are sparse ones."""
        ...

    async def add_vector(
        self, name: str, vector: str, spec: VectorSpec, if_absent: bool, timeout: float
    ) -> WriteResult:
        """Let documents of a collection have a vector of this name."""
        ...

    async def drop_vector(self, name: str, vector: str, timeout: float) -> WriteResult:
        """Documents of a collection have no such vector any more."""
        ...

    async def drop_collection(self, name: str, timeout: float) -> WriteResult:
        """Drop a collection and all its documents."""
        ...

    async def alter_collection(
        self,
        name: str,
        ef_search: int,
        ttl: float,
        timeout: float,
        index: IndexParams | None = None,
        vectors: Sequence[VectorChange] = (),
    ) -> WriteResult:
        """Change what may be changed of a collection; ef_search 0, ttl below 0, no index, no vectors: as they are."""
        ...

    async def declare_field(self, name: str, path: str, declared: bool, timeout: float) -> WriteResult:
        """Have every replica keep an index of a field of metadata, or not any more."""
        ...

    async def declare_sparse(
        self, name: str, field: str, declared: bool, timeout: float, *, fits: bool = True
    ) -> WriteResult:
        """Have documents be found by the sparse vectors of a field of metadata, or not any more. fits: but only where
        each shard's leader has the memory for the index."""
        ...

    async def set_alias(self, alias: str, collection: str, timeout: float) -> WriteResult:
        """Make `alias` another name of a collection, in place of what it was before."""
        ...

    async def remove_alias(self, alias: str, timeout: float) -> WriteResult:
        """There is no such alias any more."""
        ...

    async def described(self, mode: ReadMode, timeout: float) -> tuple[list[CollectionInfo], dict[str, str]]:
        """All collections by name, and the collection that each alias is a name of."""
        ...

    async def collections(self, mode: ReadMode, timeout: float) -> list[CollectionSpec]:
        """All collections, by name."""
        ...

    async def counts(self, mode: ReadMode, timeout: float) -> dict[str, dict[int, int]]:
        """Documents of each collection by shard."""
        ...

    async def sizes(
        self, mode: ReadMode, timeout: float, only: CollectionInfo | None = None
    ) -> dict[str, dict[int, Held]]:
        """Documents of each collection by shard, and how large it is there."""
        ...


class OverDocuments(ABC):
    """What the methods for documents need: `_documents`, which those who have them give; and perhaps an embedder.

    embedder: makes vectors of texts; None: WordLlama."""

    embedder: Embedder | None = None

    @abstractmethod
    async def _documents(self) -> DocumentCalls:
        """Where the methods go. Raises Unavailable when there is nothing yet, or no longer."""
