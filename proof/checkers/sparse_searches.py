"""A search by a sparse vector against the logs of all its shards: the inner products of all documents that have one of
its indices, at the log index at which each shard was searched. Scores have to be equal to the last bit. And one by
sparse vectors that the catalog does not know any more has no answer at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from needle.routing.shard_map import ShardMap
from needle.routing.topology import Topology
from proof.checkers.replay import LogModel
from proof.checkers.scatter import Owned
from proof.checkers.sparse import ranked_sparse
from proof.checkers.violation import Violation
from proof.checkers.word_searches import Round, absent_shards

NAME, DROPPED = "searches by sparse vectors", "dropped sparse vectors are found by nobody"


class SparseSeen(msgspec.Struct, kw_only=True):
    """One answered search. field: of the documents; query: the sparse vector. The rest as in WordsSeen."""

    label: str
    field: str
    query: Any
    k: int
    keep: Callable[[Any], bool] | None
    found: Round
    hits: Sequence[tuple[str, int, float]]
    required: Mapping[int, int]
    partial: bool = False
    missing: Sequence[int] = ()


def check_sparse(models: Mapping[int, LogModel], maps: Mapping[int, ShardMap], owned: Owned, seen: SparseSeen) -> None:
    """Raises Violation when the answer is not that of the shards' logs. The rest as of check_words."""
    absent = sorted(absent_shards(maps, owned, seen.label, seen.required, "hits", seen.found))
    if absent != sorted(seen.missing) or (absent and not seen.partial):
        raise Violation("coverage", f"{seen.label} names the shards {list(seen.missing)} as missing; truly {absent}")
    documents = {
        name: document
        for shard, index in seen.found.applied.items()
        for name, document in models[shard].at(index).items()
    }

    def allowed(name: str) -> bool:
        return seen.keep is None or seen.keep(documents[name].metadata)

    values = {
        name: one.metadata.get(seen.field) if isinstance(one.metadata, dict) else None
        for name, one in documents.items()
    }
    found = ranked_sparse(values, seen.query, allowed)[: seen.k]
    true = [(name, documents[name].version, score) for name, score in found]
    if list(seen.hits) != true:
        at = dict(seen.found.applied)
        raise Violation(NAME, f"{seen.label} for {seen.query} at {at} found {list(seen.hits)}; the logs: {true}")


def check_dropped(since: Sequence[Topology], collection: str, seen: SparseSeen) -> None:
    """Raises Violation when shards answered a strong or leased search by sparse vectors that were dropped before it.
    since: the catalog when it was asked, and each that there was until it was answered: by one of these a declaration
    that came late may have brought them back."""
    found = [one.collection(collection) for one in since]
    if seen.found.applied and not any(one is not None and seen.field in one.sparse for one in found):
        shards = sorted(seen.found.applied)
        raise Violation(DROPPED, f"{seen.label} was answered by the shards {shards}, {len(seen.hits)} hits")
