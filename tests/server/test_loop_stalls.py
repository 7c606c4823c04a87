"""Large batches do not hold the event loop: three nodes on one loop, and the CPU time of every callback on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from needle.base import commands, protocol
from needle.base.commands import Delete, Insert
from needle.base.config import Limits, RaftConfig
from needle.base.errors import InvalidArgument
from needle.base.model import CollectionSpec, WriteResult
from needle.base.protocol import WriteCall
from needle.rpc.transport import RpcClient
from needle.server.free_ports import free_ports
from needle.server.loop_watch import LoopWatch
from needle.server.node import Node
from needle.server.ports import system_ports
from needle.server.runtime import SystemClock
from needle.shard.validation import check_command
from needle.sim.stalls import StallMeter

DIMENSIONS = 64
ITEMS = json.dumps({"items": [{"sku": f"s-{n}", "qty": n, "note": "a note of some length here"} for n in range(900)]})
FLAT = json.dumps({"title": "x" * 500, "year": 2020})
SPEC = CollectionSpec(name="c", dimensions=1, metric="l2")
HELD = Delete("c", [f"d{n}" for n in range(300_000)] + [""])
"""Its ids are checked one after the other until the last, which is refused."""
ALLOWED = 0.05
"""CPU seconds. The product's bound is 0.01; a busy machine's caches double what is measured here."""


def batch(size: int, metadata: str) -> bytes:
    """An insert command of about `size` bytes."""
    count = size // (4 * DIMENSIONS + len(metadata))
    vectors = np.random.default_rng(1).standard_normal((count, DIMENSIONS)).astype("<f4").tobytes()
    return commands.encode(Insert("default", [f"d{n}" for n in range(count)], vectors, [metadata.encode()] * count))


def send(address: str, body: bytes) -> WriteResult:
    """One call from another thread's loop."""

    async def call() -> WriteResult:
        client = RpcClient(cluster_id="needle", rng=random.Random(1), clock=SystemClock())
        try:
            answer = await client.call(address, protocol.WRITE, body, 60.0)
        finally:
            await client.close()
        return protocol.decode(answer, WriteResult)

    return asyncio.run(call())


@pytest.mark.parametrize(
    ("size", "metadata"), [(1_000_000, ITEMS), (1_000_000, FLAT), (15_500_000, ITEMS)], ids=["nested", "flat", "16 MB"]
)
async def test_no_callback_of_a_node_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, metadata: str
) -> None:
    stalls: list[tuple[str, float]] = []
    meter = StallMeter(lambda name, seconds: stalls.append((name, seconds)), limit=ALLOWED)
    inner, here = asyncio.Handle._run, threading.get_ident()  # type: ignore[attr-defined]

    def metered(handle: asyncio.Handle) -> None:
        if threading.get_ident() == here:
            meter.run(SimpleNamespace(_run=lambda: inner(handle)))  # type: ignore[arg-type]
        else:
            inner(handle)

    ports = free_ports(3)
    nodes = [f"n{number}=127.0.0.1:{port}" for number, port in enumerate(ports)]
    running = []
    for number in range(3):
        config = RaftConfig(
            node_id=f"n{number}",
            cluster_nodes=nodes,
            data_dir=str(tmp_path / f"n{number}"),
            dimensions=DIMENSIONS,
            election_timeout=2.0,
            heartbeat_interval=0.2,
        )
        running.append(Node(config, system_ports(config)))
    try:
        for node in running:
            await node.start()
        async with asyncio.timeout(60):
            while not any(node.groups[1].settled and node.host.is_leader(1) for node in running):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        leader = next(node for node in running if node.host.is_leader(1))
        body = protocol.encode(WriteCall(1, batch(size, metadata), 60.0))
        monkeypatch.setattr(asyncio.Handle, "_run", metered)
        meter.start()
        result = await asyncio.to_thread(send, leader.address, body)
        async with asyncio.timeout(60):
            while any(node.host.applied_index(1) < result.index for node in running):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        meter.stop()
        monkeypatch.undo()
        for node in running:
            await node.stop(hand_over=False)
    assert not stalls


async def test_the_watch_names_the_function_that_held_the_loop() -> None:
    watch = LoopWatch(interval=0.001)
    watch.start()
    try:
        async with asyncio.timeout(60):
            while not watch.times:
                with contextlib.suppress(InvalidArgument):
                    check_command(HELD, {"c": SPEC}.get, Limits(batch_documents_max=10**9))
                await asyncio.sleep(0)
    finally:
        watch.stop()
    assert set(watch.times) <= {"needle.shard.validation:_check_ids", "needle.shard.validation:_utf8"}
    assert watch.longest > 0.01
