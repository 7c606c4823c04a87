"""Searches of one collection view: filter -> allow-list -> nearest ordinals -> documents.

Invariant: an answer holds the k nearest of what the vectors find, by (distance, id). The vectors know no ids, so they
also give what is as near as the k-th, up to a bound beyond which ordinals decide.

It must not know apply, SQLite or faiss; the view and the store are arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import inf
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from needle.base.config import Limits
from needle.base.errors import Forbidden, NeedleError
from needle.base.explain import ShardExplanation
from needle.base.filters.builder import Filter
from needle.base.filters.nodes import And, Node, compares
from needle.base.filters.reserved import instead
from needle.base.model import CollectionSpec, HitBatch, SearchRequest, near_enough
from needle.shard.apply.validation import check_search, check_searches
from needle.shard.documents.projection import projection
from needle.shard.documents.records import CollectionRecord
from needle.shard.documents.store import DocumentStore
from needle.shard.fields.allow_lists import Moment
from needle.shard.fields.builders import Builders
from needle.shard.fields.owners import owners
from needle.shard.fields.payload_index import PayloadIndex
from needle.shard.grouping import Sources, nearest_groups, wish_of
from needle.shard.hits import Nearest, batches_of, columns, read_documents, with_vectors
from needle.shard.ordinal_set import OrdinalSet
from needle.shard.places import Places
from needle.shard.segments.allowed import Allowed
from needle.shard.segments.trace import Trace
from needle.shard.segments.view import VectorsView


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


def alike(requests: Sequence[SearchRequest]) -> Iterable[list[int]]:
    """The places of those that differ in their vectors only, which can be searched at once."""
    if len(requests) == 1:
        return ([0],)
    groups: list[tuple[SearchRequest, list[int]]] = []
    for at, one in enumerate(requests):
        bare = msgspec.structs.replace(one, vector=b"")
        for other, places in groups:  # few, for a batch is small; a hash of all fields takes longer
            if other == bare:
                places.append(at)
                break
        else:
            groups.append((bare, [at]))
    return [places for _, places in groups]


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
    queries, good, wrong = checked(requests, by.record.spec, limits)
    answers: dict[int, HitBatch | NeedleError] = {**wrong}
    if good:
        trace = Trace(len(queries), clock) if first.explain else None
        instants = [clock()]
        allow = allowed_to(collection, vectors, first, limits, builders, go_on)
        instants.append(clock())
        go_on()
        if first.group_by:
            work = _Grouped(collection, by, store, first, allow, limits, builders, go_on)
            batches = [work.batch(query, applied, trace) for query in queries]
            instants.append(clock())
        else:
            found = nearest_of(by, queries, first, first.k, allow, trace)
            instants.append(clock())
            batches = batches_of(collection.record, by.record, store, first, found, applied)
        instants.append(clock())
        if trace is not None or instants[-1] - instants[0] >= figures:
            allowed = by.visible if allow is None else len(allow)
            notes = [] if allowed or trace is None else _notes(first.filter, limits)
            batches = _explained(batches, trace, collection.visible, allowed, instants, notes)
        answers.update(zip(good, batches, strict=True))
    return [answers[at] for at in range(len(requests))]


class Checked(NamedTuple):
    """Of requests that differ in their vectors only, those that are right: their queries (n, dimensions), and their
    places. wrong: by place, what is wrong with the others."""

    queries: npt.NDArray[np.float32]
    good: list[int]
    wrong: dict[int, NeedleError]


def checked(requests: Sequence[SearchRequest], spec: CollectionSpec, limits: Limits) -> Checked:
    """What a collection's vectors can be asked of these."""
    found = check_searches(requests, spec, limits)
    if found is not None:
        return Checked(found, [*range(len(requests))], {})
    queries, good, wrong = list[npt.NDArray[np.float32]](), list[int](), dict[int, NeedleError]()
    for at, request in enumerate(requests):
        try:
            queries.append(check_search(request, spec, limits))
            good.append(at)
        except NeedleError as error:
            wrong[at] = error.with_traceback(None)  # whose frames hold all of this search
    return Checked(np.stack(queries) if queries else np.empty((0, 0), np.float32), good, wrong)


def allowed_to(
    collection: Collection,
    vectors: Collection | None,
    request: SearchRequest,
    limits: Limits,
    builders: Builders | None,
    go_on: Callable[[], None],
) -> Allowed | None:
    """`allowed_ordinals` of a search, of those that have the vector that it asks for. vectors: as of `search_group`."""
    allow = allowed_ordinals(collection, request.filter, limits, builders, go_on, request.bound)
    return allow if vectors is None or allow is None else Allowed(allow.bitmap & vectors.live.bitmap())


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

        thorough = msgspec.structs.replace(request, exact=True)

        def nearest(k: int, among: BitMap, how: SearchRequest = request) -> tuple[list[int], list[float], bool]:
            ((ordinals, distances),) = nearest_of(self._vectors, query[None, :], how, k, Allowed(among), trace)
            near = near_enough(distances, of.spec.metric, request)
            return ordinals[:near], distances[:near], near == len(ordinals)

        def scored(among: BitMap) -> tuple[list[int], list[float]]:
            ordinals, distances, _ = nearest(len(among), among, thorough)
            return ordinals, distances

        sources = Sources(
            nearest,
            lambda ordinals: read_documents(record, self._store, ordinals, metadata=True, vectors=False),
            lambda node, among: payload.within(node, end, among, self._builders, self._go_on),
            lambda among: among & payload.several(wish.path, end),
            lambda values, among: owners(payload, wish.path, values, end, among, self._builders, self._go_on),
            scored,
            self._go_on,
        )
        groups, documents = nearest_groups(wish, self._among, sources)
        if request.with_vectors:
            wanted = sorted(documents)
            documents = with_vectors(record, of, self._store, wanted, metadata=request.with_metadata)
        members = [member for group in groups for member in group.members]
        listed, distances = [documents[one.ordinal] for one in members], [one.distance for one in members]
        found = columns(listed, distances, request, applied, of.spec, projection(request.fields))
        values = [group.value for group in groups for _ in group.members]
        return msgspec.structs.replace(found, groups=values)
