"""Which of many things has the earliest instant, at the cost of what changes, whatever else there is."""

from __future__ import annotations

import heapq
import threading
from typing import Final

SPARE: Final = 64
"""So many instants that count no more are kept at least, before all that count are put in order again."""


class Soonest:
    """Instants by id. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []

    def put(self, id_: int, when: int) -> None:
        """From now on this id has that instant, above 0; 0: it has none."""
        if self._at.get(id_, 0) == when:
            return
        with self._lock:
            if not when:
                del self._at[id_]
                return
            self._at[id_] = when
            heapq.heappush(self._heap, (when, id_))
            if len(self._heap) > 2 * len(self._at) + SPARE:
                self._heap = [(at, one) for one, at in self._at.items()]
                heapq.heapify(self._heap)

    def first(self) -> tuple[int, int] | None:
        """The earliest instant, and whose it is; None if nothing has one."""
        if not self._at:
            return None
        with self._lock:
            while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
                heapq.heappop(self._heap)
            return self._heap[0] if self._heap else None
