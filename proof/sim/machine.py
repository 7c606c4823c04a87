"""What one simulated machine offers a node: clocks with error, and thread pools that run inline.

Invariant: the monotonic clock never goes back while the machine runs, and keeps counting while a process is paused or
suspended (base/runtime.py: CLOCK_BOOTTIME). It must not know the node.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from needle.base.instants import rfc3339
from needle.base.runtime import Done
from proof.sim.event_loop import SimLoop
from proof.sim.process import Process

T = TypeVar("T")

WALL_EPOCH = 1_700_000_000.0


def stream(seed: int, *names: object) -> random.Random:
    """An independent source of randomness for each name; the same on every platform and under every PYTHONHASHSEED."""
    return random.Random("/".join(str(part) for part in (seed, *names)))


def instant_at(seconds: float) -> str:
    """The instant of a virtual time, as clocks without error show it."""
    return rfc3339(int((WALL_EPOCH + seconds) * 1_000_000))


class SimClock:
    """The clocks of one machine. rate_error: fraction by which the oscillator runs fast (negative: slow)."""

    def __init__(self, loop: SimLoop, rate_error: float = 0.0, offset: float = 0.0) -> None:
        self._loop = loop
        self._base_true = loop.time()
        self._base_local = offset
        self._rate = 1.0 + rate_error
        self.wall_offset = 0.0

    def monotonic(self) -> float:
        return self._base_local + (self._loop.time() - self._base_true) * self._rate

    def wall(self) -> float:
        return WALL_EPOCH + self._loop.time() + self.wall_offset

    def set_rate(self, rate_error: float) -> None:
        """Change the rate from now on, without a step."""
        self._base_local, self._base_true = self.monotonic(), self._loop.time()
        self._rate = 1.0 + rate_error

    def jump(self, seconds: float) -> None:
        """Step the monotonic clock forward: outside of what leased reads are promised for."""
        if seconds < 0:
            raise ValueError("a monotonic clock never goes back")
        self._base_local += seconds


class Device(Protocol):
    """What a blocking call waits for."""

    def latency(self) -> tuple[float, float]:
        """Seconds before the call takes effect, and after."""
        ...

    def hold(self, resume: Callable[[], None]) -> bool:
        """True if the device is stalled; `resume` is called once it is not."""
        ...


class SimPool:
    """A pool of one thread in virtual time: calls take effect in order, each after the device's latency.

    As with a real thread, cancelling the caller does not stop the call, and a call whose process dies between effect
    and answer has happened.
    """

    def __init__(self, loop: SimLoop, process: Process, device: Device | None = None) -> None:
        self._loop = loop
        self._process = process
        self._device = device
        self._free_at = 0.0
        self._closed = False

    async def run(self, fn: Callable[..., T], /, *args: object) -> T:
        future: asyncio.Future[T] = self._loop.create_future()
        self._submit(future, fn, args)
        return await future

    async def repeat(self, every: float, fn: Callable[[], None]) -> None:
        """See base.runtime.Repeating."""
        while True:
            await asyncio.sleep(every)
            await self.run(fn)

    def call(self, done: Done, fn: Callable[..., Any], /, *args: object, quick: bool = False) -> None:
        """quick changes nothing here: a call that is made at once has no latency, and that is drawn, too."""
        future: asyncio.Future[Any] = self._loop.create_future()
        future.add_done_callback(partial(_tell, done), context=self._process.context)
        self._submit(future, fn, args)

    def _submit(self, future: asyncio.Future[T], fn: Callable[..., T], args: tuple[object, ...]) -> None:
        self._process.fence()
        if self._closed:
            raise RuntimeError("pool is closed")
        before, after = self._device.latency() if self._device is not None else (0.0, 0.0)
        begin = max(self._loop.time(), self._free_at) + before
        self._free_at = begin + after
        if begin > self._loop.time():
            self._loop.call_at(begin, self._execute, future, fn, args, after, context=self._process.context)
        else:
            self._loop.call_soon(self._execute, future, fn, args, after, context=self._process.context)

    def _execute(self, future: asyncio.Future[T], fn: Callable[..., T], args: tuple[object, ...], after: float) -> None:
        if self._device is not None and self._device.hold(lambda: self._resume(future, fn, args, after)):
            return
        try:
            result = self._loop.excused(fn, *args)
        except Exception as error:  # noqa: BLE001  # handed to the awaiting caller, unchanged
            self._answer(after, self._fail, future, error)
        else:
            self._answer(after, self._succeed, future, result)

    def _resume(self, future: asyncio.Future[T], fn: Callable[..., T], args: tuple[object, ...], after: float) -> None:
        self._loop.call_soon(self._execute, future, fn, args, after, context=self._process.context)

    def _answer(self, after: float, how: Callable[..., None], future: asyncio.Future[T], value: object) -> None:
        if after > 0:
            self._loop.call_later(after, how, future, value, context=self._process.context)
        else:
            how(future, value)

    @staticmethod
    def _succeed(future: asyncio.Future[T], value: T) -> None:
        if not future.done():
            future.set_result(value)

    @staticmethod
    def _fail(future: asyncio.Future[T], error: Exception) -> None:
        if not future.done():
            future.set_exception(error)

    def close(self) -> None:
        self._closed = True


def _tell(done: Done, future: asyncio.Future[Any]) -> None:
    error = future.exception()
    done(None if error is not None else future.result(), error)
