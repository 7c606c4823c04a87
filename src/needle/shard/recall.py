"""How much of what is nearest a search through the index finds: it is asked in both ways, of one view. Pure.

Invariant: both see exactly the same documents, so a share under 1 is the index's, never a write's in between. It must
not know which searches are measured, nor when.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from needle.base.config import Limits
from needle.base.errors import NeedleError
from needle.base.model import HitBatch, SearchRequest
from needle.shard.live_collection import ReplicaView
from needle.shard.query import search_group

BYTES_MAX: Final = 4 << 30
"""A collection whose vectors have more bytes is not measured: all of them are read."""
EQUAL: Final = 1e-6
"""Distances that differ by less, as a share, are equal: the index adds up in another order."""


def recall_of(view: ReplicaView, request: SearchRequest, limits: Limits, go_on: Callable[[], None]) -> float | None:
    """The share of the exact hits, or of others as near, that the search finds through the index; None where there is
    nothing to measure: no index, no hits, or too much to read. go_on: called between the parts; what it raises ends the
    work. Blocking, for as long as an exact search takes. Raises NeedleErrors of searches."""
    collection = view.collection(request.collection)
    too_much = 4 * collection.record.spec.dimensions * collection.visible > BYTES_MAX
    if request.exact or too_much or not collection.vectors.served:
        return None

    def asked(*, exact: bool) -> HitBatch:
        plain = msgspec.structs.replace(request, exact=exact, with_metadata=False, with_vectors=False, explain=False)
        found = search_group(collection, view.store, [plain], view.at.index, limits, go_on=go_on)[0]
        if isinstance(found, NeedleError):
            raise found
        return found

    found = asked(exact=False)
    go_on()
    return _share(found, asked(exact=True))


def _share(found: HitBatch, exact: HitBatch) -> float | None:
    """Of the exact hits; one that is as near as the last of them counts as one of them."""
    if not exact.ids:
        return None
    last = exact.distances[-1]
    bound, wanted = last + EQUAL * max(1.0, abs(last)), set(exact.ids)
    near = zip(found.ids, found.distances, strict=True)
    good = sum(id_ in wanted or distance <= bound for id_, distance in near)
    return min(good, len(exact.ids)) / len(exact.ids)
