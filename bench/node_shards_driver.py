"""Run by `python -c` with the modules of any checkout of Needle: starts one node for each number of shards, loads the
same vectors into each, and answers each line "SHARDS WHAT MODE CALLERS CALLS" with the processor time of one search.
bench/node_shards.py starts one for each checkout.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time

import numpy as np

from bench.cluster import ShardedNodes, Spent

SHARDS, DIMENSIONS, K = (1, 8), 64, 10
SETTINGS = {"election_timeout": 6.0, "heartbeat_interval": 0.1, "lease_timeout": 3.0}
"""Leases of some seconds: on a busy machine shorter ones run out, and what is measured then are rounds."""
IDLE_SECONDS = 1.0


class _Idle:
    """What a node uses in a second when nobody calls it: loop, threads."""

    def __init__(self, before: Spent, after: Spent) -> None:
        self.loop, self.threads = after.loop - before.loop, after.threads - before.threads


async def _measured(nodes, idle: _Idle, vectors, what: str, mode: str, callers: int, calls: int) -> dict[str, float]:
    """Microseconds of processor time of one search: of this process, of the node's event loop and of its threads."""
    (pid,), left = nodes.pids().values(), iter(range(calls))

    async def caller() -> None:
        for n in left:
            found = await nodes.client.search(
                vectors[n % len(vectors)], K, collection=what, mode=mode, with_metadata=False, timeout=60
            )
            assert len(found) == (0 if what == "empty" else K), len(found)

    own, before, began = time.process_time(), Spent.by(pid), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    client, after, took = time.process_time() - own, Spent.by(pid), time.perf_counter() - began
    share = 1e6 / calls
    return {
        "client": client * share,
        "loop": (after.loop - before.loop - idle.loop * took) * share,
        "threads": (after.threads - before.threads - idle.threads * took) * share,
    }


async def main(rows: int) -> None:
    """Entry point. rows: how many vectors the collection `full` has in all."""
    vectors = np.random.default_rng(1).standard_normal((rows, DIMENSIONS)).astype(np.float32)
    async with contextlib.AsyncExitStack() as stack:
        of = {}
        for shards in SHARDS:
            of[shards] = await stack.enter_async_context(ShardedNodes(shards, nodes=1, **SETTINGS))
            await of[shards].client.create_collection("empty", dimensions=DIMENSIONS, timeout=60)
            await of[shards].load("full", vectors)
        idle = {}
        for shards, nodes in of.items():
            (pid,) = nodes.pids().values()
            before = Spent.by(pid)
            await asyncio.sleep(IDLE_SECONDS)
            idle[shards] = _Idle(before, Spent.by(pid))
        print("ready", flush=True)
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            shards, what, mode, callers, calls = line.split()
            at = int(shards)
            found = await _measured(of[at], idle[at], vectors, what, mode, int(callers), int(calls))
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
