"""Which routing keys a filter can match, by the metadata fields or the ids that a strategy routes by, and so which
shards. Pure.

Invariant: a document that the filter matches has one of the keys returned. This holds because a custom key is made of
the one scalar that a filter on its field finds (`routing.strategy`), and equality of scalars implies equality of
keys. A filter that does not pin every field of the shard key pins nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

from needle.base.filters.builder import Filter
from needle.base.filters.nodes import And, Compare, Node, named
from needle.base.instants import Instant
from needle.routing.strategy import ShardStrategy, field_key, routing_key
from needle.routing.topology import Ownership

COMBINATIONS_MAX = 64
_ASKS_IDS: Final = b'"$ids"'
FILTER_BYTES_MAX = 1 << 16
"""To read a longer one takes longer than to ask all shards, and this is done on an event loop."""


def pinned_keys(strategy: ShardStrategy, filter_json: bytes, shard_count: int = 1) -> list[bytes] | None:
    """The only routing keys that matching documents can have; None when the filter does not say. shard_count: of the
    map."""
    if not 0 < len(filter_json) <= FILTER_BYTES_MAX:
        return None
    if strategy.kind != "custom":
        return _of_ids(strategy, shard_count, filter_json)
    if not strategy.fields:
        return None
    values: dict[str, list[Any]] = {}
    _collect(Filter.from_json(filter_json).node, values)
    choices = [values.get(field) for field in strategy.fields]
    if any(choice is None for choice in choices):
        return None
    total = 1
    for choice in choices:
        total *= len(choice or [])
    if total > COMBINATIONS_MAX:
        return None
    keys = {field_key(combination) for combination in itertools.product(*(choice or [] for choice in choices))}
    return sorted(keys)


def _of_ids(strategy: ShardStrategy, shard_count: int, filter_json: bytes) -> list[bytes] | None:
    """The same, where ids decide."""
    if _ASKS_IDS not in filter_json:  # most filters do not, and need not be read
        return None
    ids = named(Filter.from_json(filter_json).node)
    if ids is None or len(ids) > COMBINATIONS_MAX:
        return None
    return sorted({routing_key(strategy, shard_count, id_) for id_ in ids})


def matching_shards(owned: Ownership, filter_json: bytes) -> Sequence[int]:
    """The shards that may have documents which match."""
    keys = pinned_keys(owned.map.strategy, filter_json, owned.map.shard_count)
    if keys is None:
        return owned.owners
    return sorted({owned.map.owner(key) for key in keys}) or owned.owners[:1]


def _collect(node: Node, values: dict[str, list[Any]]) -> None:
    """Equalities that must all hold. Of two on one field either would do: the shorter list is kept."""
    if isinstance(node, And):
        for child in node.children:
            _collect(child, values)
    elif isinstance(node, Compare) and node.op in ("$eq", "$in"):
        found = list(node.value) if node.op == "$in" else [node.value]
        if any(isinstance(value, Instant) for value in found):
            return  # equals strings without number, so it pins nothing
        if node.field not in values or len(found) < len(values[node.field]):
            values[node.field] = found
