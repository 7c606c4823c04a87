"""TLS beside plain connections: searches and inserts by the binary client, two clusters in turns in one run.

One cluster speaks no TLS; in the other the client does, and the nodes among each other. A round measures both, in one
order and then in the other; what is told is the median of the rounds' ratios, so that a machine which is slower for a
while counts for both. Beside it: the CPU time of a call in client and nodes, which others on the machine change little.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench.load import Rate, closed_loop
from bench.report import Report
from needle.local.certificates import create_ca, create_node
from needle.local.process_cluster import ProcessCluster

DIMENSIONS, ROWS, K = 112, 5000, 10
GOAL = 0.85
ROUNDS = 5
Operation = Callable[[Any, int], Awaitable[object]]


async def run(report: Report, *, quick: bool) -> None:
    """Adds a row for each call and number of callers."""
    seconds, rounds = (1.0, 3) if quick else (3.0, ROUNDS)
    vectors = np.random.default_rng(1).standard_normal((ROWS, DIMENSIONS), dtype=np.float32)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="needle-bench-")))
        for name in ("plain", "tls"):
            (directory / name).mkdir()
        plain = await stack.enter_async_context(ProcessCluster(directory / "plain", 3, dimensions=DIMENSIONS))
        secret = await stack.enter_async_context(_with_tls(directory))
        sides = []
        for cluster in (plain, secret):
            client = await stack.enter_async_context(cluster.connect())
            await client.insert_batch(ids=[f"v{n}" for n in range(ROWS)], vectors=vectors, timeout=120.0)
            sides.append((cluster, client))

        def search(client: Any, n: int) -> Awaitable[object]:
            return client.search(vectors[n % ROWS], K, mode="leased")  # type: ignore[no-any-return]

        def insert(client: Any, n: int) -> Awaitable[object]:
            about = {"n": n, "text": "x" * 50}
            return client.insert(f"v{n % ROWS}", vectors[n % ROWS], about)  # type: ignore[no-any-return]

        for name, operation in (("search", search), ("insert", insert)):
            for callers in (1, 16, 64):
                await _pairs(report, f"{name} by TLS, {callers} caller(s)", sides, operation, callers, seconds, rounds)


def _with_tls(directory: Path) -> ProcessCluster:
    """Three nodes that speak TLS to each other, and a client that does."""
    create_ca(directory / "ca", "bench", 10)
    ca = str(directory / "ca" / "ca.crt")
    cluster = ProcessCluster(directory / "tls", 3, dimensions=DIMENSIONS)
    for name, node in cluster.nodes.items():
        made = create_node(directory / "ca", name, ["127.0.0.1"], 10)
        node.settings["tls"] = {"mode": "accept", "certificate": str(made.certificate), "key": str(made.key), "ca": ca}
    cluster.tls = ca
    return cluster


async def _pairs(
    report: Report, name: str, sides: list[Any], operation: Operation, callers: int, seconds: float, rounds: int
) -> None:
    """sides: cluster and client without TLS, and with it."""
    rates: list[list[Rate]] = [[], []]
    cpu = [0.0, 0.0]
    for n in range(rounds):
        for at in (0, 1) if n % 2 == 0 else (1, 0):
            cluster, client = sides[at]
            before = _cpu_seconds(cluster)
            rates[at].append(await closed_loop(callers, seconds, lambda n, client=client: operation(client, n)))
            cpu[at] += _cpu_seconds(cluster) - before
    ratios = [tls.per_second / plain.per_second for plain, tls in zip(*rates, strict=True)]
    ratio = statistics.median(ratios)
    plain, tls = (sorted(found, key=lambda rate: rate.per_second)[rounds // 2] for found in rates)
    calls = [sum(rate.operations for rate in found) for found in rates]
    without, with_tls = (1e6 * used / count for used, count in zip(cpu, calls, strict=True))
    spread, used = f"{min(ratios):.2f} to {max(ratios):.2f}", f"{with_tls:,.0f} us, plain {without:,.0f}"
    report.row(name, str(tls), f"plain: {plain}; ratios {spread}; CPU {used}")
    report.ratio(ratio, f">= {GOAL} x", ok=ratio >= GOAL)


def _cpu_seconds(cluster: ProcessCluster) -> float:
    """Of this process and of the nodes."""
    return time.process_time() + sum(node.cpu_seconds() for node in cluster.nodes.values())
