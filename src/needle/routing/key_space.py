"""How much of the key space a range of routing keys is, and where to cut it. Pure.

A key's position is a whole number from 0 to `size`, ascending with the key. Where a strategy hashes, documents lie
evenly over the positions, so a range may be cut at any of them. Under `range` keys are ids: their positions (the
first eight bytes) say nothing about documents, so a range is cut only between ids that somebody knows.
"""

from __future__ import annotations

from collections.abc import Iterable

from needle.routing.shard_map import KeyRange, ShardMap

_HASHES = 1 << 64


class KeySpace:
    """The keys of one map's strategy. size: of the whole space. even: whether documents lie evenly over positions."""

    def __init__(self, shard_map: ShardMap) -> None:
        self._prefixed = shard_map.strategy.kind == "hash"
        self.even = shard_map.strategy.kind != "range"
        self.size = shard_map.shard_count * _HASHES if self._prefixed else _HASHES

    def position(self, key: bytes | None) -> int:
        """Of a key; None is the end of the space."""
        if key is None:
            return self.size
        if not self._prefixed:
            return int.from_bytes(key[:8].ljust(8, b"\0"), "big")
        padded = key[:10].ljust(10, b"\0")
        return min(self.size, int.from_bytes(padded[:2], "big") * _HASHES + int.from_bytes(padded[2:], "big"))

    def key(self, position: int) -> bytes:
        """The least key at a position below `size`."""
        if not self._prefixed:
            return position.to_bytes(8, "big") if position else b""
        prefix, rest = divmod(position, _HASHES)
        return prefix.to_bytes(2, "big") + rest.to_bytes(8, "big") if rest else prefix.to_bytes(2, "big")

    def length(self, span: KeyRange) -> int:
        """Positions of a range."""
        return self.position(span[1]) - self.position(span[0])

    def share(self, ranges: Iterable[KeyRange]) -> float:
        """The fraction of the key space that ranges are, which do not overlap."""
        return sum(map(self.length, ranges)) / self.size
