"""What somebody has to look at, now or at a later time: each thing once, whatever else there is."""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Final

from needle.base.runtime import Clock

WAIT_MIN_SECONDS: Final = 0.001
"""So that a date that rounding puts a moment ahead is not asked about again and again."""


class Agenda:
    """Ids to look at. A call costs what it adds or takes (and a logarithm)."""

    def __init__(self) -> None:
        self._now: set[int] = set()
        self._at: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []

    def add(self, ids: Iterable[int]) -> None:
        """Look at these as soon as possible."""
        self._now.update(ids)

    def later(self, id_: int, when: float) -> None:
        """Look at this one at `when`, or when `add` asks for it before."""
        self._at[id_] = when
        heapq.heappush(self._heap, (when, id_))

    def take(self, now: float) -> list[int]:
        """What is due, ascending; it is off the agenda, and so are its later dates."""
        while self._heap and self._heap[0][0] <= now:
            when, id_ = heapq.heappop(self._heap)
            if self._at.get(id_) == when:
                self._now.add(id_)
        due, self._now = sorted(self._now), set()
        for id_ in due:
            self._at.pop(id_, None)
        return due

    def wait(self, now: float) -> float | None:
        """Seconds until something is due; None: nothing is."""
        if self._now:
            return 0.0
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return max(0.0, self._heap[0][0] - now) if self._heap else None

    def clear(self) -> None:
        """Nothing is to be looked at any more."""
        self._now.clear()
        self._at.clear()
        self._heap.clear()


class Changed:
    """Ids that changed since somebody took them last; all, to begin with. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: set[int] | None = None

    def note(self, *ids: Iterable[int]) -> None:
        with self._lock:
            if self._ids is not None:
                self._ids.update(*ids)

    def everything(self) -> None:
        with self._lock:
            self._ids = None

    def take(self) -> Collection[int] | None:
        """None: all of them changed."""
        with self._lock:
            changed, self._ids = self._ids, set()
        return changed


async def until_due(wanted: asyncio.Event, agenda: Agenda, clock: Clock) -> None:
    """Wait until something on the agenda is due, or `wanted` is set; clears that."""
    due = agenda.wait(clock.monotonic())
    if due is None:
        await wanted.wait()
    elif due > 0:
        await _wait(wanted, due)
    wanted.clear()


async def _wait(event: asyncio.Event, timeout: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(max(timeout, WAIT_MIN_SECONDS)):
            await event.wait()
