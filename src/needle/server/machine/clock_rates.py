"""How much faster a node's clock for durations runs than those of its cluster, by minutes of readings of the others.

Invariants: what may come of the time that a reading was under way is never told as a fault of the clock; nor is, before
WINDOW_SECONDS are over, what only one half of the time shows: a clock that was put on once, as after a pause of its
machine. Of fewer than FIRST_SECONDS nothing is told. Bounded: a reading of each node every EVERY_SECONDS. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from needle.base.ids import NodeId
from needle.client.clock_readings import Reading, own_rate
from needle.protocol.peer_calls import ClockLevels
from needle.protocol.probe_calls import ClockAnswer, LoadAnswer

WINDOW_SECONDS: Final = 300.0
"""As in the alert's rule."""
FIRST_SECONDS: Final = 60.0
EVERY_SECONDS: Final = 15.0
KEPT: Final = int(WINDOW_SECONDS / EVERY_SECONDS) + 2


class ClockRates:
    """Of one node. error_max: the setting `clock_error_max`."""

    def __init__(self, node: NodeId, error_max: float) -> None:
        self._node, self._error_max = node, error_max
        self._looks: deque[tuple[float, dict[NodeId, Reading]]] = deque(maxlen=KEPT)
        self._last: dict[NodeId, Reading] = {}

    def note(self, at: float, loads: Mapping[NodeId, LoadAnswer], spans: Mapping[NodeId, tuple[float, float]]) -> None:
        """The others answered this. at: now; spans: when each was asked, and had answered; all by the own clock."""
        self._last = {
            name: Reading((begun + ended) / 2, ended - begun, ClockAnswer(name, 0.0, loads[name].at, loads[name].life))
            for name, (begun, ended) in spans.items()
            if name != self._node and name in loads
        }
        if not self._looks or at - self._looks[-1][0] >= EVERY_SECONDS:
            self._looks.append((at, self._last))
        while len(self._looks) > 1 and at - self._looks[1][0] >= WINDOW_SECONDS:
            self._looks.popleft()

    def levels(self, now: float) -> ClockLevels | None:
        """What clients are told; None while too little is known. now: by the own clock."""
        watched = now - self._looks[0][0] if self._looks else 0.0
        if watched < FIRST_SECONDS:
            return None
        found = own_rate(self._looks[0][1], self._last) if watched >= WINDOW_SECONDS else self._of_both_halves(now)
        return None if found is None else ClockLevels(found[0], found[1], self._error_max)

    def _of_both_halves(self, now: float) -> tuple[float, float] | None:
        """By how much it is off in both at least, and how much that may be wrong."""
        half = (self._looks[0][0] + now) / 2
        middle = min(self._looks, key=lambda look: abs(look[0] - half))[1]
        before, after = own_rate(self._looks[0][1], middle), own_rate(middle, self._last)
        if before is None or after is None:
            return None
        least = min(before[0], after[0], key=abs) if before[0] * after[0] > 0 else 0.0
        return least, max(before[1], after[1])
