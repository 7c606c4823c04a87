"""How long recent answers took: when to ask a second replica. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

SAMPLES = 128
SAMPLES_MIN = 16
DELAY_UNKNOWN = 0.05
DELAY_MIN = 0.002
MEDIANS: Final = 3
"""A second replica answers in half of its time within one median: one that is asked earlier seldom is the first, and
works for nothing. Where answers all take about as long, a tenth of all reads was asked twice without this: of those
that lose no time is known, so that the 95th percentile of the others is about the 90th of all."""


class Latencies:
    """The last 128 answers' seconds."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=SAMPLES)
        self._since = 0
        self._late = DELAY_UNKNOWN

    def add(self, seconds: float) -> None:
        """One answer arrived."""
        self._recent.append(seconds)
        self._since += 1
        if (
            len(self._recent) >= SAMPLES_MIN and self._since >= 8
        ):  # sorting at every answer would cost more than it tells
            self._since = 0
            ordered = sorted(self._recent)
            count = len(ordered)
            self._late = max(DELAY_MIN, ordered[int(count * 0.95)], MEDIANS * ordered[count // 2])

    @property
    def late(self) -> float:
        """Seconds after which an answer is late: later than 95 % of them, and than three medians; 50 ms until
        there are enough samples."""
        return self._late
