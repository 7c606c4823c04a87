"""What a further shard of one node costs a search, in processor time: one node with 1 and with 8 shards that hold the
same vectors, of this checkout and, if there is one, of another, in turns in one run.

    python -m bench.node_shards [--other CHECKOUT] [--rows 8000] [--rounds 5] [--calls 600]

Of each row the least of all rounds counts: what else the machine does only adds to it. Leases last for seconds, so that
they do not run out on a busy machine. The goal is 40 us for each further shard beyond its index work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
DRIVER = (HERE / "bench" / "node_shards_driver.py").read_text(encoding="utf-8")
FEW, MANY = 1, 8
ROWS = (("empty", "leased", 16), ("full", "leased", 16), ("empty", "strong", 16), ("full", "strong", 16))
ALONE = (("empty", "leased", 1), ("full", "leased", 1))
START_SECONDS = 300.0

Measured = dict[str, float]
"""See node_shards_driver.py."""


@asynccontextmanager
async def _driver(checkout: Path, rows: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Of the checkout's modules, whichever Needle this interpreter has."""
    paths = os.pathsep.join((str(checkout / "src"), str(checkout)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DRIVER, str(rows), cwd=checkout, env={**os.environ, "PYTHONPATH": paths},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        await _line(process)
        yield process
    finally:
        if process.stdin is not None and process.returncode is None:
            process.stdin.close()
        await process.wait()


async def _line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    async with asyncio.timeout(START_SECONDS):
        line = await process.stdout.readline()
    if not line:
        raise RuntimeError("the driver has ended; its errors are above")
    return line


async def _measure(process: asyncio.subprocess.Process, shards: int, row: tuple[str, str, int], calls: int) -> Measured:
    assert process.stdin is not None
    what, mode, callers = row
    process.stdin.write(f"{shards} {what} {mode} {callers} {calls}\n".encode())
    found: Measured = json.loads(await _line(process))
    return found


async def run(other: Path | None, rows: int, rounds: int, calls: int) -> None:
    """Print a row for each collection, mode and number of callers."""
    trees = {"this": HERE} if other is None else {"other": other, "this": HERE}
    async with AsyncExitStack() as stack:
        drivers = {name: await stack.enter_async_context(_driver(tree, rows)) for name, tree in trees.items()}
        for row in (*ROWS, *ALONE):
            found: dict[tuple[str, int], list[Measured]] = {}
            for turn in range(rounds + 1):
                for name in sorted(drivers, reverse=turn % 2 == 1):
                    for shards in (FEW, MANY):
                        one = await _measure(drivers[name], shards, row, calls if row[2] > 1 else calls // 4)
                        if turn:  # the first is to warm up
                            found.setdefault((name, shards), []).append(one)
            for name in drivers:
                few, many = (min(found[name, shards], key=_whole) for shards in (FEW, MANY))
                parts = [f"{part} {many[part]:,.0f} (+ {_each(many[part], few[part]):.0f})" for part in many]
                whole = f"{_whole(few):,.0f} and {_whole(many):,.0f} us: + {_each(_whole(many), _whole(few)):.0f}"
                print(f"{' '.join(map(str, row))}, {name}: {whole} a further shard; {', '.join(parts)}", flush=True)


def _whole(measured: Measured) -> float:
    return sum(measured.values())


def _each(many: float, few: float) -> float:
    return (many - few) / (MANY - FEW)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--other", type=Path, help="a checkout of Needle to measure in turns with this one")
    parser.add_argument("--rows", type=int, default=8000, help="vectors in all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=600, help="searches of a round with 16 callers")
    asked = parser.parse_args()
    asyncio.run(run(asked.other and asked.other.resolve(), asked.rows, asked.rounds, asked.calls))


if __name__ == "__main__":
    main()
