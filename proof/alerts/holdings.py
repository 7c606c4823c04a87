"""Faults of what nodes hold and of what the cluster has decided about it, before a real Prometheus on real processes:
moves, replicas and files that wait, replicas that are damaged, of an older copy, or that differ, searches that find too
little, memory that gets short.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np

from needle.base.errors import NeedleError
from needle.base.model import IndexParams
from needle.local.process_cluster import ProcessCluster
from proof.alerts.faults import Trial
from proof.alerts.prometheus import Prometheus, with_holds
from proof.alerts.promtool import RULES
from proof.sick_nodes import OTHER_SUMS, fall_ill

BATCH, TENANTS = 300, 20
CATALOG = FIRST = ("node-1", "node-2", "node-3")
SECOND = ("node-2", "node-3", "node-4")
"""With node-3 and node-4 down the catalog goes on, and shard 0, but not shard 1."""
NARROW, ROWS, DIMENSIONS = IndexParams(m=8, ef_construction=40, ef_search=1), 3000, 64
WATCHED = {"recall_share": 1.0, "seal_rows": 500}
PAUSE = 1.0
PAGE = 4096
HEADS = 4 * PAGE


class Holdings(Trial):
    """See the module. `hurt`: the node whose files are done something to."""

    hurt, short = "node-4", "node-1"

    async def what_is_decided(self) -> None:
        """A move that documents are in the way of, replicas whose nodes are down, and files of which nobody can say now
        that they are needed no more."""
        await self._places()
        for tenant in range(TENANTS):  # one in each shard, which are two documents as long as they are there
            await self._client.insert("same", [1.0] * 8, {"tenant": f"t{tenant}"}, timeout=60)
        await self._client.remove_shard(1)
        await self.fires("documents are in the way of a move", {"NeedleMoveWaits"})
        await self._client.cancel_rebalance(timeout=60)
        await self._client.delete_where({}, timeout=60)
        await self.clears("it was given up")
        await self._places()
        self._cluster.kill("node-3", "node-4")
        with contextlib.suppress(NeedleError):  # it waits
            await self._client.set_replicas(0, ["node-1", "node-3", "node-4"], timeout=2)
        await self.fires("replicas are assigned to nodes that are down", {"NeedleReplicasNotInPlace"})
        await self._back("node-3", "node-4")
        await self.clears("they are in their places")
        await self._places()
        self._cluster.kill("node-2")
        await self._client.set_replicas(0, ["node-1", "node-3", "node-4"], timeout=60)
        self._cluster.kill("node-3", "node-4")
        self._cluster.restart("node-2")
        await self.fires("who gave up a replica hears nobody that has it", {"NeedleFilesNotDeleted"})
        await self._back("node-3", "node-4")
        await self.clears("somebody has it")

    async def what_is_held(self) -> None:
        """Replicas that are damaged, then of an older copy, then that differ."""
        await self._places()
        node = self._cluster.nodes[self.hurt]
        others = [name for name in SECOND if name != self.hurt]
        await self._fill("z")
        self._cluster.terminate(self.hurt)
        older, right = node.directory / "older", node.directory / "right"
        shutil.copytree(node.data_dir, older)
        (path,) = (node.data_dir / "shards" / "1").glob("state-*/documents.db")
        with path.open("r+b") as file:
            file.seek(HEADS)
            file.write(random.Random(5).randbytes(max(PAGE, path.stat().st_size - HEADS)))
        for name in others:  # nobody gives it anything yet
            self._cluster.pause(name)
        try:
            self._cluster.restart(self.hurt)
            await self.fires("a replica is damaged", {"NeedleReplicaDamaged"}, looks=False)
        finally:
            for name in others:
                self._cluster.resume(name)
        await self.clears("it fetched everything again")
        await self._fill("zz")
        self._cluster.terminate(self.hurt)
        node.data_dir.rename(right)
        older.rename(node.data_dir)
        self._cluster.restart(self.hurt)
        await self.fires("a directory is an older copy", {"NeedleReplicaLost"})
        self._cluster.kill(self.hurt)
        shutil.rmtree(node.data_dir)
        right.rename(node.data_dir)
        await self._back(self.hurt)
        await self.clears("the right one is back")
        self._cluster.terminate(self.hurt)
        fall_ill(node, node.directory / "other", OTHER_SUMS)
        await self._back(self.hurt)
        await self._fill("zzz")
        await self.fires("replicas differ", {"NeedleReplicaDivergence"})
        self._cluster.terminate(self.hurt)
        node.source = None
        shutil.rmtree(node.data_dir / "shards")
        await self._back(self.hurt)
        await self.clears("one was made again")

    async def what_is_short(self) -> None:
        """A node that may take less memory than it does."""
        instance = self._cluster.nodes[self.short].http
        await self._remember(None)
        await self.clears("a node was started")  # from now on it takes what it will take
        taken = await asyncio.to_thread(self._prometheus.value, f'needle_memory_own_bytes{{instance="{instance}"}}')
        await self._remember(int(1.05 * taken))
        await self.fires("memory is nearly full", {"NeedleMemoryNearlyFull"})
        await self._remember(int(0.8 * taken))
        await self.fires("memory is full", {"NeedleMemoryFull"})
        await self._remember(None)
        await self.clears("there is more of it")

    async def what_is_found(self) -> None:
        """An index that is too narrow for its vectors."""
        rng = np.random.default_rng(7)
        rows = rng.normal(size=(ROWS, DIMENSIONS)).astype("f4")
        await self._client.create_collection("narrow", dimensions=DIMENSIONS, index=NARROW, timeout=60)
        for begin in range(0, ROWS, BATCH):
            ids, tenants = [f"a{n:05}" for n in range(begin, begin + BATCH)], [{"tenant": "t0"}] * BATCH
            some = rows[begin : begin + BATCH]
            await self._client.insert_batch(ids=ids, vectors=some, metadatas=tenants, collection="narrow", timeout=60)
        with self._searches(rows, rng):
            await self.fires("searches find too little", {"NeedleRecallLow"})
        await self._client.drop_collection("narrow", timeout=60)
        await self.clears("nobody searches there any more")

    @contextlib.contextmanager
    def _searches(self, rows: np.ndarray, rng: np.random.Generator) -> Iterator[None]:
        """Some all the time, with a pause in which the node may look at what they found."""

        async def search() -> None:
            while True:
                for row in rows[rng.integers(ROWS, size=10)]:
                    with contextlib.suppress(NeedleError):
                        await self._client.search(row + 0.5, k=10, collection="narrow", timeout=20)
                await asyncio.sleep(PAUSE)

        task = asyncio.ensure_future(search())
        try:
            yield
        finally:
            task.cancel()

    async def _remember(self, most: int | None) -> None:
        """Restart a node with so much memory; None: as by default."""
        settings = self._cluster.nodes[self.short].settings
        settings.pop("memory_bytes_max", None)
        if most is not None:
            settings["memory_bytes_max"] = most
        self._cluster.terminate(self.short)
        await self._back(self.short)

    async def _places(self) -> None:
        await self._client.set_catalog_nodes(CATALOG, timeout=120)
        await self._client.set_replicas(0, FIRST, timeout=120)
        await self._client.set_replicas(1, SECOND, timeout=120)

    async def _fill(self, prefix: str) -> None:
        """Into both shards."""
        ids, tenants = [f"{prefix}{n:05}" for n in range(BATCH)], [{"tenant": f"t{n}"} for n in range(BATCH)]
        rows = np.ones((BATCH, 8), "f4")
        await self._client.insert_batch(ids=ids, vectors=rows, metadatas=tenants, timeout=60)

    async def _back(self, *names: str) -> None:
        for name in names:
            self._cluster.restart(name)
        await self._cluster.ready(*names)


@contextlib.asynccontextmanager
async def holdings(directory: Path, holds: float, say: Callable[[str], None]) -> AsyncIterator[Holdings]:
    """holds: by which the rules' `for` are multiplied."""
    rules = with_holds(RULES.read_text(encoding="utf-8"), holds)
    sharding = {"shards": 2, "replicas": 3, "strategy": "custom:tenant"}
    async with ProcessCluster(
        directory, 4, heartbeat_interval=0.1, election_timeout=1.0, sharding=sharding, segments=WATCHED
    ) as cluster:
        targets = [node.http for node in cluster.nodes.values()]
        with Prometheus(directory / "prometheus", targets, rules) as prometheus:
            async with cluster.connect() as client:
                one = Holdings(cluster, client, prometheus, holds, say)
                await one.quiet(len(targets))
                yield one
