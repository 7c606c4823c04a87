"""Sees when the event loop is held, and by which function.

A thread asks the loop to call back, and looks at how much CPU time the loop's thread took until it did: on a busy
machine the time of the clock would tell about the machine. While the loop is late, its stack is looked at, so that a
stall has a name. Invariant: watching changes nothing on the loop but one empty callback per `interval`.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType

from needle.base.events import LOOP_HELD, tell

STALL_SECONDS = 0.010
INTERVAL_SECONDS = 0.25
LOOK_SECONDS = 0.004
WARN_SECONDS = 0.1
NAMES_MAX = 200
OTHER = "other"


def innermost(frame: FrameType | None, but: tuple[str, ...] = (__name__,)) -> str:
    """The innermost function of this product in a stack, as module:function; "" if there is none. but: prefixes of
    modules that do not count."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("needle.") and not module.startswith(but):
            return f"{module}:{frame.f_code.co_qualname}"
        frame = frame.f_back
    return ""


class LoopWatch:
    """Watches the running loop from `start` to `stop`. stalls: CPU seconds over the bound, by function, and how often.

    Does nothing where the system does not tell a thread's CPU time (macOS).
    """

    def __init__(self, *, interval: float = INTERVAL_SECONDS) -> None:
        """interval: seconds between two looks."""
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._ident = threading.get_ident()
        self._called = threading.Event()
        self._ended = threading.Event()
        self._took = 0.0
        self._waited = 0.0
        self._thread = threading.Thread(target=self._watch, name="needle-loop-watch", daemon=True)
        self.seconds: dict[str, float] = {}
        self.times: Counter[str] = Counter()
        self.longest = 0.0
        self.on_lag: Callable[[float], None] = lambda _: None
        """Told, in the watching thread, how many seconds the loop took to call back."""

    def start(self) -> None:
        """Begin to watch the loop that runs in this thread."""
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(self._ident)
            self._thread.start()

    def stop(self) -> None:
        """End the thread. Idempotent."""
        self._ended.set()
        self._called.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            self._called.clear()
            asked, since = time.clock_gettime(self._clock), time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self._call, asked, since)
            except RuntimeError:
                return  # the loop is closed
            seen = self._look(asked)
            if not self._ended.is_set():
                self.on_lag(self._waited)
            if self._took > STALL_SECONDS and not self._ended.is_set():
                self._note(seen.most_common(1)[0][0] if seen else OTHER, self._took)

    def _call(self, asked: float, since: float) -> None:
        self._took = time.clock_gettime(self._clock) - asked
        self._waited = time.monotonic() - since
        self._called.set()

    def _look(self, asked: float) -> Counter[str]:
        """What the loop's thread does until it calls back."""
        seen: Counter[str] = Counter()
        while not self._called.wait(LOOK_SECONDS):
            if self._ended.is_set():  # `stop` waits for this thread in the loop's own, which cannot call back
                break
            if time.clock_gettime(self._clock) - asked > STALL_SECONDS / 2:
                frame = sys._current_frames().get(self._ident)
                if name := innermost(frame):
                    seen[name] += 1
                del frame
        return seen

    def _note(self, name: str, seconds: float) -> None:
        if name not in self.times and len(self.times) >= NAMES_MAX:
            name = OTHER
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.times[name] += 1
        self.longest = max(self.longest, seconds)
        if seconds > WARN_SECONDS:
            tell(LOOP_HELD, milliseconds=1000 * seconds, function=name)
