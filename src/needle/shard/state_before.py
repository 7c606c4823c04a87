"""What a batch asks of the state before it, answered by the open collections and by the documents in the file.

Only apply uses it, between two batches. What a batch may ask is said in apply/before.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from pyroaring import BitMap

from needle.base.filters.nodes import Node, evaluate, named
from needle.shard.apply.before import Bounds, Matched, Member, Stored
from needle.shard.bulk.staged import StagedFiles
from needle.shard.documents.metadata_rows import decode_metadata
from needle.shard.documents.records import CollectionRecord, StoredDocument
from needle.shard.documents.store import DocumentStore
from needle.shard.index_change import AS_MADE, IndexState
from needle.shard.live_collection import LiveCollection, ReplicaView
from needle.shard.open_collections import OpenCollections
from needle.shard.plan import PublishedSegment

MATCH_ROWS = 128
"""Documents read at a time to see whether they match."""


class StateBefore:
    """What a batch asks of the state before it: before.Collections, and before.Stored."""

    def __init__(
        self, live: OpenCollections, store: DocumentStore, view: ReplicaView, staged: StagedFiles | None = None
    ) -> None:
        self._staged = staged
        self._live = live
        self._store = store
        self._view = view

    def stored(self) -> Stored:
        return Stored(
            self._view.fence, self._hidden, self._documents, self._select, self._marked, self._live_ordinals,
            self._match, self._store.expiring, self._view.pins, self._view.catalog, self._staged,
            lambda: sorted(self._live.moving),
        )  # fmt: skip

    def manifest(self, collection_id: int) -> list[PublishedSegment]:
        """Of one collection; empty if there is none."""
        live = self._by_id(collection_id)
        return [] if live is None else live.manifest

    def indexing(self, collection_id: int) -> IndexState:
        """So this."""
        live = self._by_id(collection_id)
        return AS_MADE if live is None else live.indexing

    def named(self, name: str) -> CollectionRecord | None:
        """The record of a collection; None if there is none. So `numbered`."""
        live = self._live.named.get(name)
        return None if live is None else live.record

    def numbered(self, collection_id: int) -> CollectionRecord | None:
        live = self._by_id(collection_id)
        return None if live is None else live.record

    def vectors_of(self, name: str) -> Sequence[str]:
        """See Collections."""
        return self._live.vector_names(name)

    def all(self) -> list[CollectionRecord]:
        """Of every collection, by id."""
        return [live.record for live in self._live.numbered.values()]

    def _by_id(self, collection_id: int) -> LiveCollection | None:
        return self._live.numbered.get(collection_id)

    def _hidden(self, collection_id: int) -> Mapping[int, BitMap]:
        live = self._by_id(collection_id)
        return {} if live is None else live.hidden

    def _marked(self, collection_id: int) -> Mapping[int, BitMap]:
        live = self._by_id(collection_id)
        return {} if live is None else live.marked

    def _live_ordinals(self, collection_id: int) -> BitMap:
        live = self._by_id(collection_id)
        return BitMap() if live is None else live.live.bitmap()

    def _documents(self, collection_id: int, ordinals: Sequence[int]) -> Mapping[int, StoredDocument]:
        return self._store.by_ordinal(collection_id, ordinals, metadata=True, vectors=False)

    def _match(
        self, collection_id: int, node: Node, member: Member | None, after: int, upto: int, bounds: Bounds
    ) -> Matched:
        live = self._by_id(collection_id)
        if live is None:
            return [], upto
        found: list[StoredDocument] = []
        looked = size = 0
        for row in self._in_question(collection_id, node, after, upto, bounds.looks):
            if size >= bounds.bytes_max:
                return found, after
            looked, after = looked + 1, row.ordinal
            size += len(row.metadata)
            if member is not None and not member(row.id, row.metadata):
                continue
            if live.shows(after) and evaluate(node, decode_metadata(row.metadata), row.id):
                found.append(row)
                if len(found) == bounds.limit:
                    return found, after
        return found, after if looked == bounds.looks else upto

    def _in_question(
        self, collection_id: int, node: Node, after: int, upto: int, looks: int
    ) -> Iterator[StoredDocument]:
        """The next current documents that may match, in the order of their ordinals, `looks` at most."""
        ids = named(node)
        if ids is not None:
            places = self._store.places(collection_id, ids)
            there = sorted((ordinal, id_) for id_, ordinal in places.items() if after < ordinal <= upto)[:looks]
            for start in range(0, len(there), MATCH_ROWS):
                part = [id_ for _, id_ in there[start : start + MATCH_ROWS]]
                yield from self._store.by_id(collection_id, part, vectors=False)
            return
        while looks > 0:
            rows = self._store.page(collection_id, after, upto, min(looks, MATCH_ROWS))
            if not rows:
                return
            yield from rows
            after, looks = rows[-1].ordinal, looks - len(rows)

    def _select(self, collection_id: int, member: Callable[[str, bytes], bool], after: int, upto: int) -> list[int]:
        fence = self._view.fence
        custom = fence is not None and fence.custom
        rows = self._store.live_between(collection_id, after, upto, metadata=custom)
        return [ordinal for ordinal, name, metadata in rows if member(name, metadata)]
