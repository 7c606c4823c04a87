"""Hybrid searches: a vector, words and a sparse vector, whose hits become one list on this node."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import msgspec

from needle.base.model import SearchRequest
from needle.base.runtime import beside
from needle.client.document_calls import Found
from needle.client.hybrid import RRF, candidates, check_fusion, fused
from needle.client.narrowed import Lists, Narrow, hybrid_requests
from needle.client.searches import no_text
from needle.client.together import together
from needle.protocol.calls import batch_bytes
from needle.server.http import bodies
from needle.server.http.call import BESIDE_BYTES, Call, vector_of
from needle.server.http.hybrid_bodies import HybridSearch
from needle.server.http.searches import hits_beside
from needle.server.http.sparse import sparse_of
from needle.server.http.texts import of_text


async def hybrid_search(call: Call) -> bodies.Hits:
    body: HybridSearch = call.body
    no_text(body.text, body.vector_name)
    k, offset, pool = candidates(body.k, body.offset, body.pool)
    vector, seconds = await of_text(call, body.vector, body.text, body.mode)

    def asked() -> list[SearchRequest]:
        given = None if vector is None else vector_of(vector, body.vector_type)
        return hybrid_requests(
            Lists(given, body.keywords, sparse_of(body.sparse)),
            pool, body.filter, call.collection, body.with_metadata, body.with_vectors, body.exact, body.ef_search,
            Narrow(body.fields, like=body.like, explain=body.explain, vector_name=body.vector_name),
        )  # fmt: skip

    requests = await call.beside(asked)
    fusion, reading = check_fusion(RRF(k=body.fusion.k, weights=body.fusion.weights), len(requests)), call.reading()

    def find(request: SearchRequest) -> Coroutine[Any, Any, Found]:
        return call.router.search(
            request, reading.mode, seconds, max_staleness=reading.max_staleness, session=reading.session
        )

    answers = await together(*map(find, requests))
    lists = [answer.batch for answer in answers]
    call.share.take(size := sum(map(batch_bytes, lists)))
    threads = call.blocking if size >= BESIDE_BYTES else None
    found = await beside(threads, fused, lists, fusion, k, offset, body.like or "", pool)
    [hits] = await hits_beside(call, [found.batch], body.vector_format)
    applied: dict[int, int] = {}
    for answer in answers:
        applied = {shard: min(index, applied.get(shard, index)) for shard, index in answer.applied.items()}
    return bodies.Hits(
        hits=[msgspec.structs.replace(hit, ranks=ranks) for hit, ranks in zip(hits, found.ranks, strict=True)],
        applied_index=applied,
        epoch=min(answer.epoch for answer in answers),
        explained=[told for batch in lists for told in batch.explained],
    )
