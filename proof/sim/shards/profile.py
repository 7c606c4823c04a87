"""What a run of a sharded cluster is: drawn from the seed, before it begins. Pure."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from needle.routing.strategy import ShardStrategy
from proof.sim.machine import stream

DESCRIBED_SHARE = 0.7
"""Of the runs with a consistent hash: the only strategy that settings describe."""
LATE_SHARE = 0.4
ONE_SHARD_SHARE = 0.5
VIRTUAL_NODES = 100
"""Of a cluster that settings describe."""
HOME = "home"
"""The metadata field that decides in runs with custom routing. It follows from the id: an id is one document."""


def metadata_of(key: str) -> dict[str, Any]:
    """What the shard of a document with this id depends on under custom routing."""
    return {HOME: zlib.crc32(key.encode()) % 1000}


class ShardProfile(msgspec.Struct, frozen=True, kw_only=True):
    """rough_start: nodes die while the cluster is created. move_rows: documents that a move copies at a time.
    described: the nodes' settings describe the cluster, and it founds itself. late: then one node comes when the others
    have founded it without having heard of it."""

    shards: int
    replicas: int
    virtual_nodes: int
    strategy: ShardStrategy
    boundaries: tuple[str, ...]
    rough_start: bool
    move_rows: int
    described: bool
    late: bool


def shard_profile(seed: int) -> ShardProfile:
    """The profile of a seed."""
    rng = stream(seed, "shards")
    shards = rng.choice([2, 2, 3, 4])
    strategy = rng.choice(
        [ShardStrategy.CONSISTENT_HASH, ShardStrategy.CONSISTENT_HASH, ShardStrategy.HASH, ShardStrategy.RANGE]
    )
    if stream(seed, "field").random() < 0.2:
        strategy = ShardStrategy.custom(HOME)
    replicas, virtual_nodes = rng.choice([3, 3, 3, 3, 1]), rng.choice([1, 20])
    founding = stream(seed, "founding")
    described = founding.random() < DESCRIBED_SHARE and strategy == ShardStrategy.CONSISTENT_HASH
    if described and founding.random() < ONE_SHARD_SHARE:
        shards = 1
    return ShardProfile(
        shards=shards,
        replicas=replicas,
        virtual_nodes=VIRTUAL_NODES if described else virtual_nodes,
        strategy=strategy,
        boundaries=tuple(f"k{n}" for n in range(1, shards)) if strategy.kind == "range" else (),
        rough_start=rng.random() < 0.3,
        move_rows=rng.choice([1, 3, 256]),
        described=described,
        late=described and founding.random() < LATE_SHARE,
    )
