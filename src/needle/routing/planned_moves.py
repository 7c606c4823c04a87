"""What a plan is made of: moves, each one decision of the catalog and what follows from it, in an order that is safe.
Pure."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from needle.base.ids import GroupId, NodeId, group_name, shard_group, shard_of_group
from needle.routing.ranges import overlap
from needle.routing.shard_map import KeyRange


class FoundShard(msgspec.Struct, frozen=True, kw_only=True, tag="found-shard"):
    """A new shard, which owns nothing yet."""

    shard: int
    replicas: tuple[NodeId, ...]
    documents: int = 0
    bytes: int = 0

    @property
    def groups(self) -> frozenset[GroupId]:
        """Those that it is about."""
        return frozenset({shard_group(self.shard)})

    def in_words(self) -> str:
        """What it does, for people."""
        return f"add shard {self.shard} on {_listed(self.replicas)}"


class MoveRange(msgspec.Struct, frozen=True, kw_only=True, tag="move-range"):
    """Key ranges go to another shard. bytes: of their documents, which each replica of the target will store."""

    source: int
    target: int
    ranges: tuple[KeyRange, ...]
    documents: int
    bytes: int

    @property
    def groups(self) -> frozenset[GroupId]:
        """Those that it is about."""
        return frozenset({shard_group(self.source), shard_group(self.target)})

    def in_words(self) -> str:
        """What it does, for people."""
        return (
            f"move {self.documents} documents ({size_in_words(self.bytes)}, {len(self.ranges)} key ranges) from shard "
            f"{self.source} to shard {self.target}"
        )


class MoveReplicas(msgspec.Struct, frozen=True, kw_only=True, tag="move-replicas"):
    """Other nodes hold a shard, or the catalog, from now on. before, after: preferred leader first. bytes: that
    travel to all of the new ones together."""

    group: GroupId
    before: tuple[NodeId, ...]
    after: tuple[NodeId, ...]
    documents: int
    bytes: int
    why: str = ""

    @property
    def shard(self) -> int:
        """Whose replicas they are: its number, -1 for the catalog."""
        return shard_of_group(self.group)

    @property
    def added(self) -> tuple[NodeId, ...]:
        """The nodes that get a replica."""
        return tuple(node for node in self.after if node not in self.before)

    @property
    def removed(self) -> tuple[NodeId, ...]:
        """The nodes that give theirs up."""
        return tuple(node for node in self.before if node not in self.after)

    @property
    def groups(self) -> frozenset[GroupId]:
        """Those that it is about."""
        return frozenset({self.group})

    def in_words(self) -> str:
        """What it does, for people."""
        what = f"replica of {group_name(self.group)}"
        why = f": {self.why}" if self.why else ""
        if not self.added:
            return f"remove the {what} on {_listed(self.removed)}{why}" if self.removed else f"no change of the {what}"
        place = f"from {_listed(self.removed)} to" if self.removed else "also to"
        return f"{what} {place} {_listed(self.added)} ({size_in_words(self.bytes)}){why}"


class PreferLeader(msgspec.Struct, frozen=True, kw_only=True, tag="prefer-leader"):
    """Another replica of a shard is to lead it. Nothing travels."""

    group: GroupId
    before: tuple[NodeId, ...]
    after: tuple[NodeId, ...]
    documents: int = 0
    bytes: int = 0

    @property
    def shard(self) -> int:
        """Which is to be led by another one: its number, -1 for the catalog."""
        return shard_of_group(self.group)

    @property
    def groups(self) -> frozenset[GroupId]:
        """Those that it is about."""
        return frozenset({self.group})

    def in_words(self) -> str:
        """What it does, for people."""
        return f"{group_name(self.group)} is to be led by {self.after[0]} instead of {self.before[0]}"


class GiveUpShard(msgspec.Struct, frozen=True, kw_only=True, tag="give-up-shard"):
    """A shard that owns nothing any more is retired."""

    shard: int
    documents: int = 0
    bytes: int = 0

    @property
    def groups(self) -> frozenset[GroupId]:
        """Those that it is about."""
        return frozenset({shard_group(self.shard)})

    def in_words(self) -> str:
        """What it does, for people."""
        return f"retire shard {self.shard}, which owns nothing any more"


Move = FoundShard | MoveRange | MoveReplicas | PreferLeader | GiveUpShard


def disjoint(one: Move, other: Move) -> bool:
    """Whether two moves may run at the same time: a shard's replicas stay where they are while its ranges move."""
    if isinstance(one, MoveRange) and isinstance(other, MoveRange):
        return not overlap(one.ranges, other.ranges)
    return not one.groups & other.groups


def _listed(nodes: Collection[NodeId]) -> str:
    return ", ".join(nodes)


def size_in_words(size: int) -> str:
    """Bytes for people."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
