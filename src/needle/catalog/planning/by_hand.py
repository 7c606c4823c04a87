"""What an operator has moved by name: one replica of a shard to another node, all replicas of a node to another one, or
half of a shard to a new one. Pure.

Invariant: each is a function of what is so now, like every plan: made again when it was carried out, it is nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from needle.base.errors import InvalidArgument, invalid
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name, shard_group
from needle.catalog.planning.pieces import Piece
from needle.catalog.planning.placement import PlacementNode
from needle.catalog.planning.spread import Spread
from needle.routing.key_space import KeySpace
from needle.routing.planned_moves import Move, MoveReplicas
from needle.routing.plans import CATALOG, Replacement, ReplicaMove, ShardSplit, Wish
from needle.routing.shard_map import SHARDS_MAX
from needle.routing.topology import NodeState, Topology


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
    """Who should hold the shard, or the catalog. Raises InvalidArgument."""
    group = shard_group(move.shard)
    held, name = topology.holders(group) if move.shard >= CATALOG else None, group_name(group)
    if held is None:
        raise invalid("shard", move.shard, f"one of {', '.join(str(info.shard) for info in topology.serving)}")
    for field, node in (("source", move.source), ("target", move.target)):
        if node not in nodes:
            raise invalid(field, node, f"a node of this cluster: {', '.join(nodes)}")
    wanted, on = held.wanted, ", ".join(held.wanted)
    if move.source not in wanted:
        if move.target in wanted:  # it has arrived
            return {}
        raise invalid("source", move.source, f"a node that holds {name}: {on}")
    if move.target in wanted:
        raise invalid("target", move.target, f"a node that does not hold {name}, as these do: {on}")
    if not nodes[move.target].usable:
        raise invalid("target", move.target, "a node that takes replicas: this one is to be emptied, or has weight 0")
    return {group: tuple(move.target if node == move.source else node for node in wanted)}


def held_by(topology: Topology, node: NodeId) -> dict[GroupId, tuple[NodeId, ...]]:
    """The groups that a node is to hold, by the catalog's last word, each with all nodes that are to."""
    groups = (CATALOG_GROUP, *(shard_group(info.shard) for info in topology.serving))
    held = {group: known.wanted for group in groups if (known := topology.holders(group)) is not None}
    return {group: wanted for group, wanted in held.items() if node in wanted}


def replaced(
    topology: Topology, named: Replacement, nodes: Mapping[NodeId, PlacementNode]
) -> dict[GroupId, tuple[NodeId, ...]]:
    """Who should hold what the node `old` holds: nothing is left of it when that was carried out, or it was removed.
    Raises InvalidArgument."""
    old, new, known = named.old, named.new, ", ".join(nodes)
    if topology.node(old) is None:
        raise invalid("old", old, f"a node of this cluster: {known}")
    if new not in nodes or old == new:
        raise invalid("new", new, f"another node of this cluster, which has joined: {known}")
    if any(info.id == new and info.state is NodeState.DRAINING for info in topology.nodes):
        raise InvalidArgument(f"{new} is to be emptied: `needle node drain --undo` first", field="new")
    held, found = held_by(topology, old), dict[GroupId, tuple[NodeId, ...]]()
    if held and not nodes[new].usable:
        raise InvalidArgument(f"{new} has weight 0, so it takes no replicas: `needle node weight` first", field="new")
    for group, wanted in held.items():
        rest = [node for node in wanted if node != old]
        if new in rest:
            raise InvalidArgument(
                f"{new} holds {group_name(group)} already, as {old} does: `needle node remove {old}` has other nodes "
                "take its place",
                field="new",
            )
        zone = nodes[new].zone
        shared = [node for node in rest if zone and nodes[node].zone == zone]
        if shared and not any(nodes[node].zone == nodes[old].zone for node in rest):
            raise InvalidArgument(
                f"{new} is in zone {zone!r}, where {shared[0]} holds {group_name(group)} already", field="new"
            )
        found[group] = tuple(new if node == old else node for node in wanted)
    return found


def waits_for(
    topology: Topology, named: Replacement | None, alive: Collection[NodeId], tight: Collection[NodeId]
) -> str:
    """Why a replacement cannot go on now; "" if it can, or nothing is left of it. tight: nodes short of memory."""
    if named is None or (named.new in alive and named.new not in tight) or not held_by(topology, named.old):
        return ""
    why = "is short of memory" if named.new in alive else "does not answer"
    return f"{named.new}, which is to replace {named.old}, {why}"


def shards_named(topology: Topology, wish: Wish, shards: Collection[int]) -> set[int]:
    """Those that matter for a wish; all of `shards` for one that names none."""
    if wish.move is not None:
        return {wish.move.shard}
    if wish.split is not None:
        return {wish.split.shard, wish.split.into}
    if wish.replace is not None:
        return {group - 1 for group in held_by(topology, wish.replace.old) if group != CATALOG_GROUP}
    return set(shards)


def explained(moves: Sequence[Move], named: Replacement | None) -> tuple[Move, ...]:
    """The same moves, with the reason for those that replace a node."""
    if named is None:
        return tuple(moves)
    why = f"{named.new} replaces {named.old}"
    return tuple(
        msgspec.structs.replace(move, why=why) if isinstance(move, MoveReplicas) and named.old in move.removed else move
        for move in moves
    )
