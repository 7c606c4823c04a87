"""Three Needle node processes on 127.0.0.1 for a benchmark, stopped and removed at the end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from bench.vectors import Floats
from needle.base.config import SegmentConfig
from needle.base.errors import Unavailable
from needle.client import Client
from needle.connecting import system_caller
from needle.local.free_ports import free_ports
from needle.local.process_cluster import START_SECONDS, ProcessCluster, wait_for
from needle.local.published import of_one_cluster
from needle.rpc.transport import RpcClient
from needle.shard.plan import seal_when_quiet_at
from proof.plain_client import PlainClient

NODES = 3
BATCH = 1000
IN_FLIGHT = 4
QUIET_SECONDS = 3.0
TIMING = {"election_timeout": 0.6, "heartbeat_interval": 0.1}
"""Many nodes share few cores here; searches of one replica need no heartbeat."""


class Spent(NamedTuple):
    """Processor seconds that a process has used: its event loop, and all its other threads."""

    loop: float
    threads: float

    @staticmethod
    def by(pid: int) -> Spent:
        """As the scheduler counts it, in nanoseconds (Linux)."""
        loop = threads = 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                spent = int((task / "schedstat").read_text(encoding="ascii").split()[0])
                loop, threads = (loop + spent, threads) if task.name == str(pid) else (loop, threads + spent)
        return Spent(loop / 1e9, threads / 1e9)


class NeedleCluster:
    """Use as a context manager. settings: any node setting, e.g. dimensions, election_timeout."""

    def __init__(self, **settings: object) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="bench-needle-"))
        self._nodes = ProcessCluster(self._directory, NODES, as_user=True, **settings)

    def __enter__(self) -> NeedleCluster:
        self._nodes.start_nodes()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._nodes.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def addresses(self) -> list[str]:
        """Of the nodes."""
        return list(self._nodes.addresses.values())

    async def client(self) -> Client:
        """A client, once the cluster has a leader."""
        client: Client = await wait_for(self._nodes.connect, START_SECONDS, "a node that answers")
        await wait_for(client.leader, START_SECONDS, "a leader")
        return client

    def address(self, node: str) -> str:
        """Where a node listens."""
        return self._nodes.addresses[node]

    def pids(self) -> dict[str, int]:
        """Of the nodes' processes."""
        return {name: node.pid for name, node in self._nodes.nodes.items()}

    def spent(self) -> dict[str, Spent]:
        """Processor time of each node so far."""
        return {name: Spent.by(node.pid) for name, node in self._nodes.nodes.items()}

    def kill(self, node: str) -> None:
        self._nodes.kill(node)

    def restart(self, node: str) -> None:
        self._nodes.restart(node)

    async def caught_up(self, client: Client) -> None:
        """Returns when every node answers and has applied the same index."""
        while True:
            with contextlib.suppress(Unavailable):
                applied = [(await client.node_status(node, timeout=1.0)).last_applied for node in self._nodes.nodes]
                if len(set(applied)) == 1:
                    return
            self._nodes.check_alive()
            await asyncio.sleep(0.05)

    async def indexed(self, rows: int, seal_rows: int) -> int:
        """Returns when no replica has `seal_rows` or more of `rows` vectors outside its index and all hold the same
        index files; says how many files that is."""
        while True:
            names = [[path.name for path in node.index_files()] for node in self._nodes.nodes.values()]
            covered = sum(rows_of(name) for name in names[0])
            if covered > rows - seal_rows and all(found == names[0] for found in names):
                return len(names[0])
            self._nodes.check_alive()
            await asyncio.sleep(0.02)

    async def quiet(self, seconds: float = 2.0, share: float = 0.1) -> None:
        """Returns when the nodes together took less than this share of a core for so long: nothing is built then."""
        while True:
            before = sum(one.loop + one.threads for one in self.spent().values())
            await asyncio.sleep(seconds)
            if sum(one.loop + one.threads for one in self.spent().values()) - before < share * seconds:
                return
            self._nodes.check_alive()

    def memory_mb(self) -> list[float]:
        """Resident memory of each node."""
        return [node.memory_mb() for node in self._nodes.nodes.values()]


