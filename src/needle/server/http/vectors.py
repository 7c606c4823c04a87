"""Handlers of vectors: other ones for documents, and names that documents may have vectors of."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from needle.base.errors import invalid
from needle.client import values
from needle.server.http import bodies, collection_bodies
from needle.server.http.bodies import Body, ExpiresAt, Filter, Positive, Vectors, VectorType
from needle.server.http.call import Call, vectors_of


class UpdateVectors(Body, frozen=True, kw_only=True):
    """Other vectors for documents that are there; all else of them stays. name: of the named vector that these are,
    those without a name if it is left out. ids and vectors have one entry for each document, at most 1000; with
    `vectors: null` the named vector is taken from those that have it, which are counted. if_version, if_matches: as in
    PatchDocuments."""

    ids: Annotated[list[str], Meta(max_length=1000)]
    vectors: Vectors | None
    vector_type: VectorType = "float32"
    name: str | None = None
    expires_at: ExpiresAt = None
    if_version: Positive | None = None
    if_matches: Filter = None


async def update_vectors(call: Call) -> bodies.Written:
    body: UpdateVectors = call.body
    given, gone = body.vectors, body.vectors is None
    if gone and body.name is None:
        raise invalid("vectors", None, "vectors; only those of a name are taken away, and none is named")
    rows = None if given is None else await call.beside(lambda: vectors_of(given, len(body.ids), body.vector_type))
    matches = await call.beside(lambda: values.filter_bytes(body.if_matches, "if_matches"))
    names = values.different_ids(body.ids)
    if rows is not None and len(rows) != len(names):
        raise invalid("vectors", f"{len(rows)} rows", f"one row for each of the {len(names)} different ids")
    result = await call.router.update_vectors(
        values.check_name(call.collection),
        names,
        b"" if rows is None else rows.tobytes(),
        body.if_version,
        matches,
        body.timeout,
        values.expiry(body.expires_at),
        "" if body.name is None else values.check_name(body.name, "name"),
        gone,
    )
    return bodies.Written.of(result)


async def add_vector(call: Call) -> bodies.Written:
    body: collection_bodies.AddVector = call.body
    asked = collection_bodies.AskedVector(
        dimensions=body.dimensions, metric=body.metric, index=body.index, dtype=body.dtype
    )
    name, timeout = call.path["vector"], body.timeout
    added = await call.client.add_vector(call.collection, name, asked.spec(), if_absent=body.if_absent, timeout=timeout)
    return bodies.Written.of(added)


async def drop_vector(call: Call) -> bodies.Written:
    dropped = await call.client.drop_vector(call.collection, call.path["vector"], timeout=call.body.timeout)
    return bodies.Written.of(dropped)


async def add_sparse(call: Call) -> bodies.Written:
    return bodies.Written.of(
        await call.client.add_sparse(call.collection, call.path["name"], timeout=call.body.timeout)
    )


async def drop_sparse(call: Call) -> bodies.Written:
    name, timeout = call.path["name"], call.body.timeout
    return bodies.Written.of(await call.client.drop_sparse(call.collection, name, timeout=timeout))
