"""What is wished of a cluster, and the plan that comes of it. Pure.

Invariant: both are data alone, so a wish can be stored and a plan shown before anything moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from needle.base.config import check_node_id, check_range
from needle.base.errors import invalid
from needle.base.ids import NodeId
from needle.base.schema import check_whole, refuse
from needle.base.sharding_config import REPLICAS_MAX as REPLICAS_MAX
from needle.base.sharding_config import SHARDS_MAX
from needle.routing.copy_rates import MEASURED_ELSEWHERE, CopyRates
from needle.routing.planned_moves import Move, size_in_words

ZONE_CHARS_MAX = 256
FRACTION_MAX = 1000
WISHED_MAX = 4096
"""Shards and nodes that a wish names."""
RANGE_BYTES = (1 << 20, 1 << 50)
"""Of one move of key ranges: with less, a plan has more moves than anybody can make."""
CATALOG: Final = -1
"""In the place of a shard's number: the catalog."""
_SEVERAL = (tuple, list, set, frozenset)


class ReplicaMove(msgspec.Struct, frozen=True, kw_only=True):
    """The replica of a shard on the node `source` goes to the node `target`. shard: -1 for the catalog."""

    shard: int
    source: NodeId
    target: NodeId


class ShardSplit(msgspec.Struct, frozen=True, kw_only=True):
    """About half of what a shard owns goes to a new one. into: its number, the next that was never used."""

    shard: int
    into: int


class Replacement(msgspec.Struct, frozen=True, kw_only=True):
    """The node `new` holds all that the node `old` holds, which is then removed from the cluster."""

    old: NodeId
    new: NodeId


