"""A search by words against the logs of all its shards: BM25 with the statistics of all documents at the indexes at
which the shards told theirs, of the documents at the indexes at which they were searched.

Both rounds are about the whole key space, each by one map, and each as of indexes that the search has to see. A hybrid
search is the fusion of two such lists. Scores have to be equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from needle.base.text import TextField
from needle.routing.shard_map import ShardMap
from proof.checkers.replay import LogModel
from proof.checkers.scatter import Owned
from proof.checkers.violation import Violation
from proof.checkers.words import Ranks, all_fused, ranked_by, weighed

NAME = "searches by words"


class Round(msgspec.Struct, frozen=True):
    """What shards were asked at once. applied: by shard, the index that it answered from. epoch: of the map."""

    applied: Mapping[int, int]
    epoch: int


class WordsSeen(msgspec.Struct, kw_only=True):
    """One answered search by words. counted, found: the round of statistics, and that of hits. hits: (id, version,
    score). required: by shard, the index that a strong read has to see. partial, missing: as in ScatterSeen."""

    label: str
    text: TextField
    keywords: str
    k: int
    keep: Callable[[Any], bool] | None
    counted: Round
    found: Round
    hits: Sequence[tuple[str, int, float]]
    required: Mapping[int, int]
    partial: bool = False
    missing: Sequence[int] = ()


def check_words(models: Mapping[int, LogModel], maps: Mapping[int, ShardMap], owned: Owned, seen: WordsSeen) -> None:
    """Raises Violation when the answer is not that of the shards' logs. models: by shard, of the collection. maps: by
    epoch. owned: what a shard owns after an index of its log."""
    absent = [
        shard
        for what, one in (("statistics", seen.counted), ("hits", seen.found))
        for shard in absent_shards(maps, owned, seen.label, seen.required, what, one)
    ]
    if sorted({*absent}) != sorted(seen.missing) or (absent and not seen.partial):
        raise Violation("coverage", f"{seen.label} names the shards {list(seen.missing)} as missing; truly {absent}")
    documents = {
        name: document
        for shard, index in seen.found.applied.items()
        for name, document in models[shard].at(index).items()
    }

    def allowed(name: str) -> bool:
        return seen.keep is None or seen.keep(documents[name].metadata)

    weights = weighed(_texts(models, seen.counted, seen.text), seen.keywords, seen.text)
    found = ranked_by(weights, _texts(models, seen.found, seen.text), seen.text, allowed)[: seen.k]
    true = [(name, documents[name].version, score) for name, score in found]
    if list(seen.hits) != true:
        raise Violation(
            NAME,
            f"{seen.label} for {seen.keywords!r}, counted at {dict(seen.counted.applied)} and searched at "
            f"{dict(seen.found.applied)}, found {list(seen.hits)}; the logs: {true}",
        )


def check_fused(
    label: str,
    lists: Sequence[Sequence[str]],
    k: float,
    weights: Sequence[float],
    hits: Sequence[tuple[str, float, Ranks | None]],
    count: int,
) -> None:
    """Raises Violation when hits are not the fusion of the lists of ids, of which each is by something else."""
    true = all_fused(lists, k, weights)[:count]
    if list(hits) != true:
        raise Violation(NAME, f"{label} fused {lists} to {list(hits)}; truly {true}")


def absent_shards(
    maps: Mapping[int, ShardMap], owned: Owned, label: str, required: Mapping[int, int], what: str, one: Round
) -> set[int]:
    """The shards that own keys and did not answer. Raises Violation if one that did had not what it has to have."""
    if one.epoch not in maps:
        raise Violation("coverage", f"{label}: {what} are of a map of epoch {one.epoch}, which never was")
    shard_map = maps[one.epoch]
    if stray := one.applied.keys() - {*shard_map.owners}:
        raise Violation("coverage", f"{label}: {what} of shards {sorted(stray)}, which own nothing")
    for shard, index in one.applied.items():
        if index < (least := required.get(shard, 0)):
            text = f"{label}: the {what} of shard {shard} are of {index}, before {least} which it had to see"
            raise Violation("read freshness", text)
        if list(owned(shard, index)) != list(shard_map.ranges(shard)):
            text = f"{label}: the {what} of shard {shard} are of {index}, where it does not own what the map says"
            raise Violation("coverage", text)
    return {*shard_map.owners} - one.applied.keys()


def _texts(models: Mapping[int, LogModel], one: Round, text: TextField) -> dict[str, Any]:
    """Of the documents that shards had at these indexes, by id."""
    return {
        name: document.metadata.get(text.field) if isinstance(document.metadata, dict) else None
        for shard, index in one.applied.items()
        for name, document in models[shard].at(index).items()
    }
