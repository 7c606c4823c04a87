"""The real clock, threads and randomness of a node: what `base.runtime` describes and the simulator replaces.

Invariant: `SystemClock.monotonic` keeps counting while the machine is suspended (leases depend on it), and a pool's
result is delivered on the event loop that asked. Knows nothing of what runs in the threads.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import queue
import stat
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from needle.base.errors import Unavailable
from needle.base.runtime import Done

T = TypeVar("T")

log = logging.getLogger("needle.server")

_Job = tuple[Callable[..., Any], tuple[object, ...], Done, asyncio.AbstractEventLoop]

QUICK_SECONDS = 0.002
"""A call that is said to be quick is made on the event loop itself while calls like it took less than this."""
QUICK_CALLS = 16
"""Of so many calls the mean counts: after a stall of 50 ms the threads take the next 19."""

_M_ARENA_MAX = -8
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
"""None on Windows."""


def usable_cores() -> int:
    """That this process may run on: those of the machine, less what it was kept from (taskset, a cpuset of its
    container; Linux)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def warn_if_public(what: str, path: str) -> None:
    """Say in the log that every user of this machine can read a file with a secret in it, if it is so. what: the
    setting that names it. Blocking. Whoever needs the file says what else is wrong with it."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if mode & stat.S_IROTH:
        log.warning("every user of this machine can read %s = %r, which has a secret in it: chmod 600", what, path)


def share_one_heap() -> None:
    """Have all threads of this process allocate from one heap (glibc; elsewhere, and where MALLOC_ARENA_MAX says
    otherwise, nothing happens). Call it before threads are started.

    By default each thread gets one or shares one of eight per core, and what a bulk load frees in one is of no use to
    the others: 80 of 120 MB lay idle after 100,000 x 384. A node's threads rarely allocate at the same time.
    """
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, 1)


class SystemClock:
    """The clocks of this machine."""

    monotonic = staticmethod(time.monotonic if _CLOCK is None else partial(time.clock_gettime, _CLOCK))
    """Seconds since boot, suspend included where the system can tell (Linux). Each request asks some times, so there is
    no frame of Python around it."""

    def wall(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()


def thread_seconds() -> float:
    """Processor time of the calling thread."""
    return time.thread_time()


class ThreadPool:
    """A fixed number of threads that take blocking calls in order; started with the first call.

    Leaner than concurrent.futures on the path that every write takes: one queue, one call back to the loop. A change of
    threads costs about as much as the small calls themselves (measured: ADR 0009), so those that are quick, and were
    quick lately, are made at once. One that stalls is late once; for a while the threads take the next ones.
    """

    def __init__(self, name: str, threads: int = 1, *, nice: int = 0) -> None:
        """nice: added to the threads' niceness where the system can (Linux): background work yields to writes."""
        self._name = name
        self._size = threads
        self._nice = nice
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._repeats: set[threading.Event] = set()
        self._running = 0  # calls handed to threads and not yet answered
        self._takes = 2 * QUICK_SECONDS  # what quick calls took lately, in seconds

    async def run(self, fn: Callable[..., T], /, *args: object) -> T:
        """Run `fn(*args)` in a thread. If the caller is cancelled the call still runs; its result is dropped."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self.call(partial(_deliver, future), fn, *args)
        try:
            return await future
        finally:
            del future  # it holds the exception, whose traceback holds this frame: what `fn` held would live on

    async def repeat(self, every: float, fn: Callable[[], None]) -> None:
        """See base.runtime.Repeating. Takes one of the threads for as long as it goes on."""
        ended = threading.Event()
        self._repeats.add(ended)
        try:
            await self.run(_repeat, ended, every, fn)
        finally:
            self._repeats.discard(ended)
            ended.set()

    def call(self, done: Done, fn: Callable[..., Any], /, *args: object, quick: bool = False) -> None:
        """See base.runtime.Pool. Raises Unavailable after `close`."""
        if self._closed:
            raise Unavailable(f"the threads {self._name!r} are stopped")
        if quick:
            if not self._running and self._takes < QUICK_SECONDS:
                done(*self._timed(fn, *args))
                return
            fn, args = self._timed, (fn, *args)
            done = partial(_unpack, done)
        if not self._threads:
            self._start()
        self._running += 1
        self._jobs.put((fn, args, done, asyncio.get_running_loop()))

    def _timed(self, fn: Callable[..., Any], *args: object) -> tuple[Any, BaseException | None]:
        started = time.perf_counter()
        try:
            return fn(*args), None
        except Exception as error:  # noqa: BLE001 - it is handed to `done`
            return None, error
        finally:
            self._takes += (time.perf_counter() - started - self._takes) / QUICK_CALLS

    def _start(self) -> None:
        for n in range(self._size):
            thread = threading.Thread(target=self._work, name=f"needle-{self._name}-{n}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _work(self) -> None:
        if self._nice and sys.platform == "linux":  # elsewhere niceness is the whole process's
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + self._nice)
        while (job := self._jobs.get()) is not None:
            fn, args, done, loop = job
            result: Any = None
            failure: BaseException | None = None
            try:
                result = fn(*args)
            except BaseException as error:  # noqa: BLE001 - a boundary between threads: it is raised by whoever asked
                failure = error
            try:
                loop.call_soon_threadsafe(self._answer, done, result, failure)
            except RuntimeError:
                continue  # the loop was closed meanwhile: nobody waits any more
            del job, fn, args, done, result, failure

    def _answer(self, done: Done, result: Any, failure: BaseException | None) -> None:
        self._running -= 1
        done(result, failure)

    def close(self) -> None:
        """Let the calls that were taken or queued end, then end the threads. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for ended in list(self._repeats):
            ended.set()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()


def _repeat(ended: threading.Event, every: float, fn: Callable[[], None]) -> None:
    while not ended.wait(every):
        fn()


def _unpack(done: Done, answer: tuple[Any, BaseException | None] | None, failure: BaseException | None) -> None:
    done(*(answer or (None, failure)))


def _deliver(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(result)
    elif isinstance(failure, StopIteration):
        future.set_exception(RuntimeError(f"{failure!r} from a thread"))
    else:
        future.set_exception(failure)
