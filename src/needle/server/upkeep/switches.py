"""What the driver of moves has seen of switches of key ranges: how long they held writes, and how long a target took to
own what was decided to be its.

Invariant: a switch is measured from the moment at which this driver knew of it, so one that a dead leader of the source
began counts from when its successor took over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import StrEnum
from itertools import pairwise
from typing import Any


class End(StrEnum):
    """How the hold of writes ended. decided: the source does not own the keys any more. thawed: the target did not
    confirm in time. given_up: the move was cancelled."""

    DECIDED = "decided"
    THAWED = "thawed"
    GIVEN_UP = "given_up"


class Step(StrEnum):
    """What of a switch took its time, in their order. freeze: until the source's log has it. rest: what was written
    last is looked up, copied and confirmed by the target, while the catalog is asked. release, own: until the source's
    and the target's log have it. map: until the catalog has its next epoch, and this node hears it."""

    FREEZE = "freeze"
    REST = "rest"
    RELEASE = "release"
    OWN = "own"
    MAP = "map"


class Switches:
    """on_hold: called with how a hold ended and its seconds. on_arrival: with the seconds from a decision until the
    target owned the keys."""

    def __init__(self, now: Callable[[], float]) -> None:
        """now: seconds."""
        self._now = now
        self._frozen: dict[int, float] = {}
        self._decided: dict[int, float] = {}
        """Since when, by move."""
        self._passed: dict[int, list[tuple[str, float]]] = {}
        """By move, since when its ranges freeze, and when each step was over."""
        self._arrived: set[int] = set()
        """Moves whose arrival was told: after an error their last steps are taken again, and count once."""
        self.on_hold: Callable[[End, float], None] = lambda end, seconds: None
        self.on_arrival: Callable[[float], None] = lambda seconds: None

    def frozen(self, move: int) -> None:
        """The source of a move takes no writes to its keys, or is about to."""
        if move not in self._arrived and move not in self._frozen:
            self._frozen[move] = self._now()
            self._passed[move] = [("", self._frozen[move])]

    def passed(self, move: int, step: Step) -> None:
        """A step of a switch that this driver has seen from its start is over."""
        if (known := self._passed.get(move)) is not None:
            known.append((step, self._now()))

    def steps(self, move: int) -> str:
        """How long each step of a switch took that is over, in words; "" if this driver has not seen all of them. They
        are forgotten."""
        known = self._passed.pop(move, [])
        if [name for name, _ in known[1:]] != [*Step]:
            return ""
        took = [(name, after - before) for (_, before), (name, after) in pairwise(known)]
        return ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in took)

    def ended(self, move: int, end: End) -> None:
        """It takes them again, or has given them away."""
        since = self._frozen.pop(move, None)
        if end is not End.DECIDED:
            self._passed.pop(move, None)
        if since is not None:
            self.on_hold(end, self._now() - since)
        if end is End.DECIDED and move not in self._arrived:
            self._decided.setdefault(move, self._now())

    def arrived(self, move: int) -> None:
        """The target owns the keys of a move that was decided."""
        since = self._decided.pop(move, None)
        if since is not None:
            self._arrived.add(move)
            self.on_arrival(self._now() - since)

    def decided_for(self, move: int) -> float:
        """Seconds since the decision of a move whose target does not own its keys yet; 0 of others."""
        since = self._decided.get(move)
        return 0.0 if since is None else self._now() - since

    def keep(self, moves: Collection[int]) -> None:
        """Forget all but these, which this driver drives."""
        everything: tuple[dict[int, Any], ...] = self._frozen, self._decided, self._passed
        for known in everything:
            for move in [one for one in known if one not in moves]:
                del known[move]
        self._arrived.intersection_update(moves)
