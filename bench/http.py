"""HTTP beside the binary client: searches and inserts in JSON and MessagePack, at 1, 16 and 64 callers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np

from bench.load import closed_loop
from bench.report import Report
from needle.local.process_cluster import ProcessCluster

DIMENSIONS, ROWS, K = 112, 5000, 10
GOAL = 0.6
JSON, PACKED = "application/json", "application/msgpack"


class Connections:
    """One kept-alive connection for each caller, as thin as a client can be: what is measured is the node."""

    def __init__(self, address: str, kind: str) -> None:
        self._address = address
        self._kind = kind
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.encode = msgspec.json.encode if kind == JSON else msgspec.msgpack.encode
        self._decode = msgspec.json.decode if kind == JSON else msgspec.msgpack.decode

    async def ask(self, method: str, path: str, body: Any) -> Any:
        """The answer of 200, decoded."""
        data = self.encode(body)
        if self._free:
            reader, writer = self._free.pop()
        else:
            host, _, port = self._address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {self._kind}\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        told = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(told.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        answer = await reader.readexactly(size)
        self._free.append((reader, writer))
        if b" 200 " not in told[:20]:
            raise RuntimeError(answer[:300])
        return self._decode(answer)

    def close(self) -> None:
        """All of them."""
        for _, writer in self._free:
            writer.close()


async def run(report: Report, *, quick: bool) -> None:
    """Adds a row for each number of callers, format and call."""
    seconds = 2.0 if quick else 5.0
    vectors = np.random.default_rng(1).standard_normal((ROWS, DIMENSIONS), dtype=np.float32)
    with TemporaryDirectory(prefix="needle-bench-") as directory:
        async with ProcessCluster(Path(directory), 3, dimensions=DIMENSIONS) as cluster, cluster.connect() as client:
            await client.insert_batch(ids=[f"v{n}" for n in range(ROWS)], vectors=vectors, timeout=120.0)
            door = cluster.nodes[await cluster.leader()].http
            for callers in (1, 16, 64):
                await _searches(report, client, door, vectors, callers, seconds)
            for callers in (1, 16, 64):
                await _inserts(report, client, door, vectors, callers, seconds)


def _query(kind: str, row: Any) -> Any:
    return row.tolist() if kind == JSON else row.tobytes()


async def _searches(report: Report, client: Any, door: str, vectors: Any, callers: int, seconds: float) -> None:
    binary = await closed_loop(callers, seconds, lambda n: client.search(vectors[n % ROWS], K, mode="leased"))
    for kind in (JSON, PACKED):
        connections = Connections(door, kind)

        async def one(n: int, kind: str = kind, connections: Connections = connections) -> None:
            body = {"vector": _query(kind, vectors[n % ROWS]), "k": K, "mode": "leased"}
            found = await connections.ask("POST", "/v1/collections/default/search", body)
            assert len(found["hits"]) == K

        rate = await closed_loop(callers, seconds, one)
        connections.close()
        ratio = rate.per_second / binary.per_second
        report.row(f"search by HTTP, {kind.partition('/')[2]}, {callers} caller(s)", str(rate), f"binary: {binary}")
        report.ratio(ratio, f">= {GOAL} x", ok=ratio >= GOAL)


async def _inserts(report: Report, client: Any, door: str, vectors: Any, callers: int, seconds: float) -> None:
    binary = await closed_loop(
        callers, seconds, lambda n: client.insert(f"v{n % ROWS}", vectors[n % ROWS], {"n": n, "text": "x" * 50})
    )
    for kind in (JSON, PACKED):
        connections = Connections(door, kind)

        async def one(n: int, kind: str = kind, connections: Connections = connections) -> None:
            body = {"vector": _query(kind, vectors[n % ROWS]), "metadata": {"n": n, "text": "x" * 50}}
            await connections.ask("PUT", f"/v1/collections/default/documents/v{n % ROWS}", body)

        rate = await closed_loop(callers, seconds, one)
        connections.close()
        ratio = rate.per_second / binary.per_second
        report.row(f"insert by HTTP, {kind.partition('/')[2]}, {callers} caller(s)", str(rate), f"binary: {binary}")
        report.ratio(ratio, "", ok=None)
