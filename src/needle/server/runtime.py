"""The real clock, threads and chance of a node: what `base.runtime` describes and the simulator replaces.

Invariant: `SystemClock.monotonic` keeps counting while the machine is suspended (leases depend on it), and a pool's
result is delivered on the event loop that asked. Knows nothing of what runs in the threads.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from needle.base.errors import Unavailable

T = TypeVar("T")

_Job = tuple[Callable[..., Any], tuple[object, ...], "asyncio.Future[Any]", asyncio.AbstractEventLoop]

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """The clocks of this machine."""

    def monotonic(self) -> float:
        """Seconds since boot, suspend included where the system can tell (Linux)."""
        return time.clock_gettime(_CLOCK)

    def wall(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()


class ThreadPool:
    """A fixed number of threads that take blocking calls in order; started with the first call.

    Leaner than concurrent.futures on the path that every write takes: one queue, one call back to the loop.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        self._name = name
        self._size = threads
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False

    async def run(self, fn: Callable[..., T], /, *args: object) -> T:
        """Run `fn(*args)` in a thread. If the caller is cancelled the call still runs; its result is dropped."""
        if self._closed:
            raise Unavailable(f"the threads {self._name!r} are stopped")
        if not self._threads:
            self._start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((fn, args, future, loop))
        return await future

    def _start(self) -> None:
        for n in range(self._size):
            thread = threading.Thread(target=self._work, name=f"needle-{self._name}-{n}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            fn, args, future, loop = job
            result: Any = None
            failure: BaseException | None = None
            try:
                result = fn(*args)
            except BaseException as error:  # noqa: BLE001 - a boundary between threads: it is raised by whoever asked
                failure = error
            try:
                loop.call_soon_threadsafe(_deliver, future, result, failure)
            except RuntimeError:
                continue  # the loop was closed meanwhile: nobody waits any more
            del job, fn, args, future, result, failure

    def close(self) -> None:
        """Let the calls that were taken or queued end, then end the threads. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()


def _deliver(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(result)
    elif isinstance(failure, StopIteration):
        future.set_exception(RuntimeError(f"{failure!r} from a thread"))
    else:
        future.set_exception(failure)
