"""Hybrid searches: a vector and words, whose hits become one list on this node."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import msgspec

from needle.base.errors import InvalidArgument
from needle.base.model import SearchRequest
from needle.client.document_calls import Found
from needle.client.hybrid import RRF, candidates, check_fusion, fused, together
from needle.client.narrowed import Narrow, hybrid_requests
from needle.client.searches import no_text
from needle.protocol.calls import batch_bytes
from needle.server.http import bodies
from needle.server.http.call import Call, vector_of
from needle.server.http.documents import hits_beside
from needle.server.http.texts import of_text


async def hybrid_search(call: Call) -> bodies.Hits:
    body: bodies.HybridSearch = call.body
    if body.vector is None and body.text is None and body.like is None:
        raise InvalidArgument(
            "give a vector, a text that becomes one, or in `like` the id of a document", field="vector"
        )
    no_text(body.text, body.vector_name)
    fusion = check_fusion(RRF(k=body.fusion.k, weights=body.fusion.weights))
    k, offset, pool = candidates(body.k, body.offset, body.pool)
    vector, seconds = await of_text(call, body.vector, body.text, body.mode)

    def asked() -> tuple[SearchRequest, SearchRequest]:
        return hybrid_requests(
            None if vector is None else vector_of(vector, body.vector_type),
            body.keywords, pool, body.filter, call.collection, body.with_metadata, body.with_vectors, body.exact,
            body.ef_search, Narrow(body.fields, like=body.like, explain=body.explain, vector_name=body.vector_name),
        )  # fmt: skip

    near, words = await call.beside(asked)
    reading = call.reading()

    def find(request: SearchRequest) -> Coroutine[Any, Any, Found]:
        return call.router.search(
            request, reading.mode, seconds, max_staleness=reading.max_staleness, session=reading.session
        )

    one, other = await together(find(near), find(words))
    call.share.take(batch_bytes(one.batch) + batch_bytes(other.batch))
    found = fused(one.batch, other.batch, fusion, k, offset, body.like or "", pool)
    hits = await hits_beside(call, found.batch, body.vector_format)
    return bodies.Hits(
        hits=[msgspec.structs.replace(hit, ranks=ranks) for hit, ranks in zip(hits, found.ranks, strict=True)],
        applied_index={shard: min(index, other.applied.get(shard, index)) for shard, index in one.applied.items()},
        epoch=min(one.epoch, other.epoch),
        explained=[*one.batch.explained, *other.batch.explained],
    )
