"""A batch of inserts: under the name that its collection has inside the shards, also where that is another one by now.

Invariant: only what its shard refused for want of a collection, or of a named vector, is written again. It must not
know how rows are divided among shards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from needle.base.errors import CollectionNotFound, NeedleError
from needle.client.document_calls import BatchPart
from needle.client.router.by_filter import Write
from needle.client.router.routes import Routes
from needle.client.router.row_inserts import Known, RowInserts, in_callers_words
from needle.protocol.commands import Named, last_of_each_id
from needle.protocol.named import taken_of


class Batch(NamedTuple):
    """See Router.insert_batch."""

    collection: str
    ids: list[str]
    rows: memoryview
    metadata: list[bytes]
    expires: Sequence[int]
    named: Sequence[Named]
    whole: bool

    def of(self, keep: list[int]) -> Batch:
        """The documents at these places, which ascend."""
        size = self.rows.nbytes // len(self.ids)
        return self._replace(
            ids=[self.ids[at] for at in keep],
            rows=memoryview(b"".join(self.rows[at * size : (at + 1) * size] for at in keep)),
            metadata=[self.metadata[at] for at in keep],
            expires=[self.expires[at] for at in keep] if self.expires else (),
            named=taken_of(self.named, keep),
        )


async def insert_batch(routes: Routes, write: Write, batch: Batch, timeout: float) -> list[BatchPart]:
    """What became of each part, in the order of their first documents."""
    if (keep := last_of_each_id(batch.ids)) is not None:
        return _placed(await insert_batch(routes, write, batch.of(keep), timeout), keep)
    end = asyncio.get_running_loop().time() + timeout
    parts = await routes.named(batch.collection, timeout, partial(_once, routes, write, batch))
    gone = sorted(at for part in parts if isinstance(part.outcome, CollectionNotFound) for at in part.rows)
    if not gone:
        return parts
    # Others had a place: these name a vector of before, or their shard does not have the collection yet.
    left = max(0.001, end - asyncio.get_running_loop().time())
    try:
        again = _placed(await insert_batch(routes, write, batch.of(gone), left), gone)
    except NeedleError as error:
        again = [BatchPart(gone, error)]
    kept = [part for part in parts if not isinstance(part.outcome, CollectionNotFound)]
    return sorted([*kept, *again], key=lambda part: part.rows[0])


def _placed(parts: list[BatchPart], places: list[int]) -> list[BatchPart]:
    return [BatchPart([places[at] for at in part.rows], part.outcome) for part in parts]


async def _once(routes: Routes, write: Write, batch: Batch, stored: str, left: float) -> list[BatchPart]:
    """Raises CollectionNotFound if no part has a place."""
    collection, ids, rows, metadata, expires, named, whole = batch
    inserts = RowInserts(routes.fan_out.ownership, write, routes.beside, routes.part_max)
    form, vectors = routes.form(stored), await routes.vectors(stored, named, left)
    known = Known(routes.vector_forms(stored) if vectors else {}, routes.sparse_of(stored))
    parts = await inserts.run(
        stored, ids, rows, metadata, left, expires, whole=whole, form=form, named=vectors, known=known
    )
    return in_callers_words(parts, routes.shards.topology().collection(collection))
