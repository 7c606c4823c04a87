"""This checkout beside another one of Needle, in one run on one machine: both have three nodes and one shard, and take
turns in short slices, so that what the machine does otherwise is the same for both. A ratio is the median over turns.

The other checkout needs a `.venv` of its own (`make .venv/.installed` there).
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bench.report import Report

HERE = Path(__file__).resolve().parents[1]
DRIVER = (HERE / "bench" / "beside_driver.py").read_text(encoding="utf-8")
GOAL, IDLE_GOAL = 0.95, 1.05
CALLERS = {"strong": (1, 16, 64), "leased": (1, 16, 64), "eventual": (1, 16, 64), "writes": (1, 64, 256)}
"""Writes last: how many index files there are after them is chance, and a search costs by that."""
START_SECONDS = 180.0
SETTLED_SECONDS = 20.0
"""Without calls, before what idle nodes take is measured."""

Slice = dict[str, float]
"""See beside_driver.py."""


class Driven:
    """One checkout's driver."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def measure(self, what: str, callers: int, seconds: float) -> Slice:
        """One slice."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {callers} {seconds}\n".encode())
        found: Slice = json.loads(await self.line())
        return found

    async def line(self) -> bytes:
        """What it says next. Raises RuntimeError once it has ended."""
        assert self._process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the driver has ended; its errors are above")
        return line


@asynccontextmanager
async def _driven(checkout: Path) -> AsyncIterator[Driven]:
    python = checkout / ".venv" / "bin" / "python"
    process = await asyncio.create_subprocess_exec(
        python, "-c", DRIVER, cwd=checkout, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        driven = Driven(process)
        await driven.line()
        yield driven
    finally:
        if process.stdin is not None and process.returncode is None:
            process.stdin.write(b"\n")
            process.stdin.close()
        await process.wait()


async def run(report: Report, *, quick: bool, other: Path) -> None:
    """Adds rates of writes and searches with few and many callers, and what three idle nodes take."""
    seconds, turns = (1.0, 3) if quick else (3.0, 7)
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(_driven(HERE))
        theirs = await stack.enter_async_context(_driven(other))
        for what, counts in CALLERS.items():
            for callers in counts:
                await _compare(report, ours, theirs, what, callers, seconds, turns)
        await _idle(report, ours, theirs, seconds, turns)


async def _idle(report: Report, ours: Driven, theirs: Driven, seconds: float, turns: int) -> None:
    """Of both in the same moments, once both have done what the writes left to do: who was measured first still built
    index files for them, and the other one did not."""

    async def both(for_: float) -> tuple[Slice, Slice]:
        return await asyncio.gather(ours.measure("idle", 0, for_), theirs.measure("idle", 0, for_))

    await both(SETTLED_SECONDS)
    pairs = [await both(2 * seconds) for _ in range(turns)]
    for name, unit, key, factor in (("CPU", "% of a core", "busy", 100.0), ("memory", "MB", "megabytes", 1.0)):
        here, there = (factor * statistics.median(pair[which][key] for pair in pairs) for which in (0, 1))
        ratio = statistics.median(mine[key] / max(its[key], 1e-9) for mine, its in pairs)
        report.row(f"idle: {name} of three nodes", f"{here:.1f} {unit}", f"{there:.1f} {unit}")
        report.ratio(ratio, f"{IDLE_GOAL}, less is better", ok=ratio <= IDLE_GOAL)


async def _compare(
    report: Report, ours: Driven, theirs: Driven, what: str, callers: int, seconds: float, turns: int
) -> None:
    pairs: list[tuple[Slice, Slice]] = []
    for turn in range(turns + 1):
        if turn % 2:
            mine = await ours.measure(what, callers, seconds)
            its = await theirs.measure(what, callers, seconds)
        else:
            its = await theirs.measure(what, callers, seconds)
            mine = await ours.measure(what, callers, seconds)
        if turn:  # the first is to warm up
            pairs.append((mine, its))

    def middle(key: str, which: int) -> float:
        return statistics.median(pair[which][key] for pair in pairs)

    ratio = statistics.median(mine["rate"] / its["rate"] for mine, its in pairs)
    words = [
        f"{middle('rate', n):,.0f}/s; CPU {middle('client', n):.0f} us client, {middle('nodes', n):.0f} us nodes"
        for n in (0, 1)
    ]
    report.row(f"{what}, {callers} callers", *words)
    report.ratio(ratio, f"{GOAL}", ok=ratio >= GOAL)


def check(other: str | None) -> Path:
    """The other checkout. Exits for one that cannot be measured."""
    if other is None or not (Path(other) / ".venv" / "bin" / "python").exists():
        sys.exit(f"--other {other}: a checkout of Needle with a .venv of its own is needed")
    return Path(other).resolve()
