"""In true time no leader may serve a leased read after an entry of a higher term was applied anywhere (raft.md, 3).

Stricter than waiting for a client to read there: the lease that is left is looked at in the very moment.
"""

from __future__ import annotations

from collections.abc import Iterable

from proof.checkers.violation import Violation


class Leases:
    """Fed when a term's first entry is applied, with every leader's term and the seconds of lease it believes in."""

    def __init__(self) -> None:
        self._highest: dict[int, int] = {}

    def is_new_term(self, group: int, term: int) -> bool:
        """Whether this is the first applied entry of a term higher than all before."""
        if term <= self._highest.get(group, 0):
            return False
        self._highest[group] = term
        return True

    def check(self, group: int, term: int, leases: Iterable[tuple[str, int, float]]) -> None:
        """leases: (node, term, seconds left). Raises Violation."""
        for node, led, left in leases:
            if led < term and left > 0:
                raise Violation(
                    "leases",
                    f"{node} leads group {group} in term {led} with {left:.3f} s of lease, term {term} has committed",
                )
