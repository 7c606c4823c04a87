"""How much of what is nearest a search through the index finds: it is asked in several ways, of one view. Pure.

Invariant: all see exactly the same documents, so a share under 1 is the index's, never a write's in between; and what
it costs has a bound, however large the collection is. It must not know which searches are measured, nor when.

Where few enough vectors are allowed, all are scored. Otherwise what is near is counted: what the search and one of
WIDER times its effort find within the distance of the k-th of both, and, for what both miss, the documents of a random
part that are nearer, each for as many as the part stands for (Horvitz and Thompson 1952).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
import numpy as np
from pyroaring import BitMap

from needle.base.config import Limits
from needle.base.errors import NeedleError
from needle.base.model import HitBatch, SearchRequest, near_enough
from needle.shard.apply.spec_validation import EF_MAX
from needle.shard.apply.validation import check_search
from needle.shard.live_collection import CollectionView, ReplicaView
from needle.shard.query import allowed_ordinals, nearest_of, search_group, visible_ordinals
from needle.shard.segments.allowed import Allowed

BYTES_MAX: Final = 256 << 20
"""Of so many bytes of vectors, as float32, all are scored; of more a random part of that size, on average."""
RUN_BYTES: Final = 256 << 10
"""The part is of pieces that lie together so long: files are read by pages."""
WIDER: Final = 4
EQUAL: Final = 1e-6
"""Distances that differ by less, as a share, are equal: the index adds up in another order."""


class Measured(NamedTuple):
    """Of one search, both for each hit that it could have: how many it found, at most 1, and how many there were to be
    found: 1 where that is known, an estimate otherwise. The recall of searches is the sum of the one by that of the
    other."""

    found: float
    near: float


def recall_of(
    view: ReplicaView,
    request: SearchRequest,
    limits: Limits,
    go_on: Callable[[], None],
    seed: int = 0,
    bytes_max: int = BYTES_MAX,
) -> Measured | None:
    """None where there is nothing to measure: no index, or no hits. go_on: called between the parts; what it raises
    ends the work. seed: of the random part. bytes_max: instead of BYTES_MAX. Blocking, for as long as so many vectors
    take. Raises NeedleErrors of searches."""
    collection, name = view.collection(request.collection), request.vector_name
    named = view.vector(collection, name) if name else None
    by = named or collection
    if request.exact or not by.vectors.served:
        return None
    allow = allowed_ordinals(collection, request.filter, limits, None, go_on, request.bound)
    if named is not None and allow is not None:
        allow = Allowed(allow.bitmap & named.live.bitmap())
    allowed = by.visible if allow is None else len(allow)
    if 4 * by.record.spec.dimensions * allowed > bytes_max:
        return _estimated(by, request, allow, limits, go_on, seed, bytes_max)

    def asked(*, exact: bool) -> HitBatch:
        plain = msgspec.structs.replace(request, exact=exact, with_metadata=False, with_vectors=False, explain=False)
        found = search_group(collection, view.store, [plain], view.at.index, limits, go_on=go_on, vectors=named)[0]
        if isinstance(found, NeedleError):
            raise found
        return found

    found = asked(exact=False)
    go_on()
    exact_hits = asked(exact=True)
    return Measured(_share(found, exact_hits), 1.0) if exact_hits.ids else None


def _share(found: HitBatch, exact: HitBatch) -> float:
    """Of the exact hits; one that is as near as the last of them counts as one of them."""
    last = exact.distances[-1]
    bound, wanted = last + _slack(last), set(exact.ids)
    near = zip(found.ids, found.distances, strict=True)
    good = sum(id_ in wanted or distance <= bound for id_, distance in near)
    return min(good, len(exact.ids)) / len(exact.ids)


def _slack(distance: float) -> float:
    return EQUAL * max(1.0, abs(distance))


# --- of large collections --------------------------------------------------------------------------------------------
def _estimated(
    collection: CollectionView,
    request: SearchRequest,
    allow: Allowed | None,
    limits: Limits,
    go_on: Callable[[], None],
    seed: int,
    bytes_max: int,
) -> Measured | None:
    """See the module. Groups are not looked at: their members are nearest documents, too."""
    spec, beside = collection.record.spec, request.ef_search or request.usual_ef
    query = check_search(request, spec, limits)[None, :]
    effort = max(beside or spec.index.ef_search, 2 * request.k)
    # As a usual one: it is then never less than what a file's graph needs, which the search itself may have had.
    wider = msgspec.structs.replace(request, ef_search=0, usual_ef=min(EF_MAX, WIDER * effort))
    exactly = msgspec.structs.replace(request, exact=True)

    def distances(of: SearchRequest, among: Allowed | None) -> dict[int, float]:
        ((ordinals, found),) = nearest_of(collection, query, of, of.k, among, None)
        near = near_enough(found, spec.metric, request)
        return dict(zip(ordinals[:near], found[:near], strict=True))

    found = distances(request, allow)
    go_on()
    known = distances(wider, allow) | found
    go_on()
    among = visible_ordinals(collection) if allow is None else allow.bitmap
    rows = max(1, bytes_max // (4 * spec.dimensions))
    part, share = part_of(among, rows, max(1, RUN_BYTES // (4 * spec.dimensions)), seed)
    go_on()
    counted = distances(exactly, Allowed(part))
    near = sorted(known.values())[: request.k]
    full = len(near) == request.k
    last = near[-1] if full else np.inf  # fewer than k: whatever the request's bounds allow is near
    slack = _slack(last) if full else 0.0
    missed = sum(distance < last - slack for ordinal, distance in counted.items() if ordinal not in known)
    if not near and not missed:
        return None
    hits = max(1, len(near))
    good = min(len(near), sum(distance <= last + slack for distance in found.values()))
    return Measured(good / hits, (len(near) + missed / share) / hits)


def part_of(among: BitMap, rows: int, run: int, seed: int) -> tuple[BitMap, float]:
    """About so many of these ordinals, and with which probability each of them is among it. run: ordinals that come
    together, or none of them does."""
    first, end = among.min(), among.max() + 1
    runs = -(-(end - first) // run)
    count = min(runs, max(1, round(runs * rows / len(among))))
    part = BitMap()
    for at in np.random.Generator(np.random.PCG64(seed)).choice(runs, count, replace=False).tolist():
        part.add_range(first + at * run, min(end, first + (at + 1) * run))
    part &= among
    return part, count / runs