_BY_HAND: Final = {"move": ReplicaMove, "split": ShardSplit, "replace": Replacement}


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """How the cluster should be; what is not said stays as the catalog says.

    shards: how many serve; with fewer, those with the highest numbers go. retire: these go. replicas: of each shard.
    catalog_nodes: that hold the catalog. drain: nodes to be emptied, besides those that the catalog says. lost: nodes
    that will not come back. weights, zones: of nodes, instead of the catalog's. threshold: shards and nodes that are
    within this fraction of a fair share stay as they are; goal: once something moves, how near they come. heat: how
    much calls a second count beside bytes, 0 to 1; they are measured once for each rebalance, half a minute after
    ranges have moved. balance: False to heal and empty only. range_bytes_max: of one
    move of key ranges. range_threshold: instead of threshold, for shards only. move, split, replace: by hand; nothing
    else is moved, healed or emptied with it."""

    shards: int | None = None
    retire: tuple[int, ...] = ()
    replicas: int | None = None
    catalog_nodes: int | None = None
    drain: tuple[NodeId, ...] = ()
    lost: tuple[NodeId, ...] = ()
    weights: Mapping[NodeId, float] = {}
    zones: Mapping[NodeId, str] = {}
    threshold: float = 0.2
    goal: float = 0.02
    range_threshold: float | None = None
    heat: float = 0.0
    balance: bool = True
    range_bytes_max: int = 1 << 30
    move: ReplicaMove | None = None
    split: ShardSplit | None = None
    replace: Replacement | None = None

    def __post_init__(self) -> None:
        """Raises InvalidArgument for what is of another type; never when it is decoded, for that is checked there."""
        for name in ("shards", "replicas", "catalog_nodes"):
            if type(value := getattr(self, name)) not in (int, type(None)):
                raise refuse(name, value, "a whole number, or None")
        if type(self.range_bytes_max) is not int:
            raise refuse("range_bytes_max", self.range_bytes_max, "a whole number of bytes")
        for name, whose in (("retire", int), ("drain", str), ("lost", str)):
            value = getattr(self, name)
            if not isinstance(value, _SEVERAL) or any(type(one) is not whose for one in value):
                raise refuse(
                    name, value, "numbers of shards, as in (3,)" if whose is int else "ids of nodes in a tuple"
                )
        for name in ("weights", "zones"):
            if not isinstance(value := getattr(self, name), dict):  # other mappings cannot be sent
                raise refuse(name, value, f"{name} by ids of nodes, in a dict")
        if type(self.balance) is not bool:
            raise refuse("balance", self.balance, "True or False")
        for name, kind in _BY_HAND.items():
            if not isinstance(value := getattr(self, name), kind | None):
                raise refuse(name, value, f"a {kind.__name__}, or None")

    @property
    def by_hand(self) -> bool:
        """Whether it names what is to move, instead of how all should be."""
        return any(named is not None for named in (self.move, self.split, self.replace))

    @property
    def names(self) -> bool:
        """Whether it is about something more than that all is as the catalog says."""
        some = self.shards, self.replicas, self.catalog_nodes
        several = self.retire, self.drain, self.lost, self.weights, self.zones
        return self.by_hand or some != (None, None, None) or any(several)

    @property
    def count(self) -> int:
        """How many shards and nodes it names."""
        return sum(map(len, (self.retire, self.drain, self.lost, self.weights, self.zones)))

    def check(self) -> None:
        """Raises InvalidArgument for too many names, and for a number that no plan can be made by, whatever the cluster
        is like. Not when it is decoded: what a log holds must be readable."""
        if self.count > WISHED_MAX:  # first: all else takes time by it
            raise invalid("wish", self.count, f"at most {WISHED_MAX} shards and nodes")
        how = self.shards, self.replicas, self.catalog_nodes
        named = sum(one is not None for one in (self.move, self.split, self.replace))
        if named > 1 or (
            self.by_hand
            and (how != (None, None, None) or any((self.retire, self.drain, self.lost, self.weights, self.zones)))
        ):
            raise invalid(
                "wish", "move, split or replace, with others", "one of them alone: nothing else moves with it"
            )
        check_range("threshold", self.threshold, 0, FRACTION_MAX)
        check_range("goal", self.goal, 0, FRACTION_MAX)
        check_range("heat", self.heat, 0, 1)
        check_range("range_bytes_max", self.range_bytes_max, RANGE_BYTES[0], RANGE_BYTES[1])
        if self.range_threshold is not None:
            check_range("range_threshold", self.range_threshold, 0, FRACTION_MAX)
        if self.catalog_nodes is not None:
            check_range("catalog_nodes", self.catalog_nodes, 1, REPLICAS_MAX)
        for node, weight in self.weights.items():
            check_range(f"weight of {node}", weight, 0, 1000)
        for node, zone in self.zones.items():
            if not isinstance(zone, str) or len(zone) > ZONE_CHARS_MAX:
                raise invalid(f"zone of {node}", zone, f"at most {ZONE_CHARS_MAX} characters")

    def check_asked(self) -> None:
        """As `check`, and for numbers and ids that no cluster has: before anything is sent, for some of them nothing
        can hold. The catalog does not: nodes of another release must take and refuse the same."""
        self.check()
        for name in ("drain", "lost", "weights", "zones"):
            for node in getattr(self, name):
                check_node_id(name, node)
        for node, zone in self.zones.items():
            if not zone.isprintable():  # people read it in tables, and half a surrogate is no text
                raise invalid(f"zone of {node}", zone, "printable characters")
        if self.move is not None:
            check_node_id("source", self.move.source)
            check_node_id("target", self.move.target)
        if self.replace is not None:
            check_node_id("old", self.replace.old)
            check_node_id("new", self.replace.new)
        whole = [("shards", self.shards, 1, SHARDS_MAX), ("replicas", self.replicas, 1, REPLICAS_MAX)]
        whole += [("retire", shard, 0, SHARDS_MAX - 1) for shard in self.retire]
        if self.move is not None:
            whole.append(("shard", self.move.shard, CATALOG, SHARDS_MAX - 1))
        if self.split is not None:
            whole += [("shard", self.split.shard, 0, SHARDS_MAX - 1), ("into", self.split.into, 0, SHARDS_MAX - 1)]
        for name, value, low, high in whole:
            if value is not None:
                check_whole(name, value, low, high)


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """shards: largest over mean, minus 1, by what is evened out (bytes, unless heat counts). nodes: the same by bytes
    for each unit of weight."""

    shards: float
    nodes: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """moves: in order; each is legal when those before it are done. unmet: what of the wish is left, and why. least:
    bytes that any plan with the same end must move; of key ranges once, of replicas for each new one. waiting: which
    shards it leaves as they are because no leader of them says what they hold. beyond_help: shards that nobody can
    rebuild, because most of their replicas are on nodes that the wish calls lost. besides: what stays otherwise than
    the catalog says, and is not what is wished. rates: how fast this cluster's latest moves copied."""

    moves: tuple[Move, ...]
    unmet: tuple[str, ...]
    before: Balance
    after: Balance
    least: int
    waiting: tuple[str, ...] = ()
    beyond_help: tuple[str, ...] = ()
    besides: tuple[str, ...] = ()
    rates: CopyRates = MEASURED_ELSEWHERE

    @property
    def bytes(self) -> int:
        """That the moves copy."""
        return sum(move.bytes for move in self.moves)

    @property
    def documents(self) -> int:
        """That the moves copy."""
        return sum(move.documents for move in self.moves)

    @property
    def ratio(self) -> float:
        """Bytes moved over the least possible; 1 if nothing is copied."""
        return self.bytes / self.least if self.least else 1.0

    def missing(self, *, unmet: bool = False, waiting: bool = False) -> str:
        """Why a rebalance by this plan would be refused, empty if it would not: nothing of the wish can be done now, or
        some of it never can. unmet, waiting: it is refused as well if anything is unmet, or waits."""
        short = self.beyond_help or (unmet and self.unmet) or (waiting and self.waiting) or not self.moves
        return "; ".join([*self.beyond_help, *self.unmet, *self.waiting]) if short else ""

    def in_words(self) -> list[str]:
        """For people, a line each."""
        lines = [f"{number}. {move.in_words()}" for number, move in enumerate(self.moves, 1)]
        lines += [f"not possible: {why}" for why in self.beyond_help]
        lines += [f"not possible now: {why}" for why in self.unmet]
        lines += [f"waits: {why}" for why in self.waiting]
        lines += [f"stays as it is: {why}" for why in self.besides]
        lines.append(
            f"{len(self.moves)} moves copy {size_in_words(self.bytes)}, {self.ratio:.2f} of the least possible; "
            f"imbalance of shards {self.before.shards:.2f} to {self.after.shards:.2f}, "
            f"of nodes {self.before.nodes:.2f} to {self.after.nodes:.2f}"
        )
        return lines
