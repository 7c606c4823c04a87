"""Equal applied index means equal documents on every replica."""

from __future__ import annotations

from needle.sim.violation import Violation


class Digests:
    """Remembers the digest at each applied index that was looked at."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], tuple[str, str]] = {}

    def observe(self, group: int, node: str, applied: int, digest: str) -> None:
        """Raises Violation."""
        other, known = self._seen.setdefault((group, applied), (node, digest))
        if known != digest:
            raise Violation("equal replicas", f"group {group} at {applied}: {other} has {known}, {node} has {digest}")
