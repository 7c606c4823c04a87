"""How much faster a node's clock for durations runs than those of its cluster, by minutes of readings of the others.

Invariants: what may come of the time that a reading was under way is never told as a fault of the clock; of fewer than
WINDOW_SECONDS nothing is told. Bounded: a reading of each node every EVERY_SECONDS. Pure.
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
        if not self._looks or now - self._looks[0][0] < WINDOW_SECONDS:
            return None
        found = own_rate(self._looks[0][1], self._last)
        return None if found is None else ClockLevels(found[0], found[1], self._error_max)
