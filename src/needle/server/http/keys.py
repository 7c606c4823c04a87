"""Handlers of API keys."""

from __future__ import annotations

import msgspec

from needle.base.access import Role
from needle.client.keys import ApiKey, NewApiKey
from needle.server.http.bodies import Body, Filter
from needle.server.http.call import Call


class CreateKey(Body, frozen=True, kw_only=True):
    """role: monitor, reader, writer or admin. collections: the only ones that the key may use; null for all. filter: of
    the only documents that it sees and writes; null for all. requests, documents, bytes: as for its limits."""

    name: str
    role: Role = Role.READER
    collections: list[str] | None = None
    filter: Filter = None
    requests: float = 0.0
    documents: float = 0.0
    bytes: float = 0.0


class LimitKey(Body, frozen=True, kw_only=True):
    """How much the key may ask of each node in a second; 0 for as much as the node can. documents: that are written or
    asked for. bytes: of requests and answers."""

    requests: float = 0.0
    documents: float = 0.0
    bytes: float = 0.0


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """All of them, by name."""

    keys: list[ApiKey]


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """unconfirmed: nodes that did not say that they have heard of it."""

    name: str
    unconfirmed: list[str]


async def create_key(call: Call) -> NewApiKey:
    body = call.body
    return await call.client.create_key(
        body.name, body.role, collections=body.collections, filter=body.filter, requests=body.requests,
        documents=body.documents, bytes=body.bytes, timeout=body.timeout,
    )  # fmt: skip


async def list_keys(call: Call) -> Keys:
    return Keys(keys=await call.client.keys(timeout=call.body.timeout))


async def limit_key(call: Call) -> Changed:
    name, body = call.path["key"], call.body
    unconfirmed = await call.client.limit_key(
        name, requests=body.requests, documents=body.documents, bytes=body.bytes, timeout=body.timeout
    )
    return Changed(name=name, unconfirmed=unconfirmed)


async def revoke_key(call: Call) -> Changed:
    name = call.path["key"]
    return Changed(name=name, unconfirmed=await call.client.revoke_key(name, timeout=call.body.timeout))
