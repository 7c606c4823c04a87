"""Which nodes hold which shard's replicas, and which of them should lead. Pure: facts in, an assignment out.

Invariants (`check_invariants`): no shard has two replicas on one node; none has two in one zone while a zone without
one has a usable node. What already is stays where it is unless a rule or the balance asks for a move, and each plan
is a function of its arguments alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from needle.base.errors import invalid
from needle.base.ids import NodeId

Assignment = dict[int, tuple[NodeId, ...]]
"""Replicas by shard; the first is the preferred leader."""


class PlacementNode(msgspec.Struct, frozen=True, kw_only=True):
    """What placement knows of a node. weight: its share of replicas relative to the others. usable: False for a node
    that is drained, dead or removed: it gets nothing new and what it has is placed elsewhere."""

    id: NodeId
    zone: str = ""
    weight: float = 1.0
    usable: bool = True


class Move(msgspec.Struct, frozen=True):
    """One replica move: add `to`, wait until it has caught up, then remove `frm` (None: nothing to remove)."""

    shard: int
    frm: NodeId | None
    to: NodeId


def place(
    shard_count: int, replication_factor: int, nodes: Sequence[PlacementNode], current: Mapping[int, Sequence[NodeId]]
) -> Assignment:
    """Replicas of every shard on `nodes` (in the order they were added), changing `current` as little as needed.

    12 equal nodes, 4 shards and factor 3 give the guide's table: shard n on nodes 3n+1 to 3n+3. With fewer usable
    nodes than the factor, a shard gets one replica on each. Raises InvalidArgument without any usable node.
    """
    usable = [node for node in nodes if node.usable and node.weight > 0]
    if not usable:
        raise invalid("nodes", [node.id for node in nodes], "at least one usable node")
    by_id = {node.id: node for node in usable}
    kept = {s: [n for n in current.get(s, ()) if n in by_id] for s in range(shard_count)}
    load = Counter(node for replicas in kept.values() for node in replicas)
    for shard in range(shard_count):
        while len(kept[shard]) < min(replication_factor, len(usable)):
            node = _best(usable, kept[shard], by_id, load)
            kept[shard].append(node)
            load[node] += 1
    while (swap := _spread_zones(kept, usable, by_id, load)) or (swap := _even_out(kept, usable, by_id, load)):
        shard, old, new = swap
        kept[shard][kept[shard].index(old)] = new
        load[old] -= 1
        load[new] += 1
    kept = {shard: replicas[:replication_factor] for shard, replicas in kept.items()}
    led = {shard: replicas[0] for shard, replicas in current.items() if replicas and replicas[0] in kept.get(shard, ())}
    return _order_by_leader(kept, by_id, led)


def moves(current: Mapping[int, Sequence[NodeId]], wanted: Assignment) -> list[Move]:
    """The replica moves from `current` to `wanted`, shard by shard: what is added is paired with what goes."""
    ordered: list[Move] = []
    for shard, replicas in sorted(wanted.items()):
        going = [node for node in current.get(shard, ()) if node not in replicas]
        coming = [node for node in replicas if node not in current.get(shard, ())]
        ordered += [Move(shard, going.pop(0) if going else None, node) for node in coming]
    return ordered


def check_invariants(assignment: Assignment, nodes: Sequence[PlacementNode]) -> None:
    """Raises InvalidArgument when two replicas of a shard share a node, or a zone without need."""
    zone_of = {node.id: node.zone for node in nodes}
    zones = {node.zone for node in nodes if node.usable and node.weight > 0}
    for shard, replicas in assignment.items():
        if len(set(replicas)) != len(replicas):
            raise invalid(f"shard {shard}", replicas, "one replica a node")
        if len({zone_of[node] for node in replicas}) < min(len(replicas), len(zones)):
            raise invalid(f"shard {shard}", replicas, "replicas in different zones")


def _fill(node: PlacementNode, load: Counter[NodeId], more: int = 0) -> float:
    return (load[node.id] + more) / node.weight


def _best(
    usable: list[PlacementNode], taken: list[NodeId], by_id: dict[NodeId, PlacementNode], load: Counter[NodeId]
) -> NodeId:
    """The least filled node that holds no replica yet, in a zone that holds as few as possible; first added wins."""
    zones = Counter(by_id[node].zone for node in taken)
    free = [node for node in usable if node.id not in taken]
    return min(free, key=lambda node: (zones[node.zone], _fill(node, load, 1))).id


_Swap = tuple[int, NodeId, NodeId]


def _spread_zones(
    kept: dict[int, list[NodeId]],
    usable: list[PlacementNode],
    by_id: dict[NodeId, PlacementNode],
    load: Counter[NodeId],
) -> _Swap | None:
    """A replica to move because its zone holds two of its shard while another zone holds none."""
    for shard, replicas in kept.items():
        zones = Counter(by_id[node].zone for node in replicas)
        empty = [node for node in usable if zones[node.zone] == 0]
        crowded = [node for node in replicas if zones[by_id[node].zone] > 1]
        if empty and crowded:
            old = max(crowded, key=lambda node: _fill(by_id[node], load))
            return shard, old, min(empty, key=lambda node: _fill(node, load, 1)).id
    return None


def _even_out(
    kept: dict[int, list[NodeId]],
    usable: list[PlacementNode],
    by_id: dict[NodeId, PlacementNode],
    load: Counter[NodeId],
) -> _Swap | None:
    """A replica to move from the fullest node to an emptier one, if that makes the pair strictly more even."""
    for full in sorted(usable, key=lambda node: -_fill(node, load)):
        for spare in sorted(usable, key=lambda node: _fill(node, load, 1)):
            if _fill(spare, load, 1) >= _fill(full, load) - 1e-9:
                break
            for shard, replicas in kept.items():
                if full.id in replicas and spare.id not in replicas and _zone_fits(replicas, full, spare, by_id):
                    return shard, full.id, spare.id
    return None


def _zone_fits(
    replicas: list[NodeId], old: PlacementNode, new: PlacementNode, by_id: dict[NodeId, PlacementNode]
) -> bool:
    others = [by_id[node].zone for node in replicas if node != old.id]
    return new.zone == old.zone or new.zone not in others


def _order_by_leader(
    kept: dict[int, list[NodeId]], by_id: dict[NodeId, PlacementNode], led: dict[int, NodeId]
) -> Assignment:
    """Put each shard's preferred leader first, so that leaders are spread as evenly as the replicas allow. led: who is
    preferred now, and stays so unless that is uneven.

    Greedy, then improved along chains of hand-overs (an augmenting path in the bipartite graph shards x nodes).
    """
    leader = dict(led)
    leads = Counter(led.values())
    for shard, replicas in sorted((shard, replicas) for shard, replicas in kept.items() if shard not in led):
        leader[shard] = min(replicas, key=lambda node: leads[node] / by_id[node].weight)
        leads[leader[shard]] += 1
    while chain := _relief(kept, leader, leads, by_id):
        for shard, node in chain:
            leads[leader[shard]] -= 1
            leader[shard] = node
            leads[node] += 1
    return {s: (leader[s], *(node for node in kept[s] if node != leader[s])) for s in sorted(kept)}


def _relief(
    kept: dict[int, list[NodeId]],
    leader: dict[int, NodeId],
    leads: Counter[NodeId],
    by_id: dict[NodeId, PlacementNode],
) -> list[tuple[int, NodeId]] | None:
    """Hand-overs that take one lead from a busy node and give one to a node that is idler even after it."""
    for busy in sorted(by_id, key=lambda node: -leads[node] / by_id[node].weight):
        frontier: list[tuple[NodeId, list[tuple[int, NodeId]]]] = [(busy, [])]
        seen = {busy}
        while frontier:
            node, chain = frontier.pop(0)
            if (leads[node] + 1) / by_id[node].weight < leads[busy] / by_id[busy].weight - 1e-9 and chain:
                return chain
            for shard in sorted(s for s, led in leader.items() if led == node):
                for other in kept[shard]:
                    if other not in seen:
                        seen.add(other)
                        frontier.append((other, [*chain, (shard, other)]))
    return None
