"""More connections than a process may have files: they are refused, and the node goes on."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from needle.local.process_cluster import ProcessCluster
from needle.rpc.codec import Hello, encode
from needle.rpc.frame import HELLO, encode_frame

FILES = 128
VECTOR = [1.0] * 8
HELLO_FRAME = encode_frame(HELLO, 0, (encode(Hello(version=1, cluster_id="needle")),))


@contextlib.asynccontextmanager
async def flood(address: str, count: int) -> AsyncIterator[int]:
    """Open connections that say hello and stay; how many were accepted."""
    host, _, port = address.rpartition(":")
    writers, accepted = [], 0
    try:
        for _ in range(count):
            reader, writer = await asyncio.open_connection(host, int(port))
            writers.append(writer)
            writer.write(HELLO_FRAME)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                async with asyncio.timeout(30):
                    accepted += (await reader.readexactly(5))[4] == HELLO + 1
        yield accepted
    finally:
        for writer in writers:
            writer.transport.abort()


async def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> ProcessCluster:
    """A cluster of one node that may have FILES files open. limit: of `ulimit`, for both limits or the soft one."""
    few = tmp_path / "python"
    few.write_text(f'#!/bin/sh\nulimit {limit} {FILES}\nexec {sys.executable} "$@"\n')
    few.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(few))
        cluster = ProcessCluster(tmp_path, nodes=1)
        await cluster.start()
    return cluster


async def test_a_node_takes_all_the_files_that_it_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = await started(tmp_path, monkeypatch, "-S -n")
    try:
        async with flood(cluster.nodes["node-1"].address, 2 * FILES) as accepted, cluster.connect() as client:
            assert accepted == 2 * FILES
            await client.insert("a", VECTOR)
    finally:
        cluster.stop()


async def test_a_node_with_few_files_refuses_connections_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await started(tmp_path, monkeypatch, "-n")
    node = cluster.nodes["node-1"]
    try:
        async with cluster.connect() as client:
            await client.insert("a", VECTOR)
            async with flood(node.address, 2 * FILES) as accepted:
                assert 8 <= accepted <= FILES // 2
                # Files are there for what a write and a read need: a new log segment, index, database connection.
                await asyncio.gather(*(client.insert(f"b{n}", VECTOR) for n in range(50)))
                assert await client.get("b49") is not None
                assert (await cluster.http("node-1", "/readyz"))[0] == 200
            assert await client.get("a") is not None
        async with cluster.connect() as late:
            assert await late.get("a") is not None
        assert node.running() and "[disk_failed]" not in node.output(), node.output()[-2000:]
    finally:
        cluster.stop()
