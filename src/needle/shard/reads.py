"""Searches and gets of one replica: each works on one immutable view, while it is held among those that run.

Threads: any. It must not know apply, snapshots or Raft.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Final, NamedTuple

import msgspec

from needle.base.config import Limits
from needle.base.errors import CorruptDocuments, CorruptSegment, DeadlineExceeded, NeedleError, ReplicaDamaged
from needle.base.filters.builder import Filter
from needle.base.filters.nodes import Node, evaluate
from needle.base.model import Claim, SearchRequest
from needle.routing.strategy import key_hash
from needle.shard.apply.holdings import Fence, check_claim, decode_holdings
from needle.shard.documents.metadata_rows import decode_metadata
from needle.shard.documents.records import StoredDocument
from needle.shard.fields.builders import BeingIndexed, Builders, SearchAnswer
from needle.shard.in_flight import InFlight
from needle.shard.live_collection import CollectionView, ReplicaView
from needle.shard.query import allowed_ordinals, search_group

SCAN_LOOKS: Final = 10_000
SCAN_LOOKS_BYTES: Final = 32 << 20
SCAN_BYTES: Final = 8 << 20
"""One page of a scan looks at so many documents, or metadata of so many bytes, and holds so many bytes, about."""


class Page(NamedTuple):
    """What one page of a scan is to hold: see protocol.calls.ScanCall. vector_bytes: of one document. pin: (index,
    token) of the open one that it is read at, None for what there is now."""

    collection: str
    filter: bytes
    after: str
    limit: int
    with_vectors: bool
    slice: tuple[int, int] = (0, 1)
    vector_bytes: int = 0
    pin: tuple[int, int] | None = None

    def holds(self, document: StoredDocument, node: Node | None) -> bool:
        which, of = self.slice
        if of > 1 and key_hash(document.id) % of != which:
            return False
        return node is None or evaluate(node, decode_metadata(document.metadata))


class Scanned(NamedTuple):
    """documents: in the order of their ids. reached: up to where was looked; None: to the end. applied: log index."""

    documents: list[StoredDocument]
    reached: str | None
    applied: int


class Reads:
    """What state_machine.Replica answers from views."""

    def __init__(
        self,
        view: Callable[[], ReplicaView],
        in_flight: InFlight,
        limits: Limits,
        found_damage: Callable[[CorruptDocuments, str], None],
    ) -> None:
        """view: the newest one. found_damage: is told in which state directory."""
        self._view = view
        self._in_flight = in_flight
        self._limits = limits
        self._found_damage = found_damage
        self._last_fence: tuple[bytes, Fence] | None = None
        self._cut: dict[str, None] = {}

    def search_many(
        self,
        requests: list[SearchRequest],
        wanted: Callable[[int], bool],
        builders: Builders | None,
        clock: Callable[[], float],
    ) -> list[SearchAnswer]:
        """See Replica.search_many."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for at, r in enumerate(requests):
            groups.setdefault(msgspec.structs.astuple(msgspec.structs.replace(r, vector=b"")), []).append(at)
        results: dict[int, SearchAnswer] = {}
        with self._in_flight.enter():
            view = self._view()
            for grouped in groups.values():
                members = [at for at in grouped if wanted(at)]
                if members:
                    go_on = partial(_while_wanted, members, wanted)
                    answers = self._search_group(view, [requests[at] for at in members], builders, go_on, clock)
                    results.update(zip(members, answers, strict=True))
        late = DeadlineExceeded("the search's time was over before it could begin")
        return [results.get(at, late) for at in range(len(requests))]

    def _search_group(
        self,
        view: ReplicaView,
        asked: list[SearchRequest],
        builders: Builders | None,
        go_on: Callable[[], None],
        clock: Callable[[], float],
    ) -> Sequence[SearchAnswer]:
        """Of requests that differ in their vectors only."""
        try:
            check_claim(view.fence, asked[0].claim, view.at.index)
            collection = view.collection(asked[0].collection)
            return search_group(collection, view.store, asked, view.at.index, self._limits, builders, go_on, clock)
        except CorruptDocuments as error:
            self._found_damage(error, os.path.dirname(view.store.path))
            return [not_served(error)] * len(asked)
        except CorruptSegment as error:
            self._cut[str(error.details["path"])] = None
            return [ReplicaDamaged(f"{error.message}; this replica replaces it")] * len(asked)
        except (NeedleError, BeingIndexed) as error:
            return [error] * len(asked)

    def take_cut(self) -> list[str]:
        """Paths of index files that searches found shorter than they were; once each."""
        return [path for path in list(self._cut) if self._cut.pop(path, 0) is None]

    def get(self, collection: str, ids: list[str], with_vectors: bool, claim: Claim | None) -> list[StoredDocument]:
        """See Replica.get."""
        try:
            return self._get(collection, ids, with_vectors, claim)
        except CorruptDocuments as error:
            raise not_served(error) from error  # the store has told of it

    def _get(self, collection: str, ids: list[str], with_vectors: bool, claim: Claim | None) -> list[StoredDocument]:
        with self._in_flight.enter():
            view = self._view()
            record = view.collection(collection).record
            if claim is None and view.fence is None:
                return view.store.by_id(record.id, ids, vectors=with_vectors)
            # What is read may be newer than the view: judge it by the holdings of the same moment.
            found, index, held = view.store.by_id_held(record.id, ids, vectors=with_vectors)
            fence = None if held is None else self._fence_of(held)
            check_claim(fence, claim, index)
            return found if fence is None else [one for one in found if fence.shows(one.id, one.metadata)]

    def count(
        self,
        collection: str,
        filter_json: bytes,
        claim: Claim | None,
        go_on: Callable[[], None],
        builders: Builders | None,
    ) -> tuple[int, int]:
        """See Replica.count_matching."""
        try:
            with self._in_flight.enter():
                view = self._view()
                check_claim(view.fence, claim, view.at.index)
                found = view.collection(collection)
                allowed = allowed_ordinals(found, filter_json, self._limits, builders, go_on)
                return found.visible if allowed is None else len(allowed), view.at.index
        except CorruptDocuments as error:
            self._found_damage(error, os.path.dirname(view.store.path))
            raise not_served(error) from error

    def scan(self, page: Page, claim: Claim | None, go_on: Callable[[], None]) -> Scanned:
        """See Replica.scan."""
        try:
            with self._in_flight.enter():
                view = self._view()
                return self._scan(view, view.collection(page.collection).record.id, page, claim, go_on)
        except CorruptDocuments as error:
            raise not_served(error) from error  # the store has told of it

    def _scan(
        self, view: ReplicaView, collection_id: int, page: Page, claim: Claim | None, go_on: Callable[[], None]
    ) -> Scanned:
        node = Filter.from_json(page.filter, self._limits).node if page.filter else None
        found: list[StoredDocument] = []
        looked, read, size, fence, index = 0, 0, 0, view.fence, view.at.index
        reached: str | None = None
        store, after = view.store, page.after
        few = _few(view.collection(page.collection), node, go_on) if page.pin is None else None
        if few is not None:
            seen = store.scan_some(collection_id, after, few, view.collection(page.collection).record.next_ordinal)
        elif page.pin is None:
            seen = store.scan(collection_id, after)
        else:
            index, fence = page.pin[0], None
            seen = store.scan_pinned(collection_id, after, *page.pin)
        with closing(seen) as rows:
            for id_, document, at, held in rows:
                if not looked:  # what is read may be newer than the view: judge it by the holdings of the same moment
                    fence, index = None if held is None else self._fence_of(held), at
                    check_claim(fence, claim, at)
                if id_ != reached and (  # another version of the last id is still of this page
                    looked >= SCAN_LOOKS or read > SCAN_LOOKS_BYTES or len(found) == page.limit or size > SCAN_BYTES
                ):
                    break
                if not looked % 256:
                    go_on()
                looked, reached = looked + 1, id_
                if document is None:
                    continue
                read += len(document.metadata)
                if page.holds(document, node) and (fence is None or fence.shows(document.id, document.metadata)):
                    found.append(document)
                    size += len(document.metadata) + (page.vector_bytes if page.with_vectors else 0)
            else:
                reached = None
        if not looked:
            check_claim(fence, claim, index)
        if page.with_vectors and found:
            whole = view.store.by_ordinal(collection_id, [one.ordinal for one in found], metadata=True, vectors=True)
            found = [msgspec.structs.replace(whole[one.ordinal], expires=one.expires) for one in found]
        return Scanned(found, reached, index)

    def _fence_of(self, held: bytes) -> Fence:
        """Of holdings as stored; the last one is kept, for they rarely change."""
        last = self._last_fence
        if last is None or last[0] != held:
            last = self._last_fence = (held, Fence(decode_holdings(held)))
        return last[1]


def _few(held: CollectionView, node: Node | None, go_on: Callable[[], None]) -> Sequence[int] | None:
    """The ordinals of what a filter allows, if indexes that are there tell it, and it is no more than a page looks at;
    else None. Not yet or no longer visible ones included."""
    record = held.record
    if node is None or record.documents <= SCAN_LOOKS or not held.payload.whole(node, record.next_ordinal):
        return None
    found = held.payload.within(node, record.next_ordinal, held.live.bitmap(), None, go_on)
    return list(found) if len(found) <= SCAN_LOOKS else None


def _while_wanted(members: Sequence[int], wanted: Callable[[int], bool]) -> None:
    """Raises DeadlineExceeded once nobody waits for any of these searches: a thread must not go on for nobody."""
    if not any(map(wanted, members)):
        raise DeadlineExceeded("the search's time was over before it was done")


def not_served(error: CorruptDocuments) -> ReplicaDamaged:
    """What who asks gets to know of damage."""
    return ReplicaDamaged(f"this replica's data is damaged and is fetched again: {error.message}")
