"""API keys that are bound to a filter: what a call becomes before anything is looked up or written for it. Pure.

Invariant: a call passes here whole, or is refused; one of a method that has no row in BY_METHOD is refused. Whoever
answers a bound call shows only documents that match its filter, and whoever executes a bound command judges by it what
is stored and what it writes (shard.apply.visible), in the log, so that every replica decides alike. It must not know
keys, nodes or shards: a node puts the filter of the key into each call that it is asked, and a router that works for a
key into each that it asks.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final

import msgspec

from needle.base.errors import Forbidden
from needle.protocol import calls, commands
from needle.protocol.change_calls import CHANGES
from needle.protocol.commands import Asked, Bound, Command, OfDocuments, OpenSession
from needle.protocol.node_calls import READ_SHARDS, SEARCH_SHARDS, ReadShardsCall, asked_of_each
from needle.protocol.peer_calls import SHARD_LEADER, TOPOLOGY, WHO

_KEY_BYTES: Final = 16
"""Of an Asked."""
Put = Callable[[Any, Bound], Any]


class DecodedWrite(calls.WriteCall, frozen=True, array_like=True):
    """A write whose command was decoded when its caller was judged, and is not again. decoded: what `command` holds, by
    whoever made the call: it is never read off the wire."""

    decoded: Command | None = None


def command_in(call: calls.WriteCall) -> Command:
    """The command of a write. Raises UnsupportedFormat."""
    found = call.decoded if isinstance(call, DecodedWrite) else None
    return commands.decode(call.command) if found is None else found


def _with_command(call: calls.WriteCall, command: Command, asked: Asked | None) -> DecodedWrite:
    return DecodedWrite(call.group, commands.encode(command), call.timeout, call.epoch, asked, command)


def _in_call(call: Any, bound: Bound) -> Any:
    return msgspec.structs.replace(call, bound=bound.filter)


def _in_request(call: Any, bound: Bound) -> Any:
    return msgspec.structs.replace(call, request=msgspec.structs.replace(call.request, bound=bound.filter))


def _in_each(call: ReadShardsCall, bound: Bound) -> Any:
    """Raises InvalidArgument."""
    method, asked = asked_of_each(call)
    return msgspec.structs.replace(call, **{method: BY_METHOD[method](asked, bound)})


def _in_command(call: Any, bound: Bound) -> Any:
    """Raises UnsupportedFormat."""
    command = bound_command(command_in(call), bound)
    asked = call.asked
    if asked is not None:  # whose key of a request it is cannot be the caller's to say
        own = blake2b(b"%d:%b" % (bound.owner, asked.key), digest_size=_KEY_BYTES).digest()
        asked = Asked(own, asked.request)
    return _with_command(call, command, asked)


def _as_it_is(call: Any, _: Bound) -> Any:
    """Tells nothing of documents."""
    return call


BY_METHOD: Final[dict[str, Put]] = {
    calls.SEARCH: _in_request,
    calls.SEARCH_MANY: _in_request,
    SEARCH_SHARDS: _in_request,
    READ_SHARDS: _in_each,
    calls.GET: _in_call,
    calls.COUNT: _in_call,
    calls.FACET: _in_call,
    calls.SCAN: _in_call,
    calls.COLLECTIONS: _in_call,
    CHANGES: _in_call,
    calls.WRITE: _in_command,
    calls.LEADER: _as_it_is,
    SHARD_LEADER: _as_it_is,
    TOPOLOGY: _as_it_is,
    WHO: _as_it_is,
}
"""What binds a call of each method."""


def bound_call(method: str, call: Any, bound: Bound) -> Any:
    """The call, so that it reaches documents within the bound only. What its sender had put there counts for nothing.
    Raises Forbidden; UnsupportedFormat for a command that cannot be read."""
    put = BY_METHOD.get(method)
    if put is None:
        raise Forbidden(f"{method} is about all documents, and this API key is for some only")
    return put(call, bound)


def bound_command(command: Command, bound: Bound) -> Command:
    """As `bound_call`."""
    if isinstance(command, OpenSession):
        return msgspec.structs.replace(command, owner=bound.owner)
    if not isinstance(command, OfDocuments):
        raise Forbidden(f"{type(command).__name__} is about all documents, and this API key is for some only")
    return msgspec.structs.replace(command, bound=bound)


def renamed(call: Any, collection: str) -> Any:
    """The call, about the collection of this name. Raises UnsupportedFormat for a command that cannot be read."""
    if isinstance(call, calls.WriteCall):
        command: Any = command_in(call)
        return _with_command(call, msgspec.structs.replace(command, collection=collection), call.asked)
    if isinstance(call, ReadShardsCall):
        method, asked = asked_of_each(call)
        return msgspec.structs.replace(call, **{method: renamed(asked, collection)})
    if (request := getattr(call, "request", None)) is not None:
        return msgspec.structs.replace(call, request=msgspec.structs.replace(request, collection=collection))
    return msgspec.structs.replace(call, collection=collection)
