"""Gets, counts and scans of one replica, beside its searches: each works on one immutable view, while it is held among
those that run.

Threads: any. It must not know apply, snapshots or Raft.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Final, NamedTuple

import msgspec

from needle.base.dtypes import DType
from needle.base.errors import CorruptDocuments
from needle.base.filters.nodes import Node, evaluate
from needle.base.filters.ordering import Key, ScanOrder
from needle.base.model import Claim, HitBatch, SearchRequest
from needle.routing.strategy import key_hash
from needle.shard.apply.holdings import Fence, check_claim, decode_holdings
from needle.shard.documents import scans
from needle.shard.documents.metadata_rows import decode_metadata
from needle.shard.documents.records import CollectionRecord, StoredDocument
from needle.shard.documents.scans import Seen
from needle.shard.fields.builders import Builders
from needle.shard.fields.counting import Counts, value_counts
from needle.shard.fields.field_index import Path
from needle.shard.live_collection import ReplicaView
from needle.shard.narrowing import few_of, matching_of
from needle.shard.ordered_scan import Ordered
from needle.shard.query import allowed_ordinals, both, visible_ordinals
from needle.shard.searching import Clock, Searches, not_served
from needle.shard.sparse_search import search_sparse
from needle.shard.text_search import search_words

SCAN_LOOKS: Final = 10_000
SCAN_LOOKS_BYTES: Final = 32 << 20
SCAN_BYTES: Final = 8 << 20
"""One page of a scan looks at so many documents, or metadata of so many bytes, and holds so many bytes, about."""

GoOn = Callable[[], None]
"""Called every now and then; what it raises ends the work."""


def on() -> None:
    """Nobody ends it."""


class Page(NamedTuple):
    """What one page of a scan is to hold: see protocol.calls.ScanCall. vector_bytes: what those of one document
    take that the page has, named ones too. bound: as there; a page then tells no id but those of documents that it
    holds. pin: (index, token) of the open one that it is read at, None for what there is now."""

    collection: str
    filter: bytes
    after: str
    limit: int
    with_vectors: bool
    slice: tuple[int, int] = (0, 1)
    vector_bytes: int = 0
    bound: bytes = b""
    pin: tuple[int, int] | None = None
    order: ScanOrder | None = None

    def holds(self, document: StoredDocument, node: Node | None) -> bool:
        which, of = self.slice
        if of > 1 and key_hash(document.id) % of != which:
            return False
        return node is None or evaluate(node, decode_metadata(document.metadata), document.id)


class Scanned(NamedTuple):
    """documents: in the order of their ids. reached: up to where was looked; None: to the end. applied: log index.
    keys, key: of a scan in the order of a field, those of the documents, and of where was looked up to."""

    documents: list[StoredDocument]
    reached: str | None
    applied: int
    keys: Sequence[Key] = ()
    key: Key | None = None


class Reads(Searches):
    """What state_machine.Replica answers from views."""

    _last_fence: tuple[bytes, Fence] | None = None

    def get(
        self, collection: str, ids: list[str], with_vectors: bool, claim: Claim | None, bound: bytes
    ) -> list[StoredDocument]:
        """See Replica.get."""
        try:
            found = self._get(collection, ids, with_vectors, claim)
            node = both(b"", bound, self.limits)
            if node is None:
                return found
            return [one for one in found if evaluate(node, decode_metadata(one.metadata), one.id)]
        except CorruptDocuments as error:
            raise not_served(error) from error  # the store has told of it

    def _get(self, collection: str, ids: list[str], with_vectors: bool, claim: Claim | None) -> list[StoredDocument]:
        with self.entered():
            view = self.view()
            record = view.collection(collection).record
            if claim is None and view.fence is None:
                return given(record, view.store.by_id(record.id, ids, vectors=with_vectors))
            # What is read may be newer than the view: judge it by the holdings of the same moment.
            found, index, held = view.store.by_id_held(record.id, ids, vectors=with_vectors)
            fence = None if held is None else self._fence_of(held)
            check_claim(fence, claim, index)
            found = found if fence is None else [one for one in found if fence.shows(one.id, one.metadata)]
            return given(record, found)

    def count(
        self,
        collection: str,
        filter_json: bytes,
        claim: Claim | None,
        go_on: Callable[[], None],
        builders: Builders | None,
        bound: bytes,
    ) -> tuple[int, int]:
        """See Replica.count_matching."""
        try:
            with self.entered():
                view = self.view()
                check_claim(view.fence, claim, view.at.index)
                found = view.collection(collection)
                allowed = allowed_ordinals(found, filter_json, self.limits, builders, go_on, bound)
                return found.visible if allowed is None else len(allowed), view.at.index
        except CorruptDocuments as error:
            self.found_damage(error, os.path.dirname(view.store.path))
            raise not_served(error) from error

    def value_counts(
        self,
        collection: str,
        wanted: tuple[Path, bytes, bytes],
        claim: Claim | None,
        go_on: Callable[[], None],
        builders: Builders | None,
    ) -> tuple[Counts, int]:
        """How many documents have each value of a field, and at which applied index. wanted: the field's path, a filter
        and a bound. The rest as of Replica.count_matching. Raises InvalidArgument for a field with too many values."""
        path, filter_json, bound = wanted
        try:
            with self.entered():
                view = self.view()
                check_claim(view.fence, claim, view.at.index)
                found = view.collection(collection)
                allowed = allowed_ordinals(found, filter_json, self.limits, builders, go_on, bound)
                among = visible_ordinals(found) if allowed is None else allowed.bitmap
                end = found.record.next_ordinal
                return value_counts(found.payload, path, end, among, builders, go_on), view.at.index
        except CorruptDocuments as error:
            self.found_damage(error, os.path.dirname(view.store.path))
            raise not_served(error) from error

    def scored(
        self, request: SearchRequest, claim: Claim | None, go_on: GoOn, builders: Builders | None, clock: Clock
    ) -> HitBatch:
        """A shard's part of a search by words, or by a sparse vector. The rest as of Replica.count_matching."""
        search = search_words if request.sparse is None else search_sparse
        try:
            with self.entered():
                view = self.view()
                check_claim(view.fence, claim, view.at.index)
                found, store, at = view.collection(request.collection), view.store, view.at.index
                return search(found, store, request, at, self.limits, builders, go_on, clock)
        except CorruptDocuments as error:
            self.found_damage(error, os.path.dirname(view.store.path))
            raise not_served(error) from error

    def scan(self, page: Page, claim: Claim | None, go_on: Callable[[], None], builders: Builders | None) -> Scanned:
        """See Replica.scan."""
        try:
            with self.entered():
                view = self.view()
                scanned = self._scan if page.order is None else self._scan_in_order
                return scanned(view, page, claim, go_on, builders)
        except CorruptDocuments as error:
            raise not_served(error) from error  # the store has told of it

    def _scan(
        self, view: ReplicaView, page: Page, claim: Claim | None, go_on: GoOn, builders: Builders | None
    ) -> Scanned:
        record = view.collection(page.collection).record
        collection_id = record.id
        node = both(page.filter, page.bound, self.limits)
        found: list[StoredDocument] = []
        looked, read, size, fence, index = 0, 0, 0, view.fence, view.at.index
        if page.pin is not None:
            fence, index = None, page.pin[0]
        reached: str | None = None
        with closing(_rows(view, page, node, go_on, builders)) as rows:
            for id_, document, at, held in rows:
                if not looked:  # what is read may be newer than the view: judge it by the holdings of the same moment
                    fence, index = None if held is None else self._fence_of(held), at
                    check_claim(fence, claim, at)
                full = len(found) == page.limit or size > SCAN_BYTES
                tired = (looked >= SCAN_LOOKS or read > SCAN_LOOKS_BYTES) and (found or not page.bound)
                if id_ != reached and (full or tired):  # another version of the last id is still of this page
                    break
                if not looked % 256:
                    go_on()
                looked, reached = looked + 1, id_
                if document is None:
                    continue
                read += len(document.metadata)
                if page.holds(document, node) and (fence is None or fence.shows(document.id, document.metadata)):
                    found.append(document)
                    size += len(document.metadata) + page.vector_bytes
            else:
                reached = None
        if page.bound and reached is not None:
            reached = found[-1].id
        if not looked:
            check_claim(fence, claim, index)
        if page.with_vectors and found:
            whole = view.store.by_ordinal(collection_id, [one.ordinal for one in found], metadata=True, vectors=True)
            found = [msgspec.structs.replace(whole[one.ordinal], expires=one.expires) for one in found]
            found = given(record, found)
        return Scanned(found, reached, index)

    def _scan_in_order(
        self, view: ReplicaView, page: Page, claim: Claim | None, go_on: GoOn, builders: Builders | None
    ) -> Scanned:
        held, store = view.collection(page.collection), view.store
        node, fence, index = both(page.filter, page.bound, self.limits), view.fence, view.at.index
        if page.pin is None:
            check_claim(fence, claim, index)
            universe = held.live.bitmap() - held.hidden
        else:
            with store.at_once() as connection:
                universe, holdings = scans.seen_by(connection, held.record.id, *page.pin, held.live.bitmap())
            fence, index = None if holdings is None else self._fence_of(holdings), page.pin[0]

        def shows(document: StoredDocument) -> bool:
            return fence is None or fence.shows(document.id, document.metadata)

        ordered = Ordered(held, store, page, page.order or ScanOrder(""), node, shows, SCAN_BYTES, go_on)
        chosen, whole = ordered.chosen(universe, builders)
        if page.pin is not None:
            found = ordered.as_pinned(chosen, page.pin)
        else:
            ids = [one.id for one in chosen]
            now, index, holdings = store.by_id_held(held.record.id, ids, vectors=page.with_vectors)
            fence = None if holdings is None else self._fence_of(holdings)
            check_claim(fence, claim, index)
            found = ordered.as_now(chosen, now)
        documents, keys = (
            given(held.record, [document for _, document in found]),
            [ordered.told(key) for key, _ in found],
        )
        if whole:
            return Scanned(documents, None, index, keys)
        return Scanned(documents, chosen[-1].id, index, keys, ordered.told(chosen[-1].key))

    def _fence_of(self, held: bytes) -> Fence:
        """Of holdings as stored; the last one is kept, for they rarely change."""
        last = self._last_fence
        if last is None or last[0] != held:
            last = self._last_fence = (held, Fence(decode_holdings(held)))
        return last[1]


def _rows(
    view: ReplicaView, page: Page, node: Node | None, go_on: GoOn, builders: Builders | None
) -> Generator[Seen, None, None]:
    """What a page has to look at. node: what its filter and its key's allow."""
    held, store = view.collection(page.collection), view.store
    if page.pin is not None:
        return store.scan_pinned(held.record.id, page.after, *page.pin)
    few = few_of(held, node, SCAN_LOOKS, go_on)
    if few is not None:
        return store.scan_some(held.record.id, page.after, few, held.record.next_ordinal)
    return store.scan(held.record.id, page.after, matching_of(held, node, builders, go_on) if page.bound else None)


def given(record: CollectionRecord, found: list[StoredDocument]) -> list[StoredDocument]:
    """With their vectors as callers get them."""
    if record.spec.dtype is DType.FLOAT32:
        return found
    form = record.spec.form
    return [msgspec.structs.replace(one, vector=form.given(one.vector)) for one in found]
