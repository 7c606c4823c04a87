"""What nodes and clients know of a version of the catalog is what its log made of it, whoever told them, and how."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter
from typing import Final

from needle.routing.topology import Topology
from proof.checkers.violation import Violation

_TOLD: Final = tuple(name for name in Topology.__struct_fields__ if name != "keys")
"""Keys are told to admins and nodes only."""


def check(who: str, known: Topology, there_were: Sequence[Topology]) -> None:
    """there_were: every topology of the catalog, oldest first, the first of no cluster. Some clients of the simulation
    begin with one that never was: of a version before the first. Raises Violation."""
    at = bisect_left(there_were, known.version, lo=1, key=attrgetter("version"))
    if at == len(there_were) or there_were[at].version != known.version:
        return
    true = there_were[at]
    wrong = [name for name in _TOLD if getattr(true, name) != getattr(known, name)]
    if wrong:
        raise Violation(
            "one catalog", f"{who} has other {', '.join(wrong)} than version {known.version} of the catalog"
        )
