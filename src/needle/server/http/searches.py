"""Handlers of searches: a decoded request in, hits out."""

from __future__ import annotations

from itertools import repeat

import msgspec

from needle.base.errors import InvalidArgument
from needle.base.model import HitBatch, SearchRequest, score_of
from needle.base.runtime import beside
from needle.client import values
from needle.client.narrowed import Narrow, search_request
from needle.client.searches import no_text
from needle.server.http import bodies
from needle.server.http.call import BESIDE_BYTES, MANY_ROWS, Call, hold, rows_of, vector_of
from needle.server.http.sparse import sparse_of
from needle.server.http.texts import of_text, of_texts


async def search(call: Call) -> bodies.Hits:
    body: bodies.Search = call.body
    by_scores = body.keywords is not None or body.sparse is not None
    if body.vector is None and body.like is None and body.text is None and not by_scores:
        raise InvalidArgument(
            "give a vector, a text, keywords, a sparse vector, or in `like` the id of a document", field="vector"
        )
    narrow = _narrow(body)._replace(like=body.like, keywords=body.keywords, sparse=sparse_of(body.sparse))
    no_text(body.text, body.vector_name)
    vector, seconds = await of_text(call, body.vector, body.text, body.mode)
    request = await call.beside(
        lambda: search_request(
            None if vector is None else vector_of(vector, body.vector_type),
            body.k, body.filter, call.collection, body.with_metadata, body.with_vectors, body.exact, body.ef_search,
            narrow=narrow,
        )
    )  # fmt: skip
    reading = call.reading()
    found = await call.router.search(
        request,
        reading.mode,
        seconds,
        max_staleness=reading.max_staleness,
        session=reading.session,
        partial=body.partial,
    )
    missing = {shard: error.message for shard, error in found.missing.items()}
    [hits] = await hits_beside(call, [found.batch], body.vector_format)
    return bodies.Hits(
        hits=hits,
        applied_index=found.applied,
        epoch=found.epoch,
        missing=missing,
        explained=found.batch.explained,
    )


def _narrow(body: bodies.SearchOptions) -> Narrow:
    return Narrow(
        body.fields, body.max_distance, body.min_score, body.offset, None, body.explain, body.group_by,
        body.group_size, body.diversify, body.pool, body.order_by, body.descending, vector_name=body.vector_name,
    )  # fmt: skip


async def search_many(call: Call) -> bodies.ManyHits:
    body: bodies.SearchMany = call.body
    narrow = _narrow(body)
    no_text(body.texts, body.vector_name)
    vectors, seconds = await of_texts(call, body.vectors, body.texts, body.mode)

    def asked() -> tuple[SearchRequest, int]:
        queries = [vector_of(one, body.vector_type, f"vectors[{n}]") for n, one in enumerate(vectors)]
        rows = values.as_array(queries, "vectors", 2)
        request = search_request(
            rows[0], body.k, body.filter, call.collection, body.with_metadata, body.with_vectors, body.exact,
            body.ef_search, narrow=narrow,
        )  # fmt: skip
        return msgspec.structs.replace(request, vector=rows.tobytes()), len(rows)

    request, count = await (call.blocking(asked) if len(vectors) > MANY_ROWS else call.beside(asked))
    reading = call.reading()
    batches = await call.router.search_many(
        request,
        count,
        reading.mode,
        seconds,
        max_staleness=reading.max_staleness,
        session=reading.session,
    )
    explained = [batch.explained for batch in batches] if body.explain else []
    return bodies.ManyHits(results=await hits_beside(call, batches, body.vector_format), explained=explained)


async def hits_beside(call: Call, batches: list[HitBatch], form: bodies.VectorFormat) -> list[list[bodies.Hit]]:
    """Of each answer; in a thread if they are large together: there may be a thousand. batches: there are none any more
    then, for to give them back takes its time, too. Raises HttpError where the node's memory of requests does not hold
    them."""
    size = await hold(call, batches, form)

    def made() -> list[list[bodies.Hit]]:
        hits = [_hits(call, batch, form) for batch in batches]
        batches.clear()
        return hits

    return await beside(call.blocking if size >= BESIDE_BYTES else None, made)


def _hits(call: Call, batch: HitBatch, form: bodies.VectorFormat) -> list[bodies.Hit]:
    rows = rows_of(batch.vectors, len(batch.ids), form)
    metadata = map(call.metadata, batch.metadata) if batch.metadata else repeat(None)
    groups = batch.groups or repeat(None)
    columns = zip(batch.ids, batch.distances, batch.versions, metadata, rows, groups, strict=False)
    return [
        bodies.Hit(
            id=name, distance=distance, score=score_of(distance, batch.metric), version=version, metadata=told,
            vector=vector, group=group,
        )
        for name, distance, version, told, vector, group in columns
    ]  # fmt: skip
