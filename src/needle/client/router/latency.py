"""How long recent answers took: when to ask a second replica. Pure."""

from __future__ import annotations

from collections import deque

SAMPLES = 128
SAMPLES_MIN = 16
DELAY_UNKNOWN = 0.05
DELAY_MIN = 0.002


class Latencies:
    """The last 128 answers' seconds."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=SAMPLES)
        self._since = 0
        self._p95 = DELAY_UNKNOWN

    def add(self, seconds: float) -> None:
        """One answer arrived."""
        self._recent.append(seconds)
        self._since += 1
        if (
            len(self._recent) >= SAMPLES_MIN and self._since >= 8
        ):  # sorting at every answer would cost more than it tells
            self._since = 0
            ordered = sorted(self._recent)
            self._p95 = max(DELAY_MIN, ordered[int(len(ordered) * 0.95)])

    @property
    def p95(self) -> float:
        """Seconds after which an answer is late; 50 ms until there are enough samples."""
        return self._p95
