"""What cluster a run has: the plain profile's one shard, or several that are drawn from the seed. Pure."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from needle.routing.strategy import ShardStrategy
from proof.sim.machine import stream
from proof.sim.spec import Spec

DESCRIBED_SHARE = 0.7
"""Of the runs with a consistent hash: the only strategy of which the nodes' settings found the cluster here."""
LATE_SHARE = 0.4
ONE_SHARD_SHARE = 0.5
LASTING_SHARE = 0.6
PINNED_SHARE = 0.5
FEEDS_SHARE = 0.5
VIRTUAL_NODES = 100
"""Of a cluster that settings describe."""
MOVE_ROWS = 256
CATCHING_UP_SHARE = 0.5
ALTERING_SHARE = 0.4
WORDS_SHARE = 0.5
SEVERAL_SHARE = 0.3
LOADING_SHARE = 0.3
SPARSE_SHARE = 0.35
BACKING_SHARE, CAREFUL_SHARE, LOSING_SHARE = 0.12, 0.25, 0.25
UNAWARE = ("c2", "c3")
HOME = "home"
"""The metadata field that decides in runs with custom routing. It follows from the id: an id is one document."""


def metadata_of(key: str) -> dict[str, Any]:
    """What the shard of a document with this id depends on under custom routing."""
    return {HOME: zlib.crc32(key.encode()) % 1000}


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What cluster there is, and what is done to it. rough_start: nodes die while the cluster is created. move_rows:
    documents that a move copies at a time. described: the nodes' settings describe the cluster, and it founds itself.
    late: then one node comes when the others have founded it without having heard of it.

    one_group: the faults of leaders and the operator are about the one shard for the most part. tight: the profile's
    limits of messages and commits hold, too. bursts: its clients that write together are there. catching_up: share of
    the runs that end with a member that has to catch up while writes go on. unaware: clients that know nothing of
    shards; churn: whether somebody makes and drops collections all the time; lasting: whether
    somebody counts, scans and changes documents that stay (lasting.py); pinned: whether somebody reads the workload's
    documents by consistent scans (pinned.py); feeds: whether somebody mirrors them by a change feed
    (feeds.py); altering: whether somebody changes the index of their collection
    (altering.py); words: whether somebody searches by words (wording.py); several: whether somebody writes
    documents with two vectors (several.py); loading: whether somebody loads collections in bulk (loading.py);
    sparse: whether somebody searches by sparse vectors (sparse.py); backing: whether somebody makes backups and
    archives the logs (backing.py); careful: whether somebody puts nodes into maintenance without force (careful.py);
    losing: whether directories are copied and made clusters of their own (losing.py)."""

    shards: int
    replicas: int
    virtual_nodes: int
    strategy: ShardStrategy
    boundaries: tuple[str, ...]
    rough_start: bool
    move_rows: int
    described: bool
    late: bool
    one_group: bool = False
    tight: bool = False
    bursts: bool = False
    catching_up: float = 0.0
    unaware: tuple[str, ...] = ()
    churn: bool = False
    lasting: bool = False
    pinned: bool = False
    feeds: bool = False
    altering: bool = False
    words: bool = False
    several: bool = False
    loading: bool = False
    sparse: bool = False
    backing: bool = False
    careful: bool = False
    losing: bool = False


def shape_of(spec: Spec) -> Shape:
    """The shape of a run."""
    shape = sharded_shape(spec.seed) if spec.sharded else plain_shape(spec)
    pinned = not spec.plain and stream(spec.seed, "who reads consistently").random() < PINNED_SHARE
    feeds = not spec.plain and stream(spec.seed, "who reads a feed").random() < FEEDS_SHARE
    altering = not spec.plain and stream(spec.seed, "who alters").random() < ALTERING_SHARE
    words = not spec.plain and stream(spec.seed, "who searches by words").random() < WORDS_SHARE
    several = not spec.plain and stream(spec.seed, "who writes several vectors").random() < SEVERAL_SHARE
    loading = not spec.plain and stream(spec.seed, "who loads in bulk").random() < LOADING_SHARE
    sparse = not spec.plain and stream(spec.seed, "who searches by sparse vectors").random() < SPARSE_SHARE
    backing = spec.sharded and not spec.plain and stream(spec.seed, "who makes backups").random() < BACKING_SHARE
    return msgspec.structs.replace(
        shape,
        backing=spec.backups or backing,
        losing=spec.sharded and not spec.plain and stream(spec.seed, "who is left").random() < LOSING_SHARE,
        careful=spec.sharded and not spec.plain and stream(spec.seed, "who is careful").random() < CAREFUL_SHARE,
        pinned=pinned,
        altering=altering,
        feeds=feeds,
        words=words,
        several=several,
        loading=loading,
        sparse=sparse,
    )


def plain_shape(spec: Spec) -> Shape:
    """One shard on all nodes, which their settings found: all load and all faults meet in one group."""
    return Shape(
        shards=1,
        replicas=spec.nodes,
        virtual_nodes=VIRTUAL_NODES,
        strategy=ShardStrategy.CONSISTENT_HASH,
        boundaries=(),
        rough_start=False,
        move_rows=MOVE_ROWS,
        described=True,
        late=False,
        one_group=True,
        tight=True,
        bursts=True,
        catching_up=0.0 if spec.calm else CATCHING_UP_SHARE,
    )


def sharded_shape(seed: int) -> Shape:
    """What a seed draws: several shards by any strategy, sometimes one."""
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
    return Shape(
        shards=shards,
        replicas=replicas,
        virtual_nodes=VIRTUAL_NODES if described else virtual_nodes,
        strategy=strategy,
        boundaries=tuple(f"k{n}" for n in range(1, shards)) if strategy.kind == "range" else (),
        rough_start=rng.random() < 0.3,
        move_rows=rng.choice([1, 3, 256]),
        described=described,
        late=described and founding.random() < LATE_SHARE,
        unaware=UNAWARE,
        churn=True,
        lasting=stream(seed, "documents that stay").random() < LASTING_SHARE,
    )
