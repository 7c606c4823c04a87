"""Run by `python -c` in any checkout of Needle, whose modules it finds then: founds three nodes, loads vectors, and
answers each line "WHAT CALLERS SECONDS" with a rate and the processor time of one call. bench/beside.py starts two.

It uses what all releases have: `bench.cluster.NeedleCluster` of the checkout it runs in, `insert`, `insert_batch` and
`search`. Searches name their `ef_search`: the beams that are usual are another matter than the road.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from bench.cluster import NeedleCluster

DIMENSIONS, INNER, LOADED, EF_SEARCH = 112, 12, 4000, 64
SETTINGS = {"election_timeout": 0.6, "heartbeat_interval": 0.1}
SETTLED_SECONDS = 4.0
"""Until index files are built and elections are over."""
MODES = {"strong", "leased", "eventual"}


def _vectors(count: int) -> np.ndarray:
    """Shape (count, DIMENSIONS): as embeddings are, near a space of fewer dimensions, so that every release finds most
    nearest neighbours with this beam, and none widens it."""
    rng = np.random.default_rng(1)
    inner = rng.standard_normal((count, INNER)) @ rng.standard_normal((INNER, DIMENSIONS))
    return (inner + 0.1 * rng.standard_normal((count, DIMENSIONS))).astype(np.float32)


def _nodes() -> list[int]:
    """The processes that this one has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if parent == os.getpid() and b"resource_tracker" not in command:
            found.append(int(stat.parent.name))
    return found


def _spent(pids: list[int]) -> float:
    """Seconds of processor time."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _resident(pids: list[int]) -> float:
    """MB."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def _measured(client, vectors, what: str, callers: int, seconds: float) -> dict[str, float]:
    """Calls a second; microseconds of a call for this process and for the nodes; the nodes' MB."""
    numbers, done = itertools.count(), 0
    until = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < until:
            n = next(numbers)
            vector = vectors[n % len(vectors)]
            if what == "writes":
                await client.insert(f"w{n % 20_000}", vector, {})
            else:
                await client.search(vector, k=10, mode=what, ef_search=EF_SEARCH)
            done += 1

    nodes = _nodes()
    began, own, theirs = time.perf_counter(), time.process_time(), _spent(nodes)
    if what == "idle":
        await asyncio.sleep(seconds)
    else:
        await asyncio.gather(*(caller() for _ in range(callers)))
    took = time.perf_counter() - began
    share = 1e6 / max(done, 1)
    return {
        "rate": done / took,
        "client": (time.process_time() - own) * share,
        "nodes": (_spent(nodes) - theirs) * share,
        "busy": (_spent(nodes) - theirs) / took,
        "megabytes": _resident(nodes),
    }


async def main() -> None:
    """Entry point."""
    vectors = _vectors(2 * LOADED)
    with NeedleCluster(dimensions=DIMENSIONS, **SETTINGS) as cluster:
        client = await cluster.client()
        for first in range(0, LOADED, 500):
            await client.insert_batch([(f"s{n}", vectors[n], {}) for n in range(first, first + 500)])
        await cluster.caught_up(client)
        await asyncio.sleep(SETTLED_SECONDS)
        print("ready", flush=True)
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            what, callers, seconds = line.split()
            print(json.dumps(await _measured(client, vectors, what, int(callers), float(seconds))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
