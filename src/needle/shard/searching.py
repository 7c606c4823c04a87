"""Searches of one replica: each works on one immutable view, while it is held among those that run.

Threads: any. It must not know apply, snapshots or Raft.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from functools import partial
from math import inf
from typing import Final, NamedTuple

from needle.base.config import Limits
from needle.base.dtypes import DType
from needle.base.errors import CorruptDocuments, CorruptSegment, DeadlineExceeded, NeedleError, ReplicaDamaged
from needle.base.model import Claim, CollectionSpec, SearchRequest
from needle.shard.apply.holdings import check_claim
from needle.shard.documents.records import CollectionRecord, StoredDocument
from needle.shard.documents.store import DocumentStore
from needle.shard.fields.builders import BeingIndexed, Builders, SearchAnswer
from needle.shard.hits import Nearest, read_documents, with_vectors
from needle.shard.in_flight import InFlight
from needle.shard.live_collection import CollectionView, ReplicaView
from needle.shard.query import Checked, alike, allowed_to, nearest_of, search_group
from needle.shard.search_batcher import TOO_LATE

SHORT_BYTES: Final = 1 << 20
SHORT_GROWING: Final = 4096
SHORT_K: Final = 100
"""A search among vectors of so many bytes of float32, and beside so many that are in no index file yet, is short."""
WEIGHTS: Final = {DType.FLOAT32: 4.0, DType.FLOAT16: 10.0, DType.INT8: 5.0, DType.BIT: 0.25}
"""Bytes of float32 that are scored in the time of a component of each type: most are widened first, bits are counted as
they are. Measured: of 680 vectors of 384 components 185, 411 and 213 us; of 8,000 of 1,024 bits 379."""
ROW_WEIGHT: Final = 256.0
"""A row takes as long as so many bytes at least: one of 128 bits, or of 16, as long as one of 1,024 (100 ns)."""

Clock = Callable[[], float]
Documents = dict[int, StoredDocument]
"""By ordinal."""


class Found(NamedTuple):
    """What the vectors of one replica have found. applied: log index. of: the vectors that were searched. nearest: of
    each request. wrong: the places of those that cannot be asked of these vectors."""

    applied: int
    record: CollectionRecord
    of: CollectionRecord
    store: DocumentStore
    nearest: list[Nearest]
    wrong: Collection[int]


class Searches:
    """Those of one replica."""

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
        self.limits = limits
        self.found_damage = found_damage
        self._cut: dict[str, None] = {}

    def search_many(
        self,
        requests: list[SearchRequest],
        wanted: Callable[[int], bool],
        builders: Builders | None,
        clock: Clock,
        figures: float = inf,
    ) -> list[SearchAnswer]:
        """See Replica.search_many. figures: see search_group."""
        results: dict[int, SearchAnswer] = {}
        with self._in_flight.enter():
            view = self._view()
            for grouped in alike(requests):
                members = [at for at in grouped if wanted(at)]
                if members:
                    how = builders, partial(while_wanted, members, wanted), clock, figures
                    answers = self._search_group(view, [requests[at] for at in members], *how)
                    results.update(zip(members, answers, strict=True))
        if len(results) == len(requests):
            return [results[at] for at in range(len(requests))]
        late = DeadlineExceeded(TOO_LATE)
        return [results.get(at, late) for at in range(len(requests))]

    def _search_group(
        self,
        view: ReplicaView,
        asked: list[SearchRequest],
        builders: Builders | None,
        go_on: Callable[[], None],
        clock: Clock,
        figures: float,
    ) -> Sequence[SearchAnswer]:
        """Of requests that differ in their vectors only."""
        how = builders, go_on, clock, figures
        try:
            collection, vectors = _searched(view, asked[0], asked[0].claim)
            return search_group(collection, view.store, asked, view.at.index, self.limits, *how, vectors)
        except (NeedleError, BeingIndexed) as error:
            return [self._seen(view.opened, error)] * len(asked)

    def _seen(self, store: DocumentStore | None, error: NeedleError | BeingIndexed) -> NeedleError | BeingIndexed:
        """What who asked gets to know of a search that failed; what else has to know is told."""
        if isinstance(error, CorruptDocuments):
            if store is not None:
                self.found_damage(error, os.path.dirname(store.path))
            return not_served(error)
        if isinstance(error, CorruptSegment):
            self._cut[str(error.details["path"])] = None
            return ReplicaDamaged(f"{error.message}; this replica replaces it")
        return error

    def find(
        self,
        requests: Sequence[SearchRequest],
        claim: Claim,
        checks: Callable[[CollectionSpec, Limits], Checked],
        builders: Builders | None,
        go_on: Callable[[], None],
    ) -> Found | None:
        """What `search_many` would find for requests that differ in their vectors only, before it looks for documents;
        None if it would tell of an error. checks: `query.checked` of these requests. Hold `entered` meanwhile, and as
        long as documents are looked for."""
        view, first = self._view(), requests[0]
        try:
            collection, vectors = _searched(view, first, claim)
            of = vectors or collection
            queries, good, wrong = checks(of.record.spec, self.limits)
            if not good:
                return None
            allow = allowed_to(collection, vectors, first, self.limits, builders, go_on)
            go_on()
            nearest = nearest_of(of, queries, first, first.k, allow, None)
        except (NeedleError, BeingIndexed) as error:
            self._seen(view.opened, error)
            return None
        if wrong:
            by_place = dict(zip(good, nearest, strict=True))
            nearest = [by_place.get(at, ([], [])) for at in range(len(requests))]
        return Found(view.at.index, collection.record, of.record, view.store, nearest, wrong.keys())

    def documents(self, found: Found, ordinals: list[int], *, metadata: bool, vectors: bool) -> Documents | None:
        """Of hits that `find` has found, by ordinal; None if they cannot be read."""
        try:
            if vectors:
                return with_vectors(found.record, found.of, found.store, ordinals, metadata=metadata)
            return read_documents(found.record, found.store, ordinals, metadata=metadata, vectors=False)
        except NeedleError as error:
            self._seen(found.store, error)
            return None

    def is_short(self, request: SearchRequest) -> bool:
        """Whether a search scores few vectors, knows which these are, and reads no file of documents but perhaps for
        some ids. Blocks for nothing."""
        return self.short_bytes(request) <= SHORT_BYTES

    def short_bytes(self, request: SearchRequest) -> int:
        """So many bytes of vectors such a search scores, of float32, or what takes as long; more than SHORT_BYTES for
        one that is not short."""
        view = self._view()
        held = view.collections.get(request.collection)
        asks = request.with_metadata or request.with_vectors or request.group_by or request.order_by or request.explain
        if (
            held is None
            or asks
            or request.vector_name
            or request.k > SHORT_K
            or view.store.writer.hides
            or sum(chunk.rows for chunk in held.vectors.growing.chunks) > SHORT_GROWING
        ):
            return SHORT_BYTES + 1
        count = held.record.documents
        if request.filter or request.bound:
            allowed = held.payload.lists.peek(held.payload, (request.filter, request.bound), held.changes)
            count = SHORT_BYTES if allowed is None else len(allowed)
        spec = held.record.spec
        return int(max(ROW_WEIGHT, WEIGHTS[spec.dtype] * spec.dimensions) * count)

    def take_cut(self) -> list[str]:
        """Paths of index files that searches found shorter than they were; once each."""
        return [path for path in list(self._cut) if self._cut.pop(path, 0) is None]

    def entered(self) -> AbstractContextManager[None]:
        """While what is found is looked into further: rows of versions that are replaced meanwhile stay."""
        return self._in_flight.enter()

    def view(self) -> ReplicaView:
        """The newest one."""
        return self._view()


def _searched(
    view: ReplicaView, request: SearchRequest, claim: Claim | None
) -> tuple[CollectionView, CollectionView | None]:
    """The collection, and the named vectors that are asked for. Raises StaleEpoch, CollectionNotFound."""
    check_claim(view.fence, claim, view.at.index)
    collection, name = view.collection(request.collection), request.vector_name
    return collection, view.vector(collection, name) if name else None


def while_wanted(members: Sequence[int], wanted: Callable[[int], bool]) -> None:
    """Raises DeadlineExceeded once nobody waits for any of these searches: a thread must not go on for nobody."""
    if not any(map(wanted, members)):
        raise DeadlineExceeded("the search's time was over before it was done")


def not_served(error: CorruptDocuments) -> ReplicaDamaged:
    """What who asks gets to know of damage."""
    return ReplicaDamaged(f"this replica's data is damaged and is fetched again: {error.message}")
