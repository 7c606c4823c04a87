"""Who owns which routing keys, at an epoch. Pure and immutable: a change makes a new map of the next epoch.

Invariant: the ranges cover the whole key space, in order, without gap or overlap (`check_invariants`). A range is
[start, next start); the first starts at b"", the last has no end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import msgspec

from needle.base.errors import invalid
from needle.base.sharding_config import SHARDS_MAX as SHARDS_MAX
from needle.base.sharding_config import VIRTUAL_NODES
from needle.routing.ring import Ring
from needle.routing.strategy import ShardStrategy, routing_keys

KeyRange = tuple[bytes, bytes | None]
"""[start, end); end None: to the end of the key space."""


class ShardMap(msgspec.Struct, frozen=True, array_like=True):
    """starts[i] begins the range that owners[i] serves."""

    epoch: int
    strategy: ShardStrategy
    shard_count: int
    starts: tuple[bytes, ...]
    owners: tuple[int, ...]

    def owner(self, key: bytes) -> int:
        """The shard that owns a routing key."""
        return self.owners[bisect_right(self.starts, key) - 1]

    def owners_of(self, ids: Sequence[str]) -> list[int]:
        """The shards that own documents with these ids. Not for a custom strategy, where an id does not tell."""
        starts, owners = self.starts, self.owners
        return [owners[bisect_right(starts, key) - 1] for key in routing_keys(self.strategy, self.shard_count, ids)]

    def ranges(self, shard: int) -> list[KeyRange]:
        """What `shard` owns, in order."""
        ends: list[bytes | None] = [*self.starts[1:], None]
        return [(s, e) for s, e, owner in zip(self.starts, ends, self.owners, strict=True) if owner == shard]

    def by_owner(self) -> dict[int, list[KeyRange]]:
        """What each shard owns, in order; shards that own nothing are left out."""
        owned: dict[int, list[KeyRange]] = {}
        for start, end, owner in zip(self.starts, [*self.starts[1:], None], self.owners, strict=True):
            owned.setdefault(owner, []).append((start, end))
        return owned

    def with_owner(self, moved: KeyRange, shard: int) -> ShardMap:
        """The next epoch, in which `shard` owns the range `moved`."""
        start, end = moved
        if end is not None and start >= end:
            raise invalid("range", moved, "a start below the end")
        return self.moved([moved], shard)

    def moved(self, ranges: Sequence[KeyRange], shard: int) -> ShardMap:
        """The next epoch, in which `shard` owns all of `ranges`: ascending, they do not overlap."""
        edges = {edge for span in ranges for edge in span if edge is not None}
        starts: list[bytes] = []
        owners: list[int] = []
        at = 0
        for cut in sorted({*self.starts, *edges}):
            while at < len(ranges) and (end := ranges[at][1]) is not None and end <= cut:
                at += 1
            owner = shard if at < len(ranges) and ranges[at][0] <= cut else self.owner(cut)
            if not owners or owner != owners[-1]:
                starts.append(cut)
                owners.append(owner)
        return msgspec.structs.replace(self, epoch=self.epoch + 1, starts=tuple(starts), owners=tuple(owners))

    def check_invariants(self) -> None:
        """Raises InvalidArgument if the ranges are not one whole cover of the key space."""
        ordered = all(a < b for a, b in zip(self.starts, self.starts[1:], strict=False))
        if not self.starts or self.starts[0] != b"" or not ordered or len(self.starts) != len(self.owners):
            raise invalid("shard_map", self.starts, "ranges that cover the key space once, in order")


def initial_map(
    strategy: ShardStrategy, shard_count: int, virtual_nodes: int = VIRTUAL_NODES, boundaries: Sequence[str] = ()
) -> ShardMap:
    """The map a cluster starts with. boundaries: for RANGE, the first id of every shard but the first
    (shard_count - 1 of them); without them the ids' first byte is divided evenly."""
    if not 1 <= shard_count <= SHARDS_MAX:
        raise invalid("shard_count", shard_count, f"a number from 1 to {SHARDS_MAX}")
    if strategy.kind == "hash":
        starts = [b"", *(n.to_bytes(2, "big") for n in range(1, shard_count))]
        owners = list(range(shard_count))
    elif strategy.kind == "range":
        starts = [b"", *_range_starts(shard_count, boundaries)]
        owners = list(range(shard_count))
    else:
        arcs = Ring(range(shard_count), virtual_nodes).arcs()
        starts = [b"", *(low.to_bytes(8, "big") for low, _, _ in arcs[1:])]
        owners = [shard for _, _, shard in arcs]
    built = ShardMap(1, strategy, shard_count, tuple(starts), tuple(owners))
    built.check_invariants()
    return built


def _range_starts(shard_count: int, boundaries: Sequence[str]) -> list[bytes]:
    if boundaries and len(boundaries) != shard_count - 1:
        raise invalid("boundaries", list(boundaries), f"{shard_count - 1} ids, the first of every shard but the first")
    if boundaries:
        starts = [text.encode() for text in boundaries]
        if any(a >= b for a, b in zip([b"", *starts], starts, strict=False)):
            raise invalid("boundaries", list(boundaries), "ids that ascend, byte by byte")
        return starts
    return [(n * 65536 // shard_count).to_bytes(2, "big") for n in range(1, shard_count)]


def uncovered(answered: Iterable[KeyRange]) -> list[KeyRange]:
    """The parts of the key space that no answered range covers: the router's proof is that this is empty."""
    gaps: list[KeyRange] = []
    reached: bytes | None = b""
    for start, end in sorted(answered, key=lambda r: r[0]):
        if reached is None:
            break
        if start > reached:
            gaps.append((reached, start))
        reached = None if end is None else max(reached, end)
    if reached is not None:
        gaps.append((reached, None))
    return gaps
