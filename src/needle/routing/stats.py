"""What was measured of a cluster's shards and nodes, and what follows from it: sizes, shares, imbalance, load. Pure.

`imbalance_ratio` is the largest shard over the mean, minus 1: 0.20 says that the largest is 20 % larger than a fair
share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from needle.base.ids import NodeId
from needle.routing.key_space import KeySpace
from needle.routing.shard_map import KeyRange
from needle.routing.topology import Topology

HOT_MAX = 10
"""Hot ranges that are told of."""


class RangeStats(msgspec.Struct, frozen=True, kw_only=True):
    """Part of what a shard owns. bytes: that a replica stores for it. writes, searches: a second. whole: that it must
    not be cut, because nearly all of it is one key."""

    span: KeyRange
    documents: int
    bytes: int
    writes: float = 0.0
    searches: float = 0.0
    whole: bool = False

    @property
    def heat(self) -> float:
        """Calls a second."""
        return self.writes + self.searches


class ShardStats(msgspec.Struct, frozen=True, kw_only=True):
    """A shard as its leader sees it. bytes: that one replica takes on its disk. ranges: parts of what it owns, where
    more is known about them; ascending, they do not overlap. writes, searches: a second."""

    shard: int
    documents: int = 0
    bytes: int = 0
    writes: float = 0.0
    searches: float = 0.0
    ranges: tuple[RangeStats, ...] = ()


class NodeStats(msgspec.Struct, frozen=True, kw_only=True):
    """alive: whether it answers. free: bytes that its disk still takes, without those that it keeps in reserve; None:
    not known, so it is taken for enough. total, used: bytes of its disk, and that its files take; None: not known.
    tight: it is short of memory, so it takes no new replica."""

    node: NodeId
    alive: bool = True
    free: int | None = None
    total: int | None = None
    used: int | None = None
    tight: bool = False


class ClusterStats(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured. A shard that is missing counts as empty, a node that is missing as one that does not answer.
    unknown: shards without a leader that answers: how much they hold nobody says. calls: by ranges of keys, whoever
    owns them, where plans are to go by calls (planning/heat.py); instead of those that shards and their ranges have."""

    shards: tuple[ShardStats, ...] = ()
    nodes: tuple[NodeStats, ...] = ()
    unknown: tuple[int, ...] = ()
    calls: tuple[RangeStats, ...] = ()

    def by_shard(self) -> dict[int, ShardStats]:
        """Those that were measured."""
        return {one.shard: one for one in self.shards}

    def by_node(self) -> dict[NodeId, NodeStats]:
        """Those that were asked."""
        return {one.node: one for one in self.nodes}

    @property
    def alive(self) -> frozenset[NodeId]:
        """The nodes that answer."""
        return frozenset(one.node for one in self.nodes if one.alive)


class ShardSize(msgspec.Struct, frozen=True, kw_only=True):
    """share: of the key space. writes, searches: calls a second, lately."""

    documents: int
    bytes: int
    share: float
    writes: float = 0.0
    searches: float = 0.0


class NodeLoad(msgspec.Struct, frozen=True, kw_only=True):
    """bytes, documents: of its replicas. leads: shards that it is to lead. writes: a second, of its replicas;
    searches: of the shards that it is to lead, for strong reads go there. filled: its bytes for each unit of its
    weight, over the mean of the nodes that take replicas; 1 is a fair share. free, total, used: as in NodeStats."""

    replicas: int
    leads: int
    documents: int
    bytes: int
    writes: float
    searches: float
    filled: float
    alive: bool
    free: int | None
    total: int | None = None
    used: int | None = None


class HotRange(msgspec.Struct, frozen=True, kw_only=True):
    """writes, searches: a second. share: of all calls that were counted by range."""

    shard: int
    span: KeyRange
    writes: float
    searches: float
    share: float


