"""Handlers of aliases: other names of collections."""

from __future__ import annotations

import msgspec

from needle.server.http.bodies import Body
from needle.server.http.call import Call


class SetAlias(Body, frozen=True, kw_only=True):
    """collection: what the alias is another name of from now on."""

    collection: str


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    """Another name of a collection."""

    alias: str
    collection: str


class Aliases(msgspec.Struct, frozen=True, kw_only=True):
    """All of them, by name."""

    aliases: list[Alias]


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """The alias that there is no more."""

    alias: str


async def list_aliases(call: Call) -> Aliases:
    found, allowed = await call.client.aliases(timeout=call.body.timeout), call.caller.collections
    return Aliases(
        aliases=[
            Alias(alias=alias, collection=collection)
            for alias, collection in sorted(found.items())
            if allowed is None or collection in allowed
        ]
    )


async def set_alias(call: Call) -> Alias:
    alias = call.path["alias"]
    await call.client.set_alias(alias, call.body.collection, timeout=call.body.timeout)
    return Alias(alias=alias, collection=call.body.collection)


async def remove_alias(call: Call) -> Removed:
    alias = call.path["alias"]
    await call.client.remove_alias(alias, timeout=call.body.timeout)
    return Removed(alias=alias)
