"""Changes the index of collections while they are used: the leader's half of index_change.py.

The files of the wanted index are built one after the other, each staged by the log, from where every replica fetches
it. Once all replicas have all of them, the recall of both indexes is measured over the same vectors, and one entry
switches. Whoever leads by then goes on where the log says.

Invariant: what is measured are the vectors of one moment, served by each index in turn. It does not know who wishes
what, nor Raft.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import numpy as np

from needle.base.errors import CorruptSegment, NeedleError
from needle.base.events import INDEX_KEPT, INDEX_SWITCHED, tell
from needle.base.ids import NodeId
from needle.base.model import IndexParams, Metric
from needle.base.runtime import Clock, Pool
from needle.protocol.commands import KeepIndex, SwitchIndex, encode
from needle.routing.topology import called
from needle.shard.index_change import next_stage
from needle.shard.plan import SegmentLoad
from needle.shard.segments.builds import SegmentBuilds
from needle.shard.segments.collection_vectors import CollectionVectors
from needle.shard.segments.scoring import Floats, square_norms
from needle.shard.segments.view import VectorsView

log = logging.getLogger(__name__)

AskStaged = Callable[[NodeId, int], Awaitable[Sequence[str]]]
"""ask_staged(peer, collection id): the peer's SegmentKeeper.staged. Raises NeedleError."""
RETRY_SECONDS: Final = 1.0
LACKING_TIMES: Final = 10
"""A replica that does not answer is waited for as long as it would wait for a file before it built it (`ship_timeout`),
and one that answers, and has not got all files, so many times that: it will go over once it has."""
QUERIES, QUERIES_OF_MANY, MANY_BYTES = 32, 8, 1 << 30
"""By so many queries recall is measured; each has all vectors scored, so it is fewer where these have more bytes."""
K: Final = 10
EQUAL: Final = 1e-6
"""Distances that differ by less, as a share, are equal."""


class IndexChanges:
    """Of one replica, while it leads. On the event loop."""

    def __init__(
        self,
        *,
        name: str,
        builds: SegmentBuilds,
        wish: Callable[[str], IndexParams | None],
        publish: Callable[[bytes], Awaitable[object]],
        peers: Callable[[], Sequence[NodeId]],
        ask_staged: AskStaged,
        queries: Callable[[str], Sequence[bytes]],
        pool: Pool,
        clock: Clock,
    ) -> None:
        """See SegmentKeeper."""
        self._name = name
        self._builds = builds
        self._wish = wish
        self._publish = publish
        self._peers = peers
        self._ask_staged = ask_staged
        self._queries = queries
        self._pool = pool
        self._clock = clock
        self._staged_since: dict[int, float] = {}

    def pending(self, vectors: CollectionVectors) -> bool:
        """Whether the files are not, or are not to be, those of the index that the catalog names."""
        wished, held = self._wish(vectors.spec.name), vectors.spec.index
        if wished is not None:
            other = wished != held and wished.built != held.built
            if other or vectors.indexing.wanted is not None:
                return True
        self._staged_since.pop(vectors.collection_id, None)
        return False

    async def step(self, vectors: CollectionVectors, loads: Sequence[SegmentLoad], view: VectorsView) -> float:
        """Build the next file, or wait for replicas, or switch; after how many seconds to look again. loads, view: of
        one moment."""
        wished = self._wish(vectors.spec.name)
        if wished is None or await self._builds.elsewhere(vectors.collection_id):
            return RETRY_SECONDS
        try:
            return await self._step(vectors, wished, loads, view)
        except CorruptSegment as error:  # searches meet it as well, and have it repaired
            log.warning("%s: the index of %s is not changed now: %s", self._name, called(vectors.spec.name), error)
            return RETRY_SECONDS

    async def _step(
        self, vectors: CollectionVectors, wished: IndexParams, loads: Sequence[SegmentLoad], view: VectorsView
    ) -> float:
        collection_id = vectors.collection_id
        if wished.built == vectors.spec.index.built:
            return await self._keep(vectors)
        task = next_stage(vectors.indexing, wished, loads)
        if task is not None:
            self._staged_since.pop(collection_id, None)
            built = await self._builds.build_and_publish(
                vectors, task, view, wished, partial(self._still_wished, vectors, wished)
            )
            return 0.0 if built else RETRY_SECONDS
        since = self._staged_since.setdefault(collection_id, self._clock.monotonic())
        if not await self._everywhere(vectors, self._clock.monotonic() - since):
            return RETRY_SECONDS
        return await self._switch(vectors, wished)

    def _still_wished(self, vectors: CollectionVectors, index: IndexParams) -> bool:
        now = self._wish(vectors.spec.name)
        return now is not None and now.built == index.built

    async def _keep(self, vectors: CollectionVectors) -> float:
        try:
            await self._publish(encode(KeepIndex(vectors.collection_id)))
        except NeedleError as error:
            log.info("%s: staged files are not given up yet: %s", self._name, error)
        else:
            tell(INDEX_KEPT, group=self._name, collection=called(vectors.spec.name), index=vectors.spec.index.built)
        return RETRY_SECONDS

    async def _everywhere(self, vectors: CollectionVectors, waited: float) -> bool:
        """Whether all replicas have the staged files, or were waited for long enough."""
        wanted = {segment.checksum for segment in vectors.staged()}
        patience: float = vectors.config.ship_timeout

        async def may_go_on(peer: NodeId) -> bool:
            try:
                here = await self._ask_staged(peer, vectors.collection_id)
                return wanted <= set(here) or waited >= LACKING_TIMES * patience
            except NeedleError as error:
                log.info("%s does not say which index files it has: %s", peer, error)
                return waited >= patience

        return all(await asyncio.gather(*(may_go_on(peer) for peer in self._peers())))

    async def _switch(self, vectors: CollectionVectors, index: IndexParams) -> float:
        both = await self._pool.run(vectors.beside, index)
        if both is None:  # a file is not here, or has just been joined with another one
            return RETRY_SECONDS
        before, after, count = await self._measured(vectors, *both)
        command = SwitchIndex(vectors.collection_id, index, before, after, count)
        former = vectors.spec.index.built
        try:
            await self._publish(encode(command))
        except NeedleError as error:  # more was indexed since, or there is no leader
            log.info("%s: the index of %s is not switched yet: %s", self._name, called(vectors.spec.name), error)
            return RETRY_SECONDS
        told = "not measured" if not count else f"recall {after:.3f} instead of {before:.3f}, by {count} queries"
        of = {"group": self._name, "collection": called(vectors.spec.name)}
        tell(INDEX_SWITCHED, former=former, index=index.built, told=told, **of)
        return RETRY_SECONDS

    async def _measured(
        self, vectors: CollectionVectors, before: VectorsView, after: VectorsView
    ) -> tuple[float, float, int]:
        """(recall before, after, queries). Between two queries it rests for as long as one took: the thread, and the
        disk, are others' too."""
        if not before.served:
            return 0.0, 0.0, 0
        many = 4 * vectors.spec.dimensions * len(before) > MANY_BYTES
        asked = self._queries(vectors.spec.name)
        queries, own = await self._pool.run(queries_of, before, asked, QUERIES_OF_MANY if many else QUERIES)
        found = []
        for at in range(len(queries)):
            began = self._clock.monotonic()
            found.append(await self._pool.run(_shares, before, after, queries[at : at + 1], own[at]))
            await asyncio.sleep(self._clock.monotonic() - began)
        if not found:
            return 0.0, 0.0, 0
        first, second = np.mean(found, axis=0).tolist()
        return first, second, len(found)


