"""Searches of one collection view: filter -> allow-list -> nearest ordinals -> documents.

Invariant: an answer holds the k nearest of what the vectors find, by (distance, id). The vectors know no ids, so they
also give what is as near as the k-th, up to a bound beyond which ordinals decide.

It must not know apply, SQLite or faiss; the view and the store are arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from needle.base.config import Limits
from needle.base.errors import CorruptDocuments, Forbidden, NeedleError
from needle.base.explain import ShardExplanation
from needle.base.filters.builder import Filter, field_path
from needle.base.filters.nodes import And, Node, compares
from needle.base.filters.reserved import instead
from needle.base.filters.values import Value, first, values_of
from needle.base.model import CollectionSpec, HitBatch, SearchRequest, near_enough
from needle.routing.topology import called
from needle.shard.apply.validation import check_search
from needle.shard.documents.metadata_rows import decode_metadata
from needle.shard.documents.projection import projection
from needle.shard.documents.records import CollectionRecord, StoredDocument
from needle.shard.documents.store import DocumentStore
from needle.shard.fields.allow_lists import Moment
from needle.shard.fields.builders import Builders
from needle.shard.fields.payload_index import PayloadIndex
from needle.shard.grouping import Sources, nearest_groups, wish_of
from needle.shard.ordinal_set import OrdinalSet
from needle.shard.places import Places
from needle.shard.segments.allowed import Allowed
from needle.shard.segments.trace import Trace
from needle.shard.segments.view import VectorsView

Nearest = tuple[list[int], list[float]]
"""Ordinals and distances of one query's answer, nearest first."""


class Collection(Protocol):
    """One collection at one applied index (live_collection.CollectionView)."""

    @property
    def record(self) -> CollectionRecord: ...
    @property
    def vectors(self) -> VectorsView: ...
    @property
    def live(self) -> OrdinalSet: ...
    @property
    def payload(self) -> PayloadIndex: ...
    @property
    def hidden(self) -> BitMap: ...
    @property
    def places(self) -> Places: ...
    @property
    def visible(self) -> int: ...
    @property
    def changes(self) -> int: ...


def search_group(
    collection: Collection,
    store: DocumentStore,
    requests: Sequence[SearchRequest],
    applied: int,
    limits: Limits,
    builders: Builders | None = None,
    go_on: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = lambda: 0.0,
    figures: float = inf,
    vectors: Collection | None = None,
) -> list[HitBatch | NeedleError]:
    """Answer requests that differ in their vector only. builders, go_on: see PayloadIndex.within. clock: seconds, for
    explanations. figures: seconds; of what takes longer the figures are told, too, without the parts of the vectors,
    though nobody asked. vectors: of the name that is searched, whose ordinals are those of the collection (named.py).
    Raises what concerns all of them; an error in place of an answer concerns one."""
    first, by = requests[0], vectors or collection
    if first.bound and first.explain:
        raise Forbidden("explain tells how many documents there are in all, and this API key is for some only")
    answers: dict[int, HitBatch | NeedleError] = {}
    queries: list[npt.NDArray[np.float32]] = []
    good: list[int] = []
    for at, request in enumerate(requests):
        try:
            queries.append(check_search(request, by.record.spec, limits))
            good.append(at)
        except NeedleError as error:
            answers[at] = error.with_traceback(None)  # whose frames hold all of this search
    if good:
        trace = Trace(len(queries), clock) if first.explain else None
        instants = [clock()]
        allow = allowed_ordinals(collection, first.filter, limits, builders, go_on, first.bound)
        if vectors is not None and allow is not None:
            allow = Allowed(allow.bitmap & vectors.live.bitmap())
        instants.append(clock())
        go_on()
        if first.group_by:
            work = _Grouped(collection, by, store, first, allow, limits, builders, go_on)
            batches = [work.batch(query, applied, trace) for query in queries]
            instants.append(clock())
        else:
            found = nearest_of(by, np.stack(queries), first, first.k, allow, trace)
            instants.append(clock())
            batches = _batches(collection.record, by.record, store, first, found, applied)
        instants.append(clock())
        if trace is not None or instants[-1] - instants[0] >= figures:
            allowed = by.visible if allow is None else len(allow)
            notes = [] if allowed or trace is None else _notes(first.filter, limits)
            batches = _explained(batches, trace, collection.visible, allowed, instants, notes)
        answers.update(zip(good, batches, strict=True))
    return [answers[at] for at in range(len(requests))]


def _explained(
    batches: list[HitBatch],
    trace: Trace | None,
    documents: int,
    allowed: int,
    instants: Sequence[float],
    notes: list[str],
) -> list[HitBatch]:
    """With how each was found. instants: of the beginning, and after filter, vectors and documents."""
    took = [round(1000 * (after - before), 3) for before, after in pairwise(instants)]
    told = ShardExplanation(
        shard=-1,  # who asked this shard knows its number
        applied_index=batches[0].applied_index,
        documents=documents,
        allowed=allowed,
        together=len(batches),
        filter_milliseconds=took[0],
        vectors_milliseconds=took[1],
        documents_milliseconds=took[2],
        segments=[],
        notes=notes,
    )
    if trace is None:  # the same for all of them
        return [msgspec.structs.replace(batch, explained=[told]) for batch in batches]
    each = [msgspec.structs.replace(told, segments=trace.segments(at)) for at in range(len(batches))]
    return [msgspec.structs.replace(batch, explained=[one]) for batch, one in zip(batches, each, strict=True)]


