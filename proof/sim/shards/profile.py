"""What a run of a sharded cluster is: drawn from the seed, before it begins. Pure."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from needle.routing.strategy import ShardStrategy
from proof.sim.machine import stream

HOME = "home"
"""The metadata field that decides in runs with custom routing. It follows from the id: an id is one document."""


def metadata_of(key: str) -> dict[str, Any]:
    """What the shard of a document with this id depends on under custom routing."""
    return {HOME: zlib.crc32(key.encode()) % 1000}


class ShardProfile(msgspec.Struct, frozen=True, kw_only=True):
    """rough_start: nodes die while the cluster is created. move_rows: documents that a move copies at a time."""

    shards: int
    replicas: int
    virtual_nodes: int
    strategy: ShardStrategy
    boundaries: tuple[str, ...]
    rough_start: bool
    move_rows: int


def shard_profile(seed: int) -> ShardProfile:
    """The profile of a seed."""
    rng = stream(seed, "shards")
    shards = rng.choice([2, 2, 3, 4])
    strategy = rng.choice(
        [ShardStrategy.CONSISTENT_HASH, ShardStrategy.CONSISTENT_HASH, ShardStrategy.HASH, ShardStrategy.RANGE]
    )
    if stream(seed, "field").random() < 0.2:
        strategy = ShardStrategy.custom(HOME)
    return ShardProfile(
        shards=shards,
        replicas=rng.choice([3, 3, 3, 3, 1]),
        virtual_nodes=rng.choice([1, 20]),
        strategy=strategy,
        boundaries=tuple(f"k{n}" for n in range(1, shards)) if strategy.kind == "range" else (),
        rough_start=rng.random() < 0.3,
        move_rows=rng.choice([1, 3, 256]),
    )
