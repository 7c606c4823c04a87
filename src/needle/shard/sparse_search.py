"""Searches by a sparse vector in one collection view: a shard's best documents by inner product.

Invariant: as of text_search, whose lists these are. It must not know apply or SQLite; the view and the store are
arguments.
"""

from __future__ import annotations

from collections.abc import Callable

from needle.base import sparse
from needle.base.config import Limits
from needle.base.errors import Forbidden, invalid
from needle.base.model import HitBatch, SearchRequest
from needle.shard.apply.spec_validation import check_sparse_name
from needle.shard.apply.validation import check_hits
from needle.shard.documents.store import DocumentStore
from needle.shard.fields.builders import Builders
from needle.shard.fields.sparse_scores import SparseScores
from needle.shard.query import Collection, allowed_ordinals, visible_ordinals
from needle.shard.text_search import batch_of, best, explaining


def search_sparse(
    collection: Collection,
    store: DocumentStore,
    request: SearchRequest,
    applied: int,
    limits: Limits,
    builders: Builders | None,
    go_on: Callable[[], None],
    clock: Callable[[], float],
) -> HitBatch:
    """A shard's part of a search by a sparse vector, of the documents that the filter allows. Raises InvalidArgument,
    and as SparseScores."""
    if request.sparse is None:
        raise invalid("sparse", None, "what a search asks for")
    if request.bound and request.explain:
        raise Forbidden("explain tells how many documents there are in all, and this API key is for some only")
    check_hits(request, limits)
    asked, name = sparse.asked(request.sparse), request.sparse.name
    check_sparse_name(name)  # an index is kept by it: the router refuses what no collection has, and others may ask
    instants = [clock()]
    allow = allowed_ordinals(collection, request.filter, limits, builders, go_on, request.bound)
    among = visible_ordinals(collection) if allow is None else allow.bitmap
    end, live = collection.record.next_ordinal, collection.record.documents
    instants.append(clock())
    scores = SparseScores(collection.payload, name, asked, end, among, live, builders, go_on)
    ordinals, found = scores.scores()
    nearest = best(ordinals, found, request.k, collection.record, store, go_on)
    instants.append(clock())
    batch = batch_of(nearest, request, collection.record, store, applied)
    note = f"{len(ordinals)} documents have one of the {len(asked.indices)} indices of {name!r}"
    return explaining(batch, request, collection, len(among), [*instants, clock()], [note])
