"""What is rebuilt of lost nodes beside a rebalance that is about something else. Pure.

Invariant: it takes nothing from a node that is not lost, and adds nothing to where the rebalance would have to move it
again, or could not go on beside it.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from needle.base.ids import NodeId
from needle.catalog.planning.by_hand import held_by
from needle.routing.planned_moves import MoveReplicas
from needle.routing.plans import Plan, Replacement, Wish
from needle.routing.topology import Topology


def pending(wish: Wish, gone: Collection[NodeId]) -> Replacement | None:
    """The replacement of a node, unless the new one is gone for long: then what is lost is rebuilt on any."""
    return None if wish.replace is None or wish.replace.new in gone else wish.replace


def left_alone(topology: Topology, wish: Wish, named: Replacement | None) -> Topology:
    """As if the nodes that are to get nothing were in maintenance. named: see `pending`."""
    kept = {*wish.drain, *([named.new] if named is not None else [])}
    nodes = tuple(msgspec.structs.replace(one, maintenance=1) if one.id in kept else one for one in topology.nodes)
    return msgspec.structs.replace(topology, nodes=nodes) if kept else topology


def rebuilt(
    topology: Topology, healing: Plan, lost: Collection[NodeId], named: Replacement | None
) -> tuple[MoveReplicas, ...]:
    """The moves of a plan that bring back what is lost, without those that it makes for nodes to be emptied, and for
    zones. What is held by a node that is replaced is left to that: there the new one is to take its place, which it
    could not if another one held a replica in its zone meanwhile."""
    moves = [one for one in healing.moves if isinstance(one, MoveReplicas)]
    hurt = {one.group for one in moves if set(one.removed) & set(lost)}
    if named is not None:
        hurt -= held_by(topology, named.old).keys()
    return tuple(one for one in moves if one.group in hurt and one.added and set(one.removed) <= set(lost))
