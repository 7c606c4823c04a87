"""One leader per term, ever; one vote per term per node, across restarts (Raft paper, figure 3: election safety)."""

from __future__ import annotations

from needle.sim.violation import Violation


class Elections:
    """Fed with every node's term, vote and role whenever they may have changed."""

    def __init__(self) -> None:
        self._leaders: dict[tuple[int, int], str] = {}
        self._votes: dict[tuple[int, str, int], str] = {}

    @property
    def count(self) -> int:
        """Elections won so far."""
        return len(self._leaders)

    def observe(self, group: int, node: str, term: int, vote: str, leads: bool) -> bool:
        """True when this is a newly elected leader. Raises Violation."""
        if vote:
            before = self._votes.setdefault((group, node, term), vote)
            if before != vote:
                raise Violation(
                    "one vote per term", f"{node} voted for {before} and for {vote} in term {term} of group {group}"
                )
        if not leads:
            return False
        known = self._leaders.get((group, term))
        if known is None:
            self._leaders[(group, term)] = node
            return True
        if known != node:
            raise Violation("one leader per term", f"{known} and {node} both lead group {group} in term {term}")
        return False
