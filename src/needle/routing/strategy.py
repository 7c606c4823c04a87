"""From a document to its routing key: the bytes that decide which shard owns it.

Byte for byte, stable across releases and platforms (test vectors in tests/routing/routing_vectors.json):

- consistent hash: XXH3-64 (seed 0) of the id's UTF-8 bytes, as 8 big-endian bytes.
- hash: 2 big-endian bytes of (that hash modulo the number of shards), then the 8 bytes of the hash.
- range: the id's UTF-8 bytes themselves, so that a range of ids is a range of keys.
- custom: XXH3-64 of the JSON (no spaces) of the list of the fields' values, as 8 big-endian bytes; a field stands for
  the one scalar that a filter on it would find, and a whole number is written without a fraction, so that documents
  which a filter calls equal have equal keys. A registered callable returns the text to hash instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec
import xxhash

from needle.base.errors import InvalidArgument, invalid
from needle.base.filters.nodes import lookup
from needle.base.plain import INT_MAX, INT_MIN
from needle.base.schema import refuse

Router = Callable[[str, Any], str]
"""A registered custom strategy: (id, metadata) -> the text whose hash decides."""


class ShardStrategy(msgspec.Struct, frozen=True, array_like=True):
    """How documents are spread. Use the class attributes CONSISTENT_HASH, HASH, RANGE, or `custom(...)`."""

    CONSISTENT_HASH: ClassVar[ShardStrategy]
    HASH: ClassVar[ShardStrategy]
    RANGE: ClassVar[ShardStrategy]

    kind: str
    fields: tuple[str, ...] = ()
    router: str = ""

    @staticmethod
    def custom(*fields: str | Router) -> ShardStrategy:
        """Route by one metadata field, by several (a composite key), or by one callable made known with `register`."""
        if len(fields) == 1 and callable(fields[0]):
            names = [name for name, router in _routers.items() if router is fields[0]]
            if not names:
                raise invalid("strategy", fields[0], "a callable registered with needle.routing.strategy.register")
            return ShardStrategy("custom", (), names[0])
        named = tuple(field for field in fields if isinstance(field, str) and field)
        if not fields or len(named) != len(fields):
            raise invalid("strategy", fields, "one or more metadata field names, or one registered callable")
        return ShardStrategy("custom", named)

    def text(self) -> str:
        """As `needle cluster create --strategy` takes it."""
        if self.router:
            return f"router:{self.router}"
        return f"{self.kind}:{','.join(self.fields)}" if self.fields else self.kind


CONSISTENT_HASH = ShardStrategy.CONSISTENT_HASH = ShardStrategy("consistent_hash")
HASH = ShardStrategy.HASH = ShardStrategy("hash")
RANGE = ShardStrategy.RANGE = ShardStrategy("range")

_PLAIN = {strategy.kind: strategy for strategy in (CONSISTENT_HASH, HASH, RANGE)}


def parse_strategy(field: str, text: str) -> ShardStrategy:
    """Of a text as `ShardStrategy.text()` gives it; field: where it was written. Raises ConfigError."""
    if text in _PLAIN:
        return _PLAIN[text]
    kind, _, names = text.partition(":")
    if kind == "router" and names:
        return ShardStrategy("custom", (), names)
    if kind != "custom" or not all(names.split(",")):
        raise refuse(field, text, f"one of {', '.join(_PLAIN)}, custom:FIELD, custom:FIELD,FIELD or router:NAME")
    return ShardStrategy.custom(*names.split(","))


_routers: dict[str, Router] = {}


def register(name: str, router: Router) -> Router:
    """Make a custom routing callable known by `name`; every process of the cluster must register the same one.

    The name is what the catalog stores. Registering another callable under a used name is refused.
    """
    if _routers.setdefault(name, router) is not router:
        raise invalid("name", name, "a name that no other router has")
    return router


def router_names() -> list[str]:
    """The custom routing callables known in this process."""
    return sorted(_routers)


def key_hash(text: str) -> int:
    """XXH3-64 with seed 0 of the UTF-8 bytes of `text`."""
    return xxhash.xxh3_64_intdigest(text.encode())


def routing_key(strategy: ShardStrategy, shard_count: int, document_id: str, metadata: Any = None) -> bytes:
    """The key of a document under `strategy`; metadata (decoded JSON) counts for custom strategies only.

    Raises InvalidArgument when a custom strategy's field is missing: a document without its shard key has no home.
    """
    if strategy.kind == "range":
        return document_id.encode()
    if strategy.kind == "custom":
        return _custom_hash(strategy, document_id, metadata).to_bytes(8, "big")
    value = key_hash(document_id)
    if strategy.kind == "hash":
        return (value % shard_count).to_bytes(2, "big") + value.to_bytes(8, "big")
    return value.to_bytes(8, "big")


def routing_keys(strategy: ShardStrategy, shard_count: int, ids: Sequence[str]) -> list[bytes]:
    """`routing_key` of each of many documents, as far as its id tells it."""
    if strategy.kind == "consistent_hash":
        # Of 10,000 this takes a third of the time, for which an event loop is held.
        return [*map(xxhash.xxh3_64_digest, map(str.encode, ids))]
    return [routing_key(strategy, shard_count, one) for one in ids]


def field_key(values: Sequence[Any]) -> bytes:
    """The routing key of a custom strategy for these scalars of its fields, in the strategy's order."""
    whole = [
        int(value) if isinstance(value, float) and value.is_integer() and INT_MIN <= value <= INT_MAX else value
        for value in values
    ]
    return key_hash(msgspec.json.encode(whole).decode()).to_bytes(8, "big")


def _routed(name: str, router: Router, document_id: str, metadata: Any) -> str:
    """What a registered callable says; documents it does not fit have no home."""
    try:
        text = router(document_id, metadata)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InvalidArgument(
            f"router {name!r} fails on document {document_id!r}: {error!r}", field="metadata"
        ) from error
    if not isinstance(text, str):
        raise InvalidArgument(
            f"router {name!r} gives {text!r} for document {document_id!r}: it must give a string", field="metadata"
        )
    return text


def _custom_hash(strategy: ShardStrategy, document_id: str, metadata: Any) -> int:
    if strategy.router:
        router = _routers.get(strategy.router)
        if router is None:
            known = ", ".join(router_names()) or "there is none"
            how = "needle.distributed.register_router does it, for commands NEEDLE_ROUTERS"
            raise invalid("strategy", strategy.router, f"a router registered in this process ({known}): {how}")
        return key_hash(_routed(strategy.router, router, document_id, metadata))
    values = []
    for field in strategy.fields:
        found = lookup(metadata, field.split("."))[1]
        if len(found) != 1:
            raise InvalidArgument(
                f"document {document_id!r} has {len(found) or 'no'} values in metadata field {field!r}, which is its "
                f"shard key: it must have one string, number, boolean or null there",
                field=field,
            )
        values.append(found[0])
    return int.from_bytes(field_key(values), "big")
