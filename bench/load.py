"""A closed-loop load: `clients` callers, each sends its next operation when the last one answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rate:
    """Operations per second and latencies in milliseconds."""

    per_second: float
    p50_ms: float
    p99_ms: float
    operations: int

    def __str__(self) -> str:
        return f"{self.per_second:,.0f}/s (p50 {self.p50_ms:.2f} ms, p99 {self.p99_ms:.2f} ms)"


async def closed_loop(clients: int, seconds: float, operation: Callable[[int], Awaitable[object]]) -> Rate:
    """Run `operation(n)` from `clients` concurrent callers for `seconds`; n is unique. Errors end the benchmark. Raises
    ValueError if no call was begun: there were no callers, or the machine let none of them begin in time."""
    latencies: list[float] = []
    counter = iter(range(1 << 62))
    deadline = time.perf_counter() + seconds

    async def caller() -> None:
        while (start := time.perf_counter()) < deadline:
            await operation(next(counter))
            latencies.append(time.perf_counter() - start)

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(clients)))
    elapsed = time.perf_counter() - begin
    if not latencies:
        text = f"no call of {clients} client(s) was begun within {seconds:g} s"
        raise ValueError(f"{text}: ask with one client or more, for longer, or on a machine that is less busy")
    p50, p99 = np.percentile(np.array(latencies) * 1e3, [50, 99])
    return Rate(len(latencies) / elapsed, float(p50), float(p99), len(latencies))


async def calls(clients: int, count: int, operation: Callable[[int], Awaitable[object]]) -> float:
    """Run `operation(n)` for all n below `count`, `clients` at a time: the seconds that it took."""
    numbers, begin = iter(range(count)), time.perf_counter()

    async def caller() -> None:
        for n in numbers:
            await operation(n)

    await asyncio.gather(*(caller() for _ in range(clients)))
    return time.perf_counter() - begin