def queries_of(view: VectorsView, asked: Sequence[bytes], count: int) -> tuple[Floats, list[bool]]:
    """Queries to measure by, (n, d) float32: of those that were asked, as callers gave them, and vectors from
    everywhere where these are too few; and which of them are vectors of the collection."""
    form = view.spec.form
    given = [numbers for one in asked if (numbers := form.rows_given(one, 1)) is not None][-count:]
    recorded = [form.scored(form.stored(rows)) for rows in given] if form.bits else given
    rows = [np.empty((0, form.dimensions), np.float32), *recorded]
    sizes = [served.live_rows() for served in view.served]
    ends, total = np.cumsum(sizes), sum(sizes)
    places = np.unique(np.linspace(0, total - 1, min(total, count - len(recorded))).astype(np.int64))
    for served, end, size in zip(view.served, ends.tolist(), sizes, strict=True):
        inside = places[(places >= end - size) & (places < end)] - (end - size)
        live = inside if served.live is None else np.flatnonzero(served.live)[inside]
        served.sealed.check_size()
        rows.append(served.sealed.vectors(live))
    queries = np.concatenate(rows).astype(np.float32)
    if view.spec.metric == Metric.COSINE:
        lengths = np.sqrt(square_norms(queries))[:, None]
        queries /= np.where(lengths > 0, lengths, 1)
    return queries, [False] * len(recorded) + [True] * (len(queries) - len(recorded))


def _shares(before: VectorsView, after: VectorsView, query: Floats, own: bool) -> tuple[float, float]:
    """Which part of what is nearest to a query (1, d) each finds. own: it is one of the vectors: it does not count."""
    exact = before.search(query, K + own, exact=True)[1][0]
    exact = exact[np.isfinite(exact)]
    if len(exact) <= own:
        return 1.0, 1.0
    bound = exact[-1] + EQUAL * max(1.0, abs(float(exact[-1])))
    found = [int(np.count_nonzero(view.search(query, len(exact))[1][0] <= bound)) for view in (before, after)]
    first, second = (max(0, min(count, len(exact)) - own) / (len(exact) - own) for count in found)
    return first, second
