"""One leader per term, ever; one vote per term per node, across restarts (Raft paper, figure 3: election safety)."""

from __future__ import annotations

from proof.checkers.violation import Violation


class Elections:
    """Fed with every vote that leaves a node, and with who leads. A vote that was never sent binds nobody."""

    def __init__(self) -> None:
        self._leaders: dict[tuple[int, int], str] = {}
        self._votes: dict[tuple[int, str, int], str] = {}

    @property
    def count(self) -> int:
        """Elections won so far."""
        return len(self._leaders)

    def voted(self, group: int, node: str, term: int, vote: str) -> None:
        """`node` tells others of its vote for `vote`: by an answer, or by asking for theirs. Raises Violation."""
        before = self._votes.setdefault((group, node, term), vote)
        if before != vote:
            raise Violation(
                "one vote per term", f"{node} voted for {before} and {vote} in term {term} of group {group}"
            )

    def leads(self, group: int, node: str, term: int) -> bool:
        """`node` leads in `term`; True when that is news. Raises Violation."""
        known = self._leaders.get((group, term))
        if known is None:
            self._leaders[(group, term)] = node
        elif known != node:
            raise Violation("one leader per term", f"{known} and {node} both lead group {group} in term {term}")
        return known is None
