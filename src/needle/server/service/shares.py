"""How the time of a node is shared by weight between the calls of many and the work of few.

Heavy work is done one after the other while lighter calls come, and rests after each piece: for as long as the piece
took, times the weights of the classes that call, over its own. So of the node's time it has its weight's share, however
slow the machine is. Without other calls nothing rests.

Pure: instants and durations are arguments, in seconds. It does not know what a piece is.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Work(IntEnum):
    """A class of work."""

    SEARCH = 0
    """Searches, and whatever else reads a few documents."""
    SMALL_WRITE = 1
    BULK = 2
    """Writes that are checked and applied in threads."""


WEIGHTS: Final = {Work.SEARCH: 2.0, Work.SMALL_WRITE: 2.0, Work.BULK: 1.0}
CALLS_SECONDS: Final = 0.25
"""A class is there for so long after its last call."""
REST_SECONDS_MAX: Final = 0.05
"""A piece that took long waited for others, most of all; what it costs them is less."""


class Shares:
    """Of one node."""

    def __init__(self) -> None:
        self.last = dict.fromkeys(Work, float("-inf"))
        """When a call of each class came last."""
        self._again = dict.fromkeys(Work, float("-inf"))

    def called(self, work: Work, now: float) -> None:
        """A call of this class came."""
        self.last[work] = now

    def others(self, work: Work, now: float) -> float:
        """The weights of the classes that call beside this one; 0 while none does."""
        return sum(
            weight for one, weight in WEIGHTS.items() if one is not work and now - self.last[one] <= CALLS_SECONDS
        )

    def ended(self, work: Work, began: float, now: float) -> None:
        """A piece of work was done."""
        rest = (now - began) * self.others(work, now) / WEIGHTS[work]
        self._again[work] = now + min(rest, REST_SECONDS_MAX)

    def rest(self, work: Work, now: float) -> float:
        """Seconds until the next piece may begin; 0: now."""
        return max(self._again[work] - now, 0.0) if self.others(work, now) else 0.0
