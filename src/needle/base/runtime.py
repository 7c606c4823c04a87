"""Time, randomness and threads as arguments.

Code below `needle.server` never calls `time`, `random` or `threading` itself: it is handed these protocols, so that
the whole node runs under simulation with one seed. `asyncio` is used for scheduling only; the simulator supplies its
own event loop.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]


class Clock(Protocol):
    """The clocks of one node."""

    def monotonic(self) -> float:
        """Seconds that never go back and keep counting through suspend (CLOCK_BOOTTIME): leases depend on it."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch. For people and logs; nothing but when a document expires may depend on it."""
        ...


def micros_of(clock: Clock) -> int:
    """Microseconds since 1970 by a node's clock."""
    return int(clock.wall() * 1_000_000)


class Rng(Protocol):
    """A seeded source of randomness; `random.Random` fits."""

    def random(self) -> float:
        """A float in [0, 1)."""
        ...

    def uniform(self, a: float, b: float) -> float:
        """A float in [a, b]."""
        ...

    def getrandbits(self, k: int, /) -> int:
        """An integer of k random bits."""
        ...


class Pool(Protocol):
    """Threads for blocking calls (fsync, SQLite, faiss). The simulator runs them inline."""

    async def run(self, fn: Callable[..., T], /, *args: object) -> T:
        """Run `fn(*args)` off the event loop and return its result; its exception is raised here unchanged."""
        ...

    def call(self, done: Done, fn: Callable[..., Any], /, *args: object, quick: bool = False) -> None:
        """Run `fn(*args)` and call `done(result, None)` or `done(None, exception)` on the event loop: `run` without a
        task. quick: it is expected to take well below a millisecond; then it may be run, and `done` called, before
        this returns."""
        ...

    def close(self) -> None:
        """Wait for running calls, then stop the threads. Idempotent."""
        ...


class Repeating(Protocol):
    """A thread that looks at something at a pace: no turn of the event loop, and no other thread, is needed for it."""

    async def repeat(self, every: float, fn: Callable[[], None]) -> None:
        """Run `fn()` off the event loop every `every` seconds, until it raises, which is raised here, or the thread is
        stopped, or this is cancelled: then a call that runs still ends."""
        ...

    def close(self) -> None:
        """Wait for a call that runs, then stop the thread. Nothing is repeated any more. Idempotent."""
        ...


Blocking = Callable[..., Awaitable[Any]]
"""Runs a function in a thread: Pool.run, asyncio.to_thread."""


async def beside(blocking: Blocking | None, fn: Callable[..., T], *arguments: object) -> T:
    """Run a function in a thread, or at once if there is none for it."""
    if blocking is None:
        return fn(*arguments)
    result: T = await blocking(fn, *arguments)
    return result
