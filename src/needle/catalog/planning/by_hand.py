"""What an operator has moved by name: one replica of a shard to another node, or half of a shard to a new one. Pure.

Invariant: each is a function of what is so now, like every plan: made again when it was carried out, it is nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from needle.base.errors import invalid
from needle.base.ids import GroupId, NodeId, shard_group
from needle.catalog.planning.pieces import Piece
from needle.catalog.planning.placement import PlacementNode
from needle.catalog.planning.spread import Spread
from needle.routing.key_space import KeySpace
from needle.routing.plans import ReplicaMove, ShardSplit
from needle.routing.shard_map import SHARDS_MAX
from needle.routing.topology import Topology


def shards_of(topology: Topology, split: ShardSplit) -> tuple[list[int], list[int]]:
    """The shards that are there, and the new one, if it is not there yet. Raises InvalidArgument."""
    there, used = [info.shard for info in topology.serving], len(topology.shards)
    if split.shard not in there or split.shard == split.into:
        raise invalid("shard", split.shard, f"one of {', '.join(map(str, there))}")
    if split.into in there:
        return there, []
    if split.into != used or used >= SHARDS_MAX:
        raise invalid("into", split.into, f"the next number, {used}, below {SHARDS_MAX}")
    return there, [split.into]


def has_a_part(topology: Topology, shard: int) -> bool:
    """Whether a shard owns something, or will: what was to come may have been deleted since the shard was added."""
    coming = any(info.target == shard for info in topology.moves)
    return coming or (topology.map is not None and shard in topology.map.owners)


def halved(
    space: KeySpace, pieces: Sequence[Piece], split: ShardSplit, threshold: float, goal: float
) -> Sequence[Piece]:
    """The pieces with the owners that they should have: the two shards are made even with each other."""
    pair = [split.shard, split.into]
    evened = Spread(space, pair, threshold, goal).run([piece for piece in pieces if piece.owner in pair])
    rest = [piece for piece in pieces if piece.owner not in pair]
    return sorted([*rest, *evened], key=lambda piece: piece.span[0])


def why_whole(space: KeySpace, shard: int) -> str:
    """Why nothing of a shard goes to a new one."""
    why = f"nothing of shard {shard} can go to another one"
    return why if space.even else f"{why}: under the strategy range it is not known where its ids could be cut"


def moved(
    topology: Topology, move: ReplicaMove, nodes: Mapping[NodeId, PlacementNode]
) -> dict[GroupId, tuple[NodeId, ...]]:
    """Who should hold the shard. Raises InvalidArgument."""
    held = topology.holders(shard_group(move.shard))
    if held is None or move.shard < 0:
        raise invalid("shard", move.shard, f"one of {', '.join(str(info.shard) for info in topology.serving)}")
    for field, node in (("source", move.source), ("target", move.target)):
        if node not in nodes:
            raise invalid(field, node, f"a node of this cluster: {', '.join(nodes)}")
    wanted, on = held.wanted, ", ".join(held.wanted)
    if move.source not in wanted:
        if move.target in wanted:  # it has arrived
            return {}
        raise invalid("source", move.source, f"a node that holds shard {move.shard}: {on}")
    if move.target in wanted:
        raise invalid("target", move.target, f"a node that does not hold shard {move.shard}, as these do: {on}")
    if not nodes[move.target].usable:
        raise invalid("target", move.target, "a node that takes replicas: this one is to be emptied, or has weight 0")
    return {shard_group(move.shard): tuple(move.target if node == move.source else node for node in wanted)}
