"""What leaving metrics on costs: processor time of a search and of a write with and without, and of a scrape.

Three nodes in this process, with one shard of three replicas. What observes calls, log writes and routed searches is
taken off all nodes and put back, in turns, in one order and then in the other; what is told is the median of the
rounds, by the processor time of the whole process, client and all, which others on the machine change little. A scrape
is read over HTTP, once each node.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import Report
from needle.connecting import connect
from needle.distributed import RaftCluster, RaftConfig
from needle.local.free_ports import free_ports
from needle.server.node import Node

DIMENSIONS, ROWS, K = 112, 5000, 10
SCRAPES = 20
SCRAPE_SECONDS = 15.0
"""How often a Prometheus asks by the rules of deploy/."""


async def run(report: Report, *, quick: bool) -> None:
    """Adds rows for a search, a write and a scrape."""
    rounds, searches, writes = (6, 200, 100) if quick else (12, 400, 200)
    vectors = np.random.default_rng(1).standard_normal((ROWS, DIMENSIONS), dtype=np.float32)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="needle-bench-")))
        nodes, doors, addresses = await _nodes(stack, directory)
        client = await stack.enter_async_context(connect(addresses))
        for at in range(0, ROWS, 1000):
            ids = [f"v{n}" for n in range(at, at + 1000)]
            await client.insert_batch(ids=ids, vectors=vectors[at : at + 1000], timeout=120.0)

        def search(n: int) -> Awaitable[object]:
            return client.search(vectors[n % ROWS], K, mode="leased", timeout=60.0)

        def write(n: int) -> Awaitable[object]:
            return client.insert(f"v{n % ROWS}", vectors[n % ROWS], {"n": n}, timeout=60.0)

        await _quiet()
        switches = [_Switch(node) for node in nodes]
        await _pairs(report, "a leased search", switches, search, searches, rounds)
        await _pairs(report, "a write", switches, write, writes, rounds)
        await _scrapes(report, doors)


async def _nodes(stack: AsyncExitStack, directory: Path) -> tuple[list[Node], list[str], list[str]]:
    """With their addresses for HTTP and for clients."""
    ports = free_ports(6)
    names = {f"node-{n}": f"127.0.0.1:{port}" for n, port in enumerate(ports[:3], 1)}
    nodes, doors = [], []
    for (name, address), port in zip(names.items(), ports[3:], strict=True):
        config = RaftConfig(
            node_id=name,
            listen=address,
            http_address=f"127.0.0.1:{port}",
            data_dir=str(directory / name),
            cluster_nodes=[f"{other}={at}" for other, at in names.items()],
            dimensions=DIMENSIONS,
        )
        cluster = await stack.enter_async_context(RaftCluster(config))
        assert cluster._node is not None
        nodes.append(cluster._node)
        doors.append(f"127.0.0.1:{port}")
    return nodes, doors, list(names.values())


async def _quiet() -> None:
    """Returns when no index is built any more: this process took less than a fifth of a core for a second."""
    while True:
        begun, before = time.monotonic(), time.process_time()
        await asyncio.sleep(1.0)
        if time.process_time() - before < 0.2 * (time.monotonic() - begun):
            return


class _Switch:
    """Takes what observes a node off it, and puts it back."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._observers: tuple[Any, ...] = node.observer, node.watches.flushes.observe, node.router.stats.on_search

    def set(self, on: bool) -> None:
        node, nothing = self._node, lambda *_: None
        observer, flushes, searches = self._observers if on else (None, nothing, None)
        node.observer, node.watches.flushes.observe, node.router.stats.on_search = observer, flushes, searches


async def _pairs(
    report: Report,
    name: str,
    switches: Sequence[_Switch],
    call: Callable[[int], Awaitable[object]],
    calls: int,
    rounds: int,
) -> None:
    for n in range(calls):  # warm
        await call(n)
    took: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(rounds):
        for on in (True, False) if turn % 2 else (False, True):
            for switch in switches:
                switch.set(on)
            begun = time.process_time()
            for n in range(calls):
                await call(turn * calls + n)
            took[on].append((time.process_time() - begun) / calls * 1e6)
    for switch in switches:
        switch.set(True)
    ratios = [with_them / without for with_them, without in zip(took[True], took[False], strict=True)]
    ratio, on, off = statistics.median(ratios), *(statistics.median(took[on]) for on in (True, False))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    report.row(f"{name} with metrics", f"{on:,.0f} us of CPU", f"without {off:,.0f} us; ratios {spread}")
    report.ratio(ratio, "", ok=None)


async def _scrapes(report: Report, doors: Sequence[str]) -> None:
    def scrape(door: str) -> int:
        with urllib.request.urlopen(f"http://{door}/metrics", timeout=60) as answer:
            return len(answer.read())

    took, size = [], 0
    for _ in range(SCRAPES):
        begun = time.process_time()
        for door in doors:
            size = await asyncio.to_thread(scrape, door)
        took.append((time.process_time() - begun) / len(doors))
    middle = statistics.median(took)
    share = f"{middle / SCRAPE_SECONDS:.3%} of a core at one in {SCRAPE_SECONDS:g} s"
    report.row("a scrape of a node", f"{middle * 1e3:,.1f} ms of CPU", f"{size:,} bytes; {share}")
