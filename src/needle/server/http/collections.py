"""Handlers of collections."""

from __future__ import annotations

import msgspec

from needle.base.dtypes import DType
from needle.base.errors import CollectionNotFound
from needle.base.model import CollectionSpec, metrics_of
from needle.base.text_checks import text_field
from needle.client.embedding import dimensions_of
from needle.client.naming import CollectionDescription
from needle.client.values import check_index
from needle.server.http import bodies, collection_bodies
from needle.server.http.call import Call


async def create_collection(call: Call) -> collection_bodies.Collection:
    body: collection_bodies.CreateCollection = call.body
    other = None if body.like is None else await _like(call, body.like)
    ttl = body.ttl if other is None or body.ttl is not None else other.ttl
    index = check_index(body.index) if other is None or body.index is not None else other.index
    usual = metrics_of(DType.FLOAT32)[0] if other is None else other.metric
    metric = body.metric or (metrics_of(DType.BIT)[0] if body.dtype is DType.BIT else usual)
    model = body.model if other is None or body.model is not None else other.model
    dtype = body.dtype or (DType.FLOAT32 if other is None else other.dtype)
    dimensions = body.dimensions or (dimensions_of(model or "") if other is None else other.dimensions)
    vectors = None if body.vectors is None else {name: one.spec() for name, one in body.vectors.items()}
    text = msgspec.structs.asdict(body.text) if isinstance(body.text, msgspec.Struct) else body.text
    await call.client.create_collection(
        body.name,
        dimensions=dimensions,
        metric=metric,
        index=index,
        ttl=ttl,
        model=model,
        text=text,
        dtype=dtype,
        vectors=vectors,
        sparse=body.sparse,
        like=body.like,
        if_absent=body.if_absent,
        timeout=body.timeout,
    )
    # What was asked for is what there is. To ask again might fail, and say that the collection was not made.
    return collection_bodies.Collection(
        name=body.name,
        dimensions=dimensions or 0,  # there are some, or it was refused
        metric=metric,
        index=index,
        ttl=ttl or None,
        model=model or None,
        text=(None if other is None else other.text) if text is None else text_field(text),
        dtype=dtype,
        vectors=vectors,
    )


async def _like(call: Call, name: str) -> CollectionSpec:
    """Of a name or an alias. Raises CollectionNotFound."""
    meant = (await call.client.aliases(timeout=call.body.timeout)).get(name, name)
    for spec in await call.client.collections(timeout=call.body.timeout):
        if spec.name == meant:
            return spec
    raise CollectionNotFound(f"there is no collection {name[:80]!r}", collection=name[:80])


async def list_collections(call: Call) -> collection_bodies.Collections:
    body: collection_bodies.ListCollections = call.body
    if body.sizes:
        described = await call.client.describe_collections(timeout=body.timeout)
        found = [_described(one) for one in described]
    else:
        found = [_collection(spec) for spec in await call.client.collections(timeout=body.timeout)]
    allowed = call.caller.collections
    return collection_bodies.Collections(collections=[one for one in found if allowed is None or one.name in allowed])


async def describe_collection(call: Call) -> collection_bodies.Collection:
    return _described(await call.client.describe_collection(call.collection, timeout=call.body.timeout))


def _described(found: CollectionDescription) -> collection_bodies.Collection:
    return collection_bodies.Collection(
        name=found.name,
        dimensions=found.dimensions,
        metric=found.metric,
        index=found.index,
        ttl=found.ttl,
        model=found.model,
        text=found.text,
        dtype=found.dtype,
        documents=found.shards,
        sizes=found.sizes,
        size=found.size,
        fields=found.fields,
        vectors=found.vectors,
        sparse=found.sparse,
    )


async def _spec(call: Call) -> CollectionSpec:
    found = await call.client.collections(timeout=call.body.timeout)
    spec = next((spec for spec in found if spec.name == call.collection), None)
    if spec is None:
        raise CollectionNotFound(f"there is no collection {call.collection[:80]!r}", collection=call.collection[:80])
    return spec


def _collection(spec: CollectionSpec) -> collection_bodies.Collection:
    return collection_bodies.Collection(
        name=spec.name,
        dimensions=spec.dimensions,
        metric=spec.metric,
        index=spec.index,
        ttl=spec.ttl or None,
        model=spec.model or None,
        text=spec.text,
        dtype=spec.dtype,
    )


async def alter_collection(call: Call) -> collection_bodies.Collection:
    body: collection_bodies.AlterCollection = call.body
    altered = (body.vectors or {}).items()
    vectors = {name: {"index": one.index, "ef_search": one.ef_search} for name, one in altered}
    await call.client.alter_collection(
        call.collection, ef_search=body.ef_search, ttl=body.ttl, index=body.index, vectors=vectors or None,
        timeout=body.timeout,
    )  # fmt: skip
    return _collection(await _spec(call))  # without counts: it is changed, also where a shard does not answer


async def create_field_index(call: Call) -> bodies.Written:
    field = call.path["field"]
    return bodies.Written.of(await call.client.create_field_index(call.collection, field, timeout=call.body.timeout))


async def drop_field_index(call: Call) -> bodies.Written:
    field = call.path["field"]
    return bodies.Written.of(await call.client.drop_field_index(call.collection, field, timeout=call.body.timeout))


async def drop_collection(call: Call) -> bodies.Written:
    return bodies.Written.of(await call.client.drop_collection(call.collection, timeout=call.body.timeout))
