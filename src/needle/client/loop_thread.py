"""An event loop in a thread of its own, for callers without one.

Invariant: whoever waits for a call is told its outcome, or that there will be none: when the thread has ended, and when
its loop has not turned for STUCK_LOOKS looks. It must not know what a call is.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from needle.base.errors import ClientClosed, OutcomeUnknown, Unavailable

T = TypeVar("T")

CLOSE_SECONDS = 5.0
LOOK_SECONDS = 1.0
STUCK_LOOKS = 10


class LoopThread:
    """Runs coroutines for other threads. A daemon: it does not keep the interpreter from ending."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="needle-client", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        loop = self.loop
        loop.run_forever()
        # Calls of other threads: the client is closed, so they end by themselves; what does not is cancelled.
        for cancel in (False, True):
            left = asyncio.all_tasks(loop)
            for task in left if cancel else ():
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=CLOSE_SECONDS / 5))
        loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for its result. An interrupt (Ctrl-C) cancels it."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise Unavailable("called from the client's own loop")
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:  # the loop is closed
            coroutine.close()
            raise ClientClosed("this client is closed") from None
        try:
            return self._wait(future)
        except BaseException:
            future.cancel()
            raise

    def _wait(self, future: concurrent.futures.Future[T]) -> T:
        turned = threading.Event()
        missed = 0
        while True:
            # Not result(timeout): a call may end with a TimeoutError of its own, such as an iterator's that it reads.
            concurrent.futures.wait((future,), LOOK_SECONDS)
            if future.done():
                try:
                    return future.result()
                except concurrent.futures.CancelledError:
                    raise _no_outcome("the client was closed before the call ended") from None
            if not self._thread.is_alive() and not future.done():
                raise _no_outcome("the client's thread has ended")
            missed = 0 if turned.is_set() else missed + 1
            if missed > STUCK_LOOKS:
                raise _no_outcome(f"the client's event loop has not turned for {missed * LOOK_SECONDS:g} s")
            turned.clear()
            self._ask_for_a_turn(turned)

    def _ask_for_a_turn(self, turned: threading.Event) -> None:
        try:
            self.loop.call_soon_threadsafe(turned.set)
        except RuntimeError:
            turned.set()  # it was closed just now: the next look says so

    def stop(self) -> None:
        """End the loop and its thread. Idempotent; from the loop's own thread it returns before that."""
        try:
            self.loop.call_soon_threadsafe(self.loop.stop)
        except RuntimeError:
            return  # it is closed
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_SECONDS)


def _no_outcome(why: str) -> OutcomeUnknown:
    return OutcomeUnknown(f"{why}; if it was a write, it may or may not have taken effect")
