"""Measures the CPU time of each callback of a node's event loop: one that holds it too long is a violation.

Heartbeats and votes of all groups wait while a callback runs, which virtual time does not show. What a node runs in
threads, and what the simulation itself does inside a callback, does not count; nor do passes of Python's garbage
collector, which walk the objects of all nodes and checkers here. CPU time is the one thing here that is not drawn from
the seed, so the bound is far above what callbacks take: it finds work that grows, not slow machines.
Invariant: measuring changes nothing. While a callback runs a profiling timer looks at its stack, to name the function;
a time in which it should have looked several times and never did is no work, but a jump of a virtual machine's clock.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

from needle.server.machine.loop_watch import innermost

CHECKER = "event loop"
STALL_SECONDS = 0.05
LOOK_SECONDS = 0.01
OURS = ("proof.sim.", "needle.server.machine.loop_watch")


class StallMeter:
    """limit: CPU seconds. on_stall: told the function and the seconds, after the callback."""

    def __init__(self, on_stall: Callable[[str, float], None], limit: float = STALL_SECONDS) -> None:
        self._on_stall = on_stall
        self._limit = limit
        self._excused = 0.0
        self._depth = 0
        self._seen: Counter[str] = Counter()
        self._looks = 0
        self.longest = 0.0
        self._before: Any = None
        self._collecting = 0.0

    def run(self, handle: asyncio.Handle) -> None:
        """Run one callback of a node."""
        self._excused = 0.0
        began = time.thread_time()
        handle._run()
        took = time.thread_time() - began - self._excused
        if took > self.longest:
            self.longest = took
        if took > self._limit and (self._looks or self._before is None):
            name = self._seen.most_common(1)[0][0] if self._seen else repr(handle)
            self._on_stall(name, took)
        self._looks = 0
        if self._seen:
            self._seen.clear()

    def excused(self, work: Callable[..., Any], *args: object) -> Any:
        """Run what is not the loop's work: a thread's, or a checker's."""
        if self._depth:
            return work(*args)
        began = time.thread_time()
        self._depth += 1
        try:
            return work(*args)
        finally:
            self._depth -= 1
            self._excused += time.thread_time() - began

    # --- naming ------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Begin to look at stacks, which only the main thread may, and at the garbage collector."""
        self._thread = threading.get_ident()
        gc.callbacks.append(self._collected)
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGPROF, self._look)
            signal.setitimer(signal.ITIMER_PROF, LOOK_SECONDS, LOOK_SECONDS)

    def stop(self) -> None:
        """End it."""
        if self._collected in gc.callbacks:
            gc.callbacks.remove(self._collected)
        if self._before is not None:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, self._before)
            self._before = None

    def _collected(self, phase: str, _: dict[str, int]) -> None:
        if threading.get_ident() != self._thread:
            return
        if phase == "start":
            self._collecting = time.thread_time()
        elif not self._depth:
            self._excused += time.thread_time() - self._collecting

    def _look(self, _: int, frame: FrameType | None) -> None:
        if self._depth:
            return
        self._looks += 1
        if name := innermost(frame, OURS):
            self._seen[name] += 1
