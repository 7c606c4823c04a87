"""How full nodes are, and how few bytes of replicas any plan with the same end must move. Pure; it decides nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from needle.base.ids import NodeId
from needle.catalog.planning.placement import Assignment, PlacementNode

EMPTY_REPLICA_BYTES = 16 << 20
"""What a replica without documents weighs on its node, so that empty ones are spread, too."""

Nodes = Mapping[NodeId, PlacementNode]


def loads(held: Assignment, sizes: Mapping[int, int]) -> Counter[NodeId]:
    """Bytes by node. sizes: of a replica, by shard."""
    found: Counter[NodeId] = Counter()
    for shard, nodes in held.items():
        for node in nodes:
            found[node] += sizes[shard]
    return found


def fullness(nodes: Nodes, held: Assignment, sizes: Mapping[int, int]) -> float:
    """Of the nodes that take replicas: the fullest for its weight over all of them, minus 1."""
    filled = loads(held, sizes)
    usable = [node for node in nodes.values() if node.usable]
    total, weight = sum(filled[node.id] for node in usable), sum(node.weight for node in usable)
    return max(filled[node.id] / node.weight for node in usable) * weight / total - 1 if total else 0.0


def fewest_bytes(known: Nodes, made: int, before: Assignment, after: Assignment, sizes: Mapping[int, int]) -> int:
    """By what was unusable or missing, what was too much or too little on a node for the end, and by zones. made: bytes
    that the plan moves."""
    usable = [node for node in known.values() if node.usable]
    kept = {
        shard: [node for node in nodes if known[node].usable or node in after[shard]]
        for shard, nodes in before.items()
        if shard in after
    }
    forced = zones = 0
    units = 0
    for shard, nodes in after.items():
        size, had = sizes[shard] + EMPTY_REPLICA_BYTES, kept.get(shard)
        if had is None:
            had = list(nodes)  # founded where it is to be: nothing travels
            kept[shard] = had
        elif len(had) > len(nodes):  # which ones go is free, and nothing travels
            had = kept[shard] = sorted(had, key=lambda node: node not in nodes)[: len(nodes)]
        new = max(0, len(nodes) - len(had))
        spread = [len({known[node].zone for node in ones}) for ones in (had, nodes)]
        forced += new * size
        zones += max(0, spread[1] - spread[0] - new) * size
        units += len(set(nodes) - set(before.get(shard, nodes))) * size
    if not made or not units:
        return made
    padded = {shard: sizes[shard] + EMPTY_REPLICA_BYTES for shard in after}
    start = loads({shard: tuple(nodes) for shard, nodes in kept.items()}, padded)
    end = loads(after, padded)
    fills = [end[node.id] / node.weight for node in usable]
    over = sum(max(0.0, start[node.id] - max(fills) * node.weight) for node in usable)
    under = sum(max(0.0, min(fills) * node.weight - start[node.id]) for node in usable)
    return round(made * max(forced + max(over, zones), under) / units)
