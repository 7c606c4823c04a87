"""How far behind a replica is in time: when the leader appended what the replica lacks.

Invariant: marks are in order of index and time, and few: when full every second one is dropped, so times stay exact
to the resolution left. It must not know Raft.
"""

from __future__ import annotations

from bisect import bisect_right

MARKS_MAX = 1024


class AppendTimes:
    """(index, seconds) pairs: the leader's log reached `index` at that time."""

    def __init__(self) -> None:
        self._indexes: list[int] = []
        self._times: list[float] = []

    def mark(self, last_index: int, now: float) -> None:
        """The log ends at last_index now."""
        if self._indexes and last_index <= self._indexes[-1]:
            if last_index < self._indexes[-1]:
                keep = bisect_right(self._indexes, last_index)
                del self._indexes[keep:], self._times[keep:]
            return
        self._indexes.append(last_index)
        self._times.append(now)
        if len(self._indexes) > MARKS_MAX:
            del self._indexes[::2], self._times[::2]

    def lag_ms(self, match: int, last: int, now: float) -> float:
        """Milliseconds since the first entry after `match` was appended; 0 when there is none up to `last`."""
        if match >= last or not self._indexes:
            return 0.0
        at = bisect_right(self._indexes, match)
        return max(0.0, now - self._times[min(at, len(self._times) - 1)]) * 1000