def _notes(filter_json: bytes, limits: Limits) -> list[str]:
    """Of fields that metadata seldom has, because they are asked for in another way."""
    node = both(filter_json, b"", limits)
    asked = {} if node is None else {one.path[0]: one.field for one in compares(node) if one.path}
    hints = {field: instead(first) for first, field in asked.items()}
    return [f"the filter asks for {field!r} in the metadata; {hint}" for field, hint in hints.items() if hint]


def allowed_ordinals(
    collection: Collection,
    filter_json: bytes,
    limits: Limits,
    builders: Builders | None,
    go_on: Callable[[], None],
    bound: bytes = b"",
) -> Allowed | None:
    """The ordinals that a filter allows, without the hidden ones; None for all that are live. bound: another filter
    (SearchRequest)."""
    if not filter_json and not bound:
        return Allowed(visible_ordinals(collection)) if collection.hidden else None
    payload, end = collection.payload, collection.record.next_ordinal

    def parse() -> Node:
        return both(filter_json, bound, limits) or And(())

    def judge(node: Node, among: BitMap, live: int) -> BitMap:
        return payload.within(node, end, among, builders, go_on, live=live)

    # Of what is hidden some may be shown again, so it is not left out of what is remembered.
    moment = Moment(collection.changes, end, collection.live.bitmap)
    found = payload.lists.find(payload, (filter_json, bound), moment, parse, judge, payload.use)
    if payload.closed:  # meanwhile
        payload.lists.forget(payload)
    return Allowed(found.bitmap - collection.hidden) if collection.hidden else found


def visible_ordinals(collection: Collection) -> BitMap:
    """Of all documents that readers see."""
    live, hidden = collection.live.bitmap(), collection.hidden
    return live - hidden if hidden else live


def both(filter_json: bytes, bound: bytes, limits: Limits) -> Node | None:
    """What a document has to match: a filter, and the one that the caller is bound to. None: nothing."""
    nodes = tuple(Filter.from_json(one, limits).node for one in (bound, filter_json) if one)
    return And(nodes) if len(nodes) > 1 else nodes[0] if nodes else None


def nearest_of(
    collection: Collection,
    queries: npt.NDArray[np.float32],
    request: SearchRequest,
    k: int,
    allow: Allowed | None,
    trace: Trace | None,
) -> list[Nearest]:
    """For each query, the k nearest (fewer if there are fewer) and everything tied with the last of them."""
    k = min(k, collection.record.documents if allow is None else len(allow))
    if not k:
        return [([], []) for _ in queries]
    places = collection.places
    if allow is not None and places:
        allow = Allowed(places.vectors_of(allow.bitmap))
    found = collection.vectors.nearest(
        queries,
        k,
        allow=allow,
        exact=request.exact,
        ef_search=request.ef_search,
        usual_ef=request.usual_ef,
        trace=trace,
    )
    return [(places.documents_of(vectors), distances) for vectors, distances in found] if places else found


class _Grouped:
    """What a search by groups is answered; see grouping.py."""

    def __init__(
        self,
        collection: Collection,
        vectors: Collection,
        store: DocumentStore,
        request: SearchRequest,
        allow: Allowed | None,
        limits: Limits,
        builders: Builders | None,
        go_on: Callable[[], None],
    ) -> None:
        """vectors: those that are searched. allow: as of `allowed_ordinals`."""
        self._collection, self._store, self._request, self._go_on = collection, store, request, go_on
        self._vectors = vectors
        self._among = visible_ordinals(vectors) if allow is None else allow.bitmap
        self._builders = builders
        self._wish = wish_of(request, limits)

    def batch(self, query: npt.NDArray[np.float32], applied: int, trace: Trace | None) -> HitBatch:
        """The groups of one query: behind each other, near first as their members are."""
        record, of, request, wish = self._collection.record, self._vectors.record, self._request, self._wish
        payload, end = self._collection.payload, self._collection.record.next_ordinal

        def nearest(k: int, among: BitMap) -> tuple[list[int], list[float], bool]:
            ((ordinals, distances),) = nearest_of(self._vectors, query[None, :], request, k, Allowed(among), trace)
            near = near_enough(distances, of.spec.metric, request)
            return ordinals[:near], distances[:near], near == len(ordinals)

        sources = Sources(
            nearest,
            lambda ordinals: read_documents(record, self._store, ordinals, metadata=True, vectors=False),
            lambda node, among: payload.within(node, end, among, self._builders, self._go_on),
            lambda among: among & payload.several(wish.path, end),
            self._go_on,
        )
        groups, documents = nearest_groups(wish, self._among, sources)
        if request.with_vectors:
            wanted = sorted(documents)
            documents = _with_vectors(record, of, self._store, wanted, metadata=request.with_metadata)
        members = [member for group in groups for member in group.members]
        listed, distances = [documents[one.ordinal] for one in members], [one.distance for one in members]
        found = columns(listed, distances, request, applied, of.spec, projection(request.fields))
        values = [group.value for group in groups for _ in group.members]
        return msgspec.structs.replace(found, groups=values)