class ShardedNodes:
    """A sharded cluster; with one replica a shard routing and merging are measured, not replication. Use with
    `async with`; then `client` is shard-aware. http: the nodes serve it, and `metrics`. nodes: how many. settings: any
    node setting."""

    client: Client

    def __init__(
        self, shards: int, replicas: int = 1, *, http: bool = False, nodes: int = NODES, **settings: object
    ) -> None:
        self.shards = shards
        self._replicas = replicas
        self._directory = Path(tempfile.mkdtemp(prefix="bench-shards-"))
        self._nodes = ProcessCluster(
            self._directory,
            nodes,
            ports=free_ports(2 * nodes if http else nodes),
            as_user=True,
            sharding={},
            **(settings or TIMING),
        )
        self._callers: list[RpcClient] = []
        self._indexable = self._files = 0
        self._open = contextlib.AsyncExitStack()

    async def __aenter__(self) -> ShardedNodes:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
            await stack.enter_async_context(self._nodes)
            await self._nodes.create(self.shards, self._replicas)
            client = await stack.enter_async_context(self._nodes.connect())
            self.client = client
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for caller in self._callers:
            await caller.close()
        await self._open.aclose()

    def cpu_seconds(self) -> float:
        """Processor time that this process and the nodes have used."""
        return time.process_time() + sum(node.cpu_seconds() for node in self._nodes.nodes.values())

    def pids(self) -> dict[str, int]:
        """Of the nodes' processes."""
        return {name: node.pid for name, node in self._nodes.nodes.items()}

    def leader(self, shard: int) -> str:
        """The node that holds a shard."""
        return self.client.topology().shards[shard].replicas[0]

    def plain(self, node: str) -> PlainClient:
        """A client that knows nothing of shards and asks this node, which routes for it."""
        self._callers.append(system_caller("needle"))
        return PlainClient(self._callers[-1], [self._nodes.addresses[node]], rng=random.Random(1))

    async def join(self) -> str:
        """Start one more node, which serves HTTP; its name, once it belongs to the cluster."""
        (port,) = free_ports(1)
        first = next(iter(self._nodes.addresses.values()))
        name = self._nodes.add(http_address=f"127.0.0.1:{port}", sharding={"join": [first]})
        self._nodes.restart(name)

        async def known() -> bool:
            return (await self.client.refresh_topology(confirmed=True, timeout=5.0)).node(name) is not None

        await wait_for(known, START_SECONDS, f"{name} being a node")
        return name

    def names(self) -> list[str]:
        """Of all nodes."""
        return list(self._nodes.nodes)

    def index_files(self, node: str) -> list[Path]:
        """Those that a node has published; by name."""
        return self._nodes.nodes[node].index_files()

    def memory_mb(self, node: str) -> float:
        """Resident memory of a node, mapped files included."""
        return self._nodes.nodes[node].memory_mb()

    async def metrics(self, node: str) -> dict[str, float]:
        """By name with labels, as a node that serves HTTP tells them."""
        _, text = await self._nodes.nodes[node].get("/metrics")
        samples = (
            line.rpartition(" ") for line in of_one_cluster(text).splitlines() if line and not line.startswith("#")
        )
        return {name: float(value) for name, _, value in samples}

    async def load(self, collection: str, vectors: Floats, metadata: object = None) -> int:
        """Create and fill a collection. metadata: of each document. Returns how many index files hold it once
        nothing is built any more."""
        dimensions = vectors.shape[1]
        await self.client.create_collection(collection, dimensions=dimensions, timeout=60)
        batches = iter(range(0, len(vectors), BATCH))

        async def worker() -> None:
            for first in batches:
                rows = vectors[first : first + BATCH]
                ids = [f"v{n}" for n in range(first, first + len(rows))]
                about = None if metadata is None else [metadata] * len(rows)
                await self.client.insert_batch(
                    ids=ids, vectors=rows, metadatas=about, collection=collection, timeout=120
                )

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        # Of each shard a few may stay outside index files for good.
        self._indexable += len(vectors) - self.shards * seal_when_quiet_at(SegmentConfig(), dimensions)
        before, self._files = self._files, await self._indexed(self._replicas * self._indexable)
        return self._files - before

    async def _indexed(self, rows: int) -> int:
        """How many index files there are, once they cover `rows` and no longer change."""
        seen: list[Path] = []
        since = time.monotonic()
        while True:
            found = [path for node in self._nodes.nodes.values() for path in node.index_files()]
            if found != seen:
                seen, since = found, time.monotonic()
            if time.monotonic() - since > QUIET_SECONDS and sum(rows_of(path.name) for path in found) >= rows:
                return len(found)
            self._nodes.check_alive()
            await asyncio.sleep(0.1)


def rows_of(name: str) -> int:
    """How many ordinals an index file covers, by its name `<collection>-<first>-<last>-<checksum>.seg`."""
    _, first, last, _ = name.split("-")
    return int(last) - int(first) + 1
