"""A consistent hash ring with virtual nodes (Karger et al. 1997): shards own the arcs that end at their points.

Invariant: the points of a shard depend on its number and nothing else, so adding a shard moves keys only to it and
removing one moves keys only from it. A key belongs to the first point at or after its hash, clockwise.
Point i of shard s is XXH3-64 (seed 0) of the text "shard-{s}/{i}". Equal points go to the lower shard number.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from needle.base.errors import invalid
from needle.base.sharding_config import VIRTUAL_NODES, VIRTUAL_NODES_MAX
from needle.routing.strategy import key_hash

SPACE = 1 << 64
POINTS_MAX = 1 << 19
"""Of all shards together: the map that is made of them is in the catalog, on every node and in every client."""


class Ring:
    """An immutable ring. virtual_nodes: of each shard."""

    def __init__(self, shards: Sequence[int], virtual_nodes: int = VIRTUAL_NODES) -> None:
        if not shards or len(set(shards)) != len(shards):
            raise invalid("shards", list(shards), "one or more different shard numbers")
        if not 1 <= virtual_nodes <= VIRTUAL_NODES_MAX:
            raise invalid("virtual_nodes_per_shard", virtual_nodes, f"a number from 1 to {VIRTUAL_NODES_MAX}")
        if virtual_nodes * len(shards) > POINTS_MAX:
            most = POINTS_MAX // len(shards)
            raise invalid("virtual_nodes_per_shard", virtual_nodes, f"at most {most} for {len(shards)} shards")
        self.shards = tuple(sorted(shards))
        points: dict[int, int] = {}
        for shard in self.shards:
            for i in range(virtual_nodes):
                points.setdefault(key_hash(f"shard-{shard}/{i}"), shard)
        self._points = sorted(points)
        self._owners = [points[point] for point in self._points]

    def owner(self, hashed: int) -> int:
        """The shard that owns a hash in [0, 2^64)."""
        at = bisect_left(self._points, hashed)
        return self._owners[at if at < len(self._points) else 0]

    def arcs(self) -> list[tuple[int, int, int]]:
        """(low, high, shard): who owns the hashes in [low, high), in order; neighbours differ; together [0, 2^64)."""
        ends = [point + 1 for point in self._points]
        ends[-1], owners = SPACE, list(self._owners)
        bounds = [0, *ends[:-1]] if len(ends) > 1 else [0]
        arcs = list(zip(bounds, ends, owners, strict=True))
        last = self._points[-1] + 1
        if last < SPACE:  # hashes after the last point wrap around to the first point's shard
            arcs[-1] = (arcs[-1][0], last, owners[-1])
            arcs.append((last, SPACE, owners[0]))
        merged: list[tuple[int, int, int]] = []
        for low, high, shard in arcs:
            if merged and merged[-1][2] == shard:
                merged[-1] = (merged[-1][0], high, shard)
            else:
                merged.append((low, high, shard))
        return merged

    def shares(self) -> dict[int, float]:
        """The fraction of the key space that each shard owns."""
        owned = dict.fromkeys(self.shards, 0)
        for low, high, shard in self.arcs():
            owned[shard] += high - low
        return {shard: size / SPACE for shard, size in owned.items()}
