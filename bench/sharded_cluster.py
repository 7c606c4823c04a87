"""A sharded cluster of three node processes on 127.0.0.1 for a benchmark, one replica a shard: what is measured is
routing and merging, not replication. Stopped and removed at the end."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

from bench.vectors import Floats
from needle.base.config import SegmentConfig
from needle.base.errors import NeedleError
from needle.client import Client, ShardedClient
from needle.connecting import system_caller
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports
from needle.local.nodes import LocalCluster
from needle.rpc.transport import RpcClient
from needle.shard.plan import seal_when_quiet_at

NODES = 3
TICKS = os.sysconf("SC_CLK_TCK")
BATCH = 1000
IN_FLIGHT = 4
QUIET_SECONDS = 3.0
READY_SECONDS = 60.0
TIMING = {"election_timeout": 0.6, "heartbeat_interval": 0.1}
"""Many nodes share few cores here; searches of one replica need no heartbeat."""


class ShardedNodes:
    """Use with `async with`; then `client` is shard-aware."""

    client: ShardedClient

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self._directory = Path(tempfile.mkdtemp(prefix="bench-shards-"))
        settings: dict[str, object] = {**TIMING, "sharding": {}}
        self._nodes = LocalCluster(self._directory, free_ports(NODES), settings, detached=False)
        self._cluster = DistributedCluster(ClusterConfig(shard_count=shards, replication_factor=1))
        self._callers: list[RpcClient] = []
        self._indexable = self._files = 0

    async def __aenter__(self) -> ShardedNodes:
        try:
            self._nodes.start_all()
            deadline = time.monotonic() + READY_SECONDS
            for name, address in self._nodes.addresses.items():
                while True:
                    try:
                        await self._cluster.add_node(name, address)
                        break
                    except NeedleError:
                        self._nodes.check_alive()
                        if time.monotonic() > deadline:
                            raise
                        await asyncio.sleep(0.05)
            await self._cluster.start(READY_SECONDS)
            self.client = await self._cluster.client()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        for caller in self._callers:
            await caller.close()
        await self._cluster.stop()
        self._nodes.stop_all()
        shutil.rmtree(self._directory, ignore_errors=True)

    def cpu_seconds(self) -> float:
        """Processor time that this process and the nodes have used."""
        spent = time.process_time()
        for pid in self._nodes.pids().values():
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            spent += (int(fields[11]) + int(fields[12])) / TICKS
        return spent

    def leader(self, shard: int) -> str:
        """The node that holds a shard."""
        return self.client.topology().shards[shard].replicas[0]

    def plain(self, node: str) -> Client:
        """A client that knows nothing of shards and asks this node, which routes for it."""
        self._callers.append(system_caller("needle"))
        return Client(self._callers[-1], [self._nodes.addresses[node]], rng=random.Random(1))

    async def load(self, collection: str, vectors: Floats) -> int:
        """Create and fill a collection; returns how many index files hold it once nothing is built any more."""
        dimensions = vectors.shape[1]
        await self.client.create_collection(collection, dimensions=dimensions, timeout=60)
        batches = iter(range(0, len(vectors), BATCH))

        async def worker() -> None:
            for first in batches:
                rows = vectors[first : first + BATCH]
                ids = [f"v{n}" for n in range(first, first + len(rows))]
                await self.client.insert_batch(ids=ids, vectors=rows, collection=collection, timeout=120)

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        # Of each shard a few may stay outside index files for good.
        self._indexable += len(vectors) - self.shards * seal_when_quiet_at(SegmentConfig(), dimensions)
        before, self._files = self._files, await self._indexed(self._indexable)
        return self._files - before

    async def _indexed(self, rows: int) -> int:
        """How many index files there are, once they cover `rows` and no longer change."""
        seen: list[Path] = []
        since = time.monotonic()
        while True:
            found = [path for node in self._nodes.addresses for path in self._nodes.index_files(node)]
            if found != seen:
                seen, since = found, time.monotonic()
            if time.monotonic() - since > QUIET_SECONDS and sum(map(_rows_of, found)) >= rows:
                return len(found)
            self._nodes.check_alive()
            await asyncio.sleep(0.1)


def _rows_of(path: Path) -> int:
    _, first, last, _ = path.name.split("-")
    return int(last) - int(first) + 1