def _with_vectors(
    record: CollectionRecord, of: CollectionRecord, store: DocumentStore, ordinals: list[int], *, metadata: bool
) -> dict[int, StoredDocument]:
    """Documents with the vectors that were searched."""
    if of is record:
        return read_documents(record, store, ordinals, metadata=metadata, vectors=True)
    vectors = read_documents(of, store, ordinals, metadata=False, vectors=True)
    documents = read_documents(record, store, ordinals, metadata=metadata, vectors=False)
    return {at: msgspec.structs.replace(one, vector=vectors[at].vector) for at, one in documents.items()}


def _batches(
    record: CollectionRecord,
    of: CollectionRecord,
    store: DocumentStore,
    request: SearchRequest,
    found: list[Nearest],
    applied: int,
) -> list[HitBatch]:
    """of: the vectors that were searched."""
    shown = projection(request.fields)
    if request.max_distance is not None or request.min_score is not None:
        near = [near_enough(distances, of.spec.metric, request) for _, distances in found]
        found = [(ordinals[:n], distances[:n]) for n, (ordinals, distances) in zip(near, found, strict=True)]
    found = _k_each(record, store, request.k, found)
    wanted = sorted({ordinal for ordinals, _ in found for ordinal in ordinals})
    metadata = request.with_metadata or bool(request.order_by)
    if request.with_vectors:
        documents = _with_vectors(record, of, store, wanted, metadata=metadata)
    else:
        documents = read_documents(record, store, wanted, metadata=metadata, vectors=False)
    return [
        _batch([documents[o] for o in ordinals], distances, request, applied, of.spec, shown)
        for ordinals, distances in found
    ]


def read_documents(
    record: CollectionRecord, store: DocumentStore, ordinals: list[int], *, metadata: bool, vectors: bool
) -> dict[int, StoredDocument]:
    """By ordinal. Raises CorruptDocuments if one is not there."""
    documents = store.by_ordinal(record.id, ordinals, metadata=metadata, vectors=vectors)
    if len(documents) != len(ordinals):
        missing = len(ordinals) - len(documents)
        raise CorruptDocuments(f"{missing} found ordinals of {called(record.spec.name)!r} have no document")
    return documents


def _k_each(record: CollectionRecord, store: DocumentStore, k: int, found: list[Nearest]) -> list[Nearest]:
    """Without what is tied with the k-th but has a greater id. Of documents that may fall out only the ids are read."""
    tied = {o for ordinals, distances in found if len(ordinals) > k for o in _tied(ordinals, distances)}
    if not tied:
        return found
    ids = read_documents(record, store, sorted(tied), metadata=False, vectors=False)
    kept = []
    for ordinals, distances in found:
        if len(ordinals) > k:
            last = sorted(_tied(ordinals, distances), key=lambda ordinal: ids[ordinal].id)
            nearer = ordinals[: len(ordinals) - len(last)]
            ordinals, distances = [*nearer, *last][:k], distances[:k]
        kept.append((ordinals, distances))
    return kept


def _tied(ordinals: list[int], distances: list[float]) -> list[int]:
    """The ordinals whose distance is that of the last."""
    return ordinals[distances.index(distances[-1]) :]


def _batch(
    documents: list[StoredDocument],
    distances: list[float],
    request: SearchRequest,
    applied: int,
    spec: CollectionSpec,
    shown: Callable[[bytes], bytes],
) -> HitBatch:
    if len(set(distances)) < len(distances):  # ties stand in the order of their ordinals so far
        pairs = sorted(zip(distances, documents, strict=True), key=lambda pair: (pair[0], pair[1].id))
        distances, documents = [distance for distance, _ in pairs], [document for _, document in pairs]
    return columns(documents, distances, request, applied, spec, shown)


def columns(
    documents: list[StoredDocument],
    distances: list[float],
    request: SearchRequest,
    applied: int,
    spec: CollectionSpec,
    shown: Callable[[bytes], bytes],
) -> HitBatch:
    """An answer, of documents in its order."""
    return HitBatch(
        ids=[document.id for document in documents],
        distances=distances,
        versions=[document.version for document in documents],
        metadata=[shown(document.metadata) or b"null" for document in documents] if request.with_metadata else [],
        vectors=spec.form.given(b"".join([one.vector for one in documents])) if request.with_vectors else b"",
        applied_index=applied,
        metric=spec.metric,
        order=_order(documents, request) if request.order_by else [],
    )


def _order(documents: list[StoredDocument], request: SearchRequest) -> list[Value | None]:
    """By what the documents are ordered."""
    path = field_path(request.order_by, "order_by")
    found = (values_of(decode_metadata(document.metadata), path).values() for document in documents)
    return [first(values, descending=request.descending) for values in found]
