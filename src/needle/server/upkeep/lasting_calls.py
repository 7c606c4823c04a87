"""The calls a second that a rebalance plans by: measured once for each, when the rates tell of the map of now.

Rates are of the last half minute, and a shard that was given a range counts its calls from then on only: for so long
they say that a range is called less than it is, whoever owns it. So they are measured when the map has stood still for
long enough, and kept (by keys, planning/heat.py) until the rebalance is over; a successor measures again.
"""

from __future__ import annotations

from typing import Final

from needle.routing.stats import RangeStats

RATE_SECONDS: Final = 30.0
"""So long a call counts (call_rates.SLOT_SECONDS * SLOTS)."""


class LastingCalls:
    """See the module. Times are a monotonic clock's, in seconds."""

    def __init__(self) -> None:
        self._epoch = -1
        self._since = 0.0
        self._job = 0
        self._calls: tuple[RangeStats, ...] = ()

    def follow(self, epoch: int, now: float) -> None:
        """The map that this node knows now."""
        if epoch != self._epoch:
            self._epoch, self._since = epoch, now

    def unsettled(self, now: float) -> float:
        """So many seconds more the rates tell of the map before."""
        return max(0.0, self._since + RATE_SECONDS - now)

    def of(self, job: int) -> tuple[RangeStats, ...] | None:
        """What was measured for a rebalance, if it was."""
        return self._calls if job and job == self._job else None

    def keep(self, job: int, calls: tuple[RangeStats, ...]) -> None:
        """Plan by these until it is over."""
        self._job, self._calls = job, calls
