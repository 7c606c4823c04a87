"""Answers of several shards as one. Pure.

Invariant: hits are ordered by (distance, id), so that equal data gives equal answers however it is spread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import repeat
from typing import Final, NamedTuple, TypeVar

import msgspec
import numpy as np

from needle.base.errors import ClusterTooOld, DeadlineExceeded, ProtocolError
from needle.base.filters.ordering import START, Key, ScanOrder, Turned, turned, turned_back
from needle.base.filters.values import Mark, Value, in_order, marked
from needle.base.model import HitBatch, Metric, SearchRequest, near_enough
from needle.base.parts import Payload
from needle.client.router.by_node import NodePart
from needle.client.router.fan_out import Answers
from needle.client.router.variety import varied
from needle.protocol import calls
from needle.protocol.calls import (
    DocumentBatch,
    FacetAnswer,
    ScanAnswer,
    ScanPin,
    SearchManyAnswer,
    expiries,
    told_counts,
)
from needle.protocol.named import Named
from needle.protocol.node_calls import NodeHits

T = TypeVar("T")
STEP_BYTES: Final = 2048
"""What the choice of one more hit takes beside its comparisons."""
GROUPED: Final = 8
"""To put groups together, or counts of values, takes so many times as long, by the byte, as to merge hits."""


def weight(size: int, request: SearchRequest, count: int = 1) -> int:
    """Of answers of so many bytes: as many bytes of plain hits take about as long to be merged. Each hit that is taken
    for being unlike others is compared with all of them. count: searches in one call."""
    if request.group_by:
        return size * GROUPED
    return size if request.diversify is None else size + request.take * (count * STEP_BYTES + size // 8)


def merge_hits(batches: Sequence[HitBatch], k: int, owners: Sequence[Sequence[int] | int] = ()) -> HitBatch:
    """The k nearest of all batches. applied_index is the largest; it means something only for one batch. owners: of
    each batch the shard of its hits, or that of each hit."""
    if len(batches) == 1:
        return batches[0]
    return chosen(batches, nearest(batches, k, owners or range(len(batches))))


def nearest(batches: Sequence[HitBatch], k: int, owners: Sequence[Sequence[int] | int]) -> list[tuple[int, int]]:
    """The k nearest hits, each by its batch and its place there: by distance, then id, then shard, so that it does not
    matter which of them were merged before. owners: as of `merge_hits`."""
    rows: list[tuple[float, str, int, int, int]] = []
    for which, (batch, of) in enumerate(zip(batches, owners, strict=True)):
        shards = repeat(of) if isinstance(of, int) else of
        places = range(len(batch.ids))
        rows += zip(batch.distances, batch.ids, shards, repeat(which), places, strict=False)
    rows.sort()
    return [(which, row) for _, _, _, which, row in rows[:k]]


def chosen(batches: Sequence[HitBatch], rows: Sequence[tuple[int, int]]) -> HitBatch:
    """These hits, each by its batch and its place there. applied_index: as of `merge_hits`."""
    sizes = [len(batch.vectors) // max(1, len(batch.ids)) for batch in batches]
    with_metadata = any(batch.metadata for batch in batches)
    return HitBatch(
        [batches[which].ids[row] for which, row in rows],
        [batches[which].distances[row] for which, row in rows],
        [batches[which].versions[row] for which, row in rows],
        [batches[which].metadata[row] for which, row in rows] if with_metadata else [],
        b"".join(batches[which].vectors[row * sizes[which] : (row + 1) * sizes[which]] for which, row in rows),
        max((batch.applied_index for batch in batches), default=0),
        batches[0].metric if batches else Metric.COSINE,
        [one for batch in batches for one in batch.explained],
        order=[batches[which].order[row] for which, row in rows] if any(batch.order for batch in batches) else [],
    )


class Wanted:
    """Whether an answer that is made in a thread is still waited for: as long as its time is not over and nobody has
    said otherwise. What is made of a few large vectors may take longer than who asks has time."""

    def __init__(self, clock: Callable[[], float], until: float) -> None:
        """until: by the clock."""
        self._clock, self._until = clock, until
        self.gone = False

    def __call__(self) -> None:
        """Raises DeadlineExceeded if not."""
        if self.gone or self._clock() > self._until:
            raise DeadlineExceeded("the call's time was over before its answer was put together")

    async def by(self, work: Awaitable[T]) -> T:
        """What is made; once nobody waits for that any more, it is told so."""
        try:
            return await work
        finally:
            self.gone = True


def narrowed(batch: HitBatch, request: SearchRequest, go_on: Callable[[], None] = lambda: None) -> HitBatch:
    """Without what the request leaves out of the hits of all shards: what is too far, the document that it is like,
    what is too much like others, and the first ones; and in the order that it asks for. go_on: as of `varied`."""
    changes = request.like or request.offset or request.diversify is not None or request.order_by
    if not changes and request.max_distance is None and request.min_score is None:
        return batch
    count = near_enough(batch.distances, batch.metric, request)
    if count == len(batch.ids) and not changes:
        return batch
    left = [at for at in range(count) if not request.like or batch.ids[at] != request.like]
    left = left[: request.k - bool(request.like)]
    if request.diversify is not None and left:
        vectors = np.frombuffer(batch.vectors, "<f4").reshape(len(batch.ids), -1)[left]
        far = [batch.distances[at] for at in left]
        left = [left[at] for at in varied(vectors, far, batch.metric, request.diversify, request.take, go_on)]
    left = left[request.offset :]
    if request.order_by:
        left.sort()  # nearest first, whatever the steps were by which they were chosen
        left = [left[at] for at in in_order([batch.order[at] for at in left], descending=request.descending)]
    found = chosen([batch], [(0, at) for at in left])
    return msgspec.structs.replace(found, vectors=b"" if request.bare else found.vectors, order=[])


def merge_documents(batches: Sequence[DocumentBatch], asked: Sequence[str]) -> DocumentBatch:
    """The documents of all batches in the order asked for."""
    where: dict[str, tuple[DocumentBatch, int]] = {}
    for batch in batches:
        for row, name in enumerate(batch.ids):
            where.setdefault(name, (batch, row))
    rows = [where[name] for name in asked if name in where]
    return DocumentBatch(
        [batch.ids[row] for batch, row in rows],
        [batch.versions[row] for batch, row in rows],
        [batch.metadata[row] for batch, row in rows],
        b"".join(_row(batch, row) for batch, row in rows),
        max((batch.applied_index for batch in batches), default=0),
        expiries([batch.expires[row] if batch.expires else 0 for batch, row in rows]),
        merge_named(rows),
    )


def merge_pages(pages: Sequence[ScanAnswer], limit: int, *, descending: bool = False) -> ScanAnswer:
    """The next documents of all pages in the order of their keys, if they have any, and ids: up to the place that all
    of them have reached, and at most `limit` but for documents of several shards that share the last place, which no
    later page would bring. descending: their keys do, as shards have them; the ids do not."""

    def stands(key: Key, name: str) -> tuple[Turned, str]:
        return (turned(key) if descending else key), name

    reached = (stands(page.key or START, page.reached) for page in pages if page.reached is not None)
    bound = min(reached, default=None)
    rows = sorted(
        (place, which, row)
        for which, page in enumerate(pages)
        for row, place in enumerate(map(stands, page.keys or repeat(START), page.documents.ids))
        if bound is None or place <= bound
    )
    if len(rows) > limit:
        bound = rows[limit - 1][0]
        rows = [one for one in rows if one[0] <= bound]
    batches = [page.documents for page in pages]
    documents = DocumentBatch(
        [name for (_, name), _, _ in rows],
        [batches[which].versions[row] for _, which, row in rows],
        [batches[which].metadata[row] for _, which, row in rows],
        b"".join(_row(batches[which], row) for _, which, row in rows),
        max((batch.applied_index for batch in batches), default=0),
        expiries([batches[which].expires[row] if batches[which].expires else 0 for _, which, row in rows]),
        merge_named([(batches[which], row) for _, which, row in rows]),
    )
    pins = [page.pin for page in pages if page.pin is not None]
    pin = ScanPin(pins[0].token, [one for found in pins for one in found.open]) if pins else None
    if not any(page.keys or page.key for page in pages):
        return ScanAnswer(documents, None if bound is None else bound[1], pin=pin)
    keys = [turned_back(key) if descending else key for (key, _), _, _ in rows]
    if bound is None:
        return ScanAnswer(documents, None, pin=pin, keys=keys)
    key, name = bound
    return ScanAnswer(documents, name, pin=pin, keys=keys, key=turned_back(key) if descending else key)


def merge_named(rows: Sequence[tuple[DocumentBatch, int]]) -> list[Named]:
    """The named vectors of these documents of batches."""
    if not any(batch.named for batch, _ in rows):
        return []
    found: dict[str, tuple[list[int], list[memoryview]]] = {}
    known: dict[int, dict[str, dict[int, memoryview]]] = {}
    for at, (batch, row) in enumerate(rows):
        if id(batch) not in known:
            known[id(batch)] = {one.vector: dict(zip(one.rows, one.each(), strict=True)) for one in batch.named}
        for name, vectors in known[id(batch)].items():
            if row in vectors:
                places, blocks = found.setdefault(name, ([], []))
                places.append(at)
                blocks.append(vectors[row])
    return [Named(name, places, b"".join(blocks)) for name, (places, blocks) in sorted(found.items())]


def _row(batch: DocumentBatch, row: int) -> bytes:
    size = len(batch.vectors) // len(batch.ids)
    return batch.vectors[row * size : (row + 1) * size]


def by_owner(owners: Sequence[int]) -> Mapping[int, list[int]]:
    """Positions by owner, in order."""
    groups: dict[int, list[int]] = {}
    for at, owner in enumerate(owners):
        groups.setdefault(owner, []).append(at)
    return dict(sorted(groups.items()))


class Merged(NamedTuple):
    """applied: by shard, the log index at which it was searched. merged: what the request asks for of all. lacking:
    groups to ask for by name, because `merged` is not proven to be right; [] if it is."""

    applied: dict[int, int]
    merged: HitBatch
    lacking: Sequence[Value] = ()


def indices(by_shard: Mapping[int, HitBatch]) -> dict[int, int]:
    """At which log index each shard was searched."""
    return {shard: batch.applied_index for shard, batch in by_shard.items()}


def merged_hits(answers: Answers, request: SearchRequest, go_on: Callable[[], None] = lambda: None) -> Merged:
    """Of what each shard, and each node, has answered. go_on: as of `varied`."""
    if len(answers.by_shard) == 1 and not answers.parts:  # there is nothing to merge
        [(shard, body)] = answers.by_shard.items()
        batch = hits_of_one(shard, body, request, go_on)
        return Merged({shard: batch.applied_index}, batch)
    by_shard = {shard: _hits_of_shard(shard, body, request) for shard, body in answers.by_shard.items()}
    applied, batches, owners = indices(by_shard), list(by_shard.values()), list[Sequence[int] | int](by_shard)
    for part in answers.parts:
        [(batch, of)] = hits_of(part, 1)
        batches.append(batch)
        owners.append(of)
        applied.update(part.seen)
    return Merged(applied, narrowed(merge_hits(batches, request.k, owners), request, go_on))


def hits_of_one(
    shard: int, body: Payload, request: SearchRequest, go_on: Callable[[], None] = lambda: None
) -> HitBatch:
    """The answer to a search that one shard alone was asked. go_on: as of `varied`."""
    return narrowed(_hits_of_shard(shard, body, request), request, go_on)


def _hits_of_shard(shard: int, body: Payload, request: SearchRequest) -> HitBatch:
    return _told(shard, calls.decode(body, HitBatch), request)


def _told(shard: int, batch: HitBatch, request: SearchRequest) -> HitBatch:
    if request.order_by and len(batch.order) != len(batch.ids):
        raise too_old(shard, "order_by")
    return of_shard(shard, batch) if batch.explained else batch


def merged_searches(
    answers: Answers, request: SearchRequest, count: int, go_on: Callable[[], None] = lambda: None
) -> tuple[dict[int, int], list[HitBatch]]:
    """Of each answer to `count` searches: the index that each shard surely saw, and what is asked for of all. go_on: as
    of `varied`."""
    decoded = {
        shard: [_told(shard, batch, request) for batch in calls.decode(body, SearchManyAnswer).batches]
        for shard, body in answers.by_shard.items()
    }
    if any(len(batches) != count for batches in decoded.values()):
        raise ProtocolError(f"a shard has not answered {count} searches")
    seen = {shard: min(batch.applied_index for batch in batches) for shard, batches in decoded.items()}
    told = [hits_of(part, count) for part in answers.parts]
    for part in answers.parts:
        seen.update(part.seen)
    found: list[HitBatch] = []
    for at in range(count):
        batches = [each[at] for each in decoded.values()] + [each[at][0] for each in told]
        owners: list[Sequence[int] | int] = [*decoded, *(each[at][1] for each in told)]
        found.append(narrowed(merge_hits(batches, request.k, owners), request, go_on))
    return seen, found


def hits_of(part: NodePart, count: int) -> list[tuple[HitBatch, list[int]]]:
    """What a node has found for each of `count` vectors, and the shard of each hit. Raises ProtocolError for hits of
    shards that it does not say to have searched."""
    hits = calls.decode(part.body, NodeHits)
    if len(hits.batches) != count or len(hits.places) != count:
        raise ProtocolError(f"a node has not answered {count} searches")
    found: list[tuple[HitBatch, list[int]]] = []
    for batch, places in zip(hits.batches, hits.places, strict=True):
        of = [part.shards[place] if 0 <= place < len(part.shards) else -1 for place in places]
        if len(of) != len(batch.ids) or not part.seen.keys() >= {*of}:
            raise ProtocolError("a node's hits are of other shards than it has searched")
        found.append((batch, of))
    return found


def too_old(shard: int, asked: str) -> ClusterTooOld:
    """What to say of an answer that passes over what was asked."""
    return ClusterTooOld(
        f"{asked} is known to nodes of this release, and the one that answered for shard {shard} runs an earlier one: "
        "upgrade all nodes first"
    )


def of_shard(shard: int, batch: HitBatch) -> HitBatch:
    """If it explains itself, with the number of the shard that did."""
    if not batch.explained:
        return batch
    told = [msgspec.structs.replace(one, shard=shard) for one in batch.explained]
    return msgspec.structs.replace(batch, explained=told)


def merged_pages(answers: dict[int, Payload], limit: int, order: ScanOrder | None) -> tuple[dict[int, int], ScanAnswer]:
    """The log index at which each shard was read; and one page of all. order: as asked for. Raises ClusterTooOld."""
    pages = {shard: calls.decode(body, ScanAnswer) for shard, body in answers.items()}
    for page in pages.values() if order is not None else ():
        if len(page.keys) != len(page.documents.ids) or (page.reached is not None and page.key is None):
            raise ClusterTooOld("a node runs a release that knows no scans in the order of a field: upgrade it first")
    seen = {shard: page.documents.applied_index for shard, page in pages.items()}
    return seen, merge_pages(list(pages.values()), limit, descending=order is not None and order.descending)


def merged_facets(answers: dict[int, Payload], limit: int) -> tuple[dict[int, int], FacetAnswer]:
    """The log index at which each shard counted; and the sums of all."""
    parts = {shard: calls.decode(body, FacetAnswer) for shard, body in answers.items()}
    values: dict[Mark, Value] = {}
    sums: dict[Mark, int] = {}
    for part in parts.values():
        for value, count in zip(part.values, part.counts, strict=True):
            mark = marked(value)
            values.setdefault(mark, value)
            sums[mark] = sums.get(mark, 0) + count
    documents, without = (sum(getattr(one, name) for one in parts.values()) for name in ("documents", "without"))
    seen = {shard: part.applied_index for shard, part in parts.items()}
    counts = [sums[mark] for mark in values]
    return seen, told_counts([*values.values()], counts, limit, documents, without, max(seen.values(), default=0))


def merged_documents(
    answers: dict[int, Payload], names: Sequence[str]
) -> tuple[dict[int, DocumentBatch], DocumentBatch]:
    """All of them by shard, and one answer in the order of `names`."""
    batches = {shard: calls.decode(body, DocumentBatch) for shard, body in answers.items()}
    return batches, merge_documents(list(batches.values()), names)
