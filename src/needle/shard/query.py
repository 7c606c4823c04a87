"""Searches of one collection view: filter -> allow-list -> nearest ordinals -> documents.

Invariant: an answer holds the k nearest of what the vectors find, by (distance, id). Ordinals decide ties inside the
vectors, so where the k-th distance is shared, more is asked for until the tie is complete (up to a bound).

It must not know apply, SQLite or faiss; the view and the store are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from needle.base.config import Limits
from needle.base.errors import Internal, NeedleError
from needle.base.filters import Filter
from needle.base.model import HitBatch, Metric, SearchRequest
from needle.shard.documents import DocumentStore
from needle.shard.ordinal_set import OrdinalSet
from needle.shard.payload_index import PayloadIndex
from needle.shard.records import CollectionRecord, StoredDocument
from needle.shard.validation import check_search
from needle.shard.vectors_view import VectorsView

TIES_EXACT_MAX: Final = 16_384
TIES_APPROXIMATE_MAX: Final = 256

Ordinals = npt.NDArray[np.int64]
Distances = npt.NDArray[np.float32]
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


def search_group(
    collection: Collection, store: DocumentStore, requests: Sequence[SearchRequest], applied: int, limits: Limits
) -> list[HitBatch | NeedleError]:
    """Answer requests that differ in their vector only. Raises what concerns all of them; an error in place of an
    answer concerns one."""
    first = requests[0]
    answers: dict[int, HitBatch | NeedleError] = {}
    queries: list[npt.NDArray[np.float32]] = []
    good: list[int] = []
    for at, request in enumerate(requests):
        try:
            queries.append(check_search(request, collection.record.spec, limits))
            good.append(at)
        except NeedleError as error:
            answers[at] = error
    if good:
        allow = _allowed(collection, first.filter, limits)
        found = _nearest(collection, np.stack(queries), first, allow)
        answers.update(zip(good, _batches(collection.record, store, first, found, applied), strict=True))
    return [answers[at] for at in range(len(requests))]


def _allowed(collection: Collection, filter_json: bytes, limits: Limits) -> BitMap | None:
    """The ordinals that a filter allows, without the hidden ones; None for all that are live."""
    hidden = collection.hidden
    if not filter_json and not hidden:
        return None
    live = collection.live.bitmap()
    visible = live - hidden if hidden else live
    if not filter_json:
        return visible
    node = Filter.from_json(filter_json, limits).node
    return collection.payload.within(node, collection.record.next_ordinal, visible)


def _nearest(
    collection: Collection, queries: npt.NDArray[np.float32], request: SearchRequest, allow: BitMap | None
) -> list[Nearest]:
    """For each query, the k nearest (fewer if there are fewer) and everything tied with the last of them."""
    k = min(request.k, collection.record.documents if allow is None else len(allow))
    if not k:
        return [([], []) for _ in queries]
    ordinals, distances = _ask(collection, queries, k + 1, request, allow)
    there = np.count_nonzero(ordinals[:, :k] >= 0, axis=1).tolist()
    # One more than asked for is known: if it is as near as the k-th, there may be others.
    tied = ((ordinals[:, k] >= 0) & (distances[:, k] == distances[:, k - 1])).tolist()
    found = zip(ordinals[:, :k].tolist(), distances[:, :k].tolist(), strict=True)
    return [
        _with_ties(collection, queries[at : at + 1], k, request, allow)
        if tied[at]
        else (near[: there[at]], far[: there[at]])
        for at, (near, far) in enumerate(found)
    ]


def _ask(
    collection: Collection, queries: npt.NDArray[np.float32], k: int, request: SearchRequest, allow: BitMap | None
) -> tuple[Ordinals, Distances]:
    return collection.vectors.search(queries, k, allow=allow, exact=request.exact, ef_search=request.ef_search)


def _with_ties(
    collection: Collection,
    query: npt.NDArray[np.float32],
    k: int,
    request: SearchRequest,
    allow: BitMap | None,
) -> Nearest:
    """The k nearest of one query and all that are as near as the last of them, up to a bound."""
    bound = max(TIES_EXACT_MAX if request.exact else TIES_APPROXIMATE_MAX, 2 * k)
    asked = k + 1
    while True:
        asked *= 4
        ordinals, distances = (found[0] for found in _ask(collection, query, asked, request, allow))
        there = int(np.count_nonzero(ordinals >= 0))
        if there < asked or distances[asked - 1] != distances[k - 1] or asked >= bound:
            end = int(np.searchsorted(distances[:there], distances[k - 1], "right"))
            return ordinals[:end].tolist(), distances[:end].tolist()


def _batches(
    record: CollectionRecord,
    store: DocumentStore,
    request: SearchRequest,
    found: list[Nearest],
    applied: int,
) -> list[HitBatch]:
    wanted = sorted({ordinal for ordinals, _ in found for ordinal in ordinals})
    documents = store.by_ordinal(record.id, wanted, metadata=request.with_metadata, vectors=request.with_vectors)
    if len(documents) != len(wanted):
        raise Internal(f"{len(wanted) - len(documents)} found ordinals of {record.spec.name!r} have no document")
    return [
        _batch([documents[o] for o in ordinals], distances, request, applied, record.spec.metric)
        for ordinals, distances in found
    ]


def _batch(
    documents: list[StoredDocument], distances: list[float], request: SearchRequest, applied: int, metric: Metric
) -> HitBatch:
    if len(set(distances)) < len(distances):  # ties stand in the order of their ordinals so far
        pairs = sorted(zip(distances, documents, strict=True), key=lambda pair: (pair[0], pair[1].id))[: request.k]
        distances, documents = [distance for distance, _ in pairs], [document for _, document in pairs]
    return HitBatch(
        ids=[document.id for document in documents],
        distances=distances,
        versions=[document.version for document in documents],
        metadata=[document.metadata or b"null" for document in documents] if request.with_metadata else [],
        vectors=b"".join([document.vector for document in documents]) if request.with_vectors else b"",
        applied_index=applied,
        metric=metric,
    )