class RebalanceStats(msgspec.Struct, frozen=True, kw_only=True):
    """shard_sizes: by shard, retired and unknown ones left out. imbalance_ratio: by bytes; documents_imbalance: by
    documents. hot_ranges: those with the most calls a second, first. unknown: shards of which no leader answers: nodes
    have them among their replicas, and not in their documents and bytes."""

    shard_sizes: Mapping[int, ShardSize]
    imbalance_ratio: float
    documents_imbalance: float
    nodes: Mapping[NodeId, NodeLoad]
    hot_ranges: Sequence[HotRange]
    unknown: Sequence[int] = ()


def imbalance(sizes: Iterable[float]) -> float:
    """The largest over the mean, minus 1; 0 if all are 0."""
    known = list(sizes)
    total = sum(known)
    return max(known) * len(known) / total - 1 if total else 0.0


def key_shares(topology: Topology) -> dict[int, float]:
    """The fraction of the key space that each shard owns; those that own nothing are left out. Under `range`, where
    keys say nothing of how many documents there are, owners count as equal. Without a map one owns everything."""
    if topology.map is None:
        return {info.shard: 1.0 for info in topology.shards[:1]}
    space, owned = KeySpace(topology.map), topology.map.by_owner()
    return {shard: space.share(spans) if space.even else 1 / len(owned) for shard, spans in sorted(owned.items())}


def summarize(topology: Topology, stats: ClusterStats) -> RebalanceStats:
    """What `get_stats()` answers."""
    known, shares, sizes = stats.by_shard(), key_shares(topology), {}
    for info in topology.serving:
        if info.shard in stats.unknown:
            continue
        one = known.get(info.shard, ShardStats(shard=info.shard))
        share = shares.get(info.shard, 0.0)
        sizes[info.shard] = ShardSize(
            documents=one.documents, bytes=one.bytes, share=share, writes=one.writes, searches=one.searches
        )
    return RebalanceStats(
        shard_sizes=sizes,
        imbalance_ratio=imbalance(size.bytes for size in sizes.values()),
        documents_imbalance=imbalance(size.documents for size in sizes.values()),
        nodes=_loads(topology, stats),
        hot_ranges=_hot(stats),
        unknown=stats.unknown,
    )


def _loads(topology: Topology, stats: ClusterStats) -> dict[NodeId, NodeLoad]:
    measured, asked = stats.by_shard(), stats.by_node()
    held: dict[NodeId, list[ShardStats]] = {node: [] for node in topology.addresses()}
    leading: dict[NodeId, list[ShardStats]] = {node: [] for node in held}
    for info in topology.serving:
        one = measured.get(info.shard, ShardStats(shard=info.shard))
        leading[info.replicas[0]].append(one)
        for node in info.replicas:
            held[node].append(one)
    weight = {info.id: info.weight for info in topology.nodes if info.id in held}
    total = sum(one.bytes for ones in held.values() for one in ones)
    fair = total / sum(weight.values()) if sum(weight.values()) else 0.0
    loads = {}
    for node, ones in held.items():
        led, taken = leading[node], sum(one.bytes for one in ones)
        known = asked.get(node, NodeStats(node=node, alive=False))
        loads[node] = NodeLoad(
            replicas=len(ones),
            leads=len(led),
            documents=sum(one.documents for one in ones),
            bytes=taken,
            writes=sum(one.writes for one in ones),
            searches=sum(one.searches for one in led),
            filled=taken / weight[node] / fair if weight[node] and fair else 0.0,
            alive=known.alive,
            free=known.free,
            total=known.total,
            used=known.used,
        )
    return loads


def _hot(stats: ClusterStats) -> list[HotRange]:
    found = [(one, part) for one in stats.shards for part in one.ranges if part.heat > 0]
    total = sum(part.heat for _, part in found)
    found.sort(key=lambda pair: (-pair[1].heat, pair[1].span[0]))
    return [
        HotRange(
            shard=one.shard,
            span=part.span,
            writes=part.writes,
            searches=part.searches,
            share=part.heat / total,
        )
        for one, part in found[:HOT_MAX]
    ]
