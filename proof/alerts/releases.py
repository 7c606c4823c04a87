"""Faults of what a release knows and of what the catalog does, before a real Prometheus on real processes: nodes of
another version, collections that the catalog does not know, a collection that has taken most of what it can, replicas
of the catalog that differ, and a disk that hangs.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np

from needle.local.process_cluster import ProcessCluster
from proof.alerts.faults import PASSING, Trial
from proof.alerts.prometheus import Prometheus, with_holds
from proof.alerts.promtool import RULES
from proof.sick_nodes import FEW_VERSIONS, LOST_COLLECTION, NEXT_RELEASE, OTHER_CATALOG, fall_ill, hangs_by

VERSIONS, BATCH = 600, 200
"""Of the thousand that FEW_VERSIONS leaves."""


class Releases(Trial):
    """See the module. `hurt`: the node that is done something to alone."""

    hurt = "node-3"

    async def what_is_known(self) -> None:
        """All three at once: some nodes know a later version, all of them an older catalog, and of each collection few
        versions."""
        await self._client.create_collection("lost", dimensions=8, timeout=60)
        await self._client.insert("a", [1.0] * 8, collection="lost", timeout=60)
        self._stop()
        for name, node in self._cluster.nodes.items():
            shutil.copytree(node.data_dir / "catalog", node.directory / "catalogs" / name)
            (node.data_dir / "topology.bin").unlink()  # what it knew last
            newer = NEXT_RELEASE if name != self.hurt else ""
            fall_ill(node, node.directory / "ill" / name, FEW_VERSIONS + LOST_COLLECTION + newer)
        await self._back()
        for begin in range(0, VERSIONS, BATCH):
            ids = [f"a{n}" for n in range(begin, begin + BATCH)]
            await self._client.insert_batch(ids=ids, vectors=np.ones((BATCH, 8), "f4"), timeout=60)
        known = {"NeedleVersionsDiffer", "NeedleUnknownCollections", "NeedleCollectionWorn"}
        await self.fires("releases and catalogs are not what they should be", known)
        self._stop()
        for name, node in self._cluster.nodes.items():
            shutil.rmtree(node.data_dir / "catalog")
            (node.directory / "catalogs" / name).rename(node.data_dir / "catalog")
            (node.data_dir / "topology.bin").unlink()
            node.source = None
        await self._back()
        assert await self._client.count(collection="lost", timeout=60) == 1
        await self.clears("they are", but=PASSING)

    async def what_the_catalog_holds(self) -> None:
        """A node that executes otherwise what the catalog is told."""
        node = self._cluster.nodes[self.hurt]
        self._cluster.terminate(self.hurt)
        fall_ill(node, node.directory / "other", OTHER_CATALOG)
        await self._back(self.hurt)
        await self._client.create_collection("one-more", dimensions=8, timeout=60)
        await self.fires("replicas of the catalog differ", {"NeedleReplicaDivergence"})
        self._cluster.terminate(self.hurt)
        node.source = None
        shutil.rmtree(node.data_dir / "catalog")
        await self._back(self.hurt)
        await self.clears("one was made again")

    async def what_does_not_end(self) -> None:
        """A disk on which no sync ends."""
        node = self._cluster.nodes[self.hurt]
        hangs = node.directory / "hangs"
        self._cluster.terminate(self.hurt)
        fall_ill(node, node.directory / "hanging", hangs_by(hangs))
        await self._back(self.hurt)
        await self._client.insert("before", [1.0] * 8, timeout=60)
        hangs.touch()
        await self._client.insert("meanwhile", [1.0] * 8, timeout=60)
        await self.fires("a disk hangs", {"NeedleDiskHangs"})
        hangs.unlink()
        await self.clears("it goes on")

    def _stop(self) -> None:
        for name in self._cluster.nodes:
            self._cluster.terminate(name)

    async def _back(self, *names: str) -> None:
        for name in names or self._cluster.nodes:
            self._cluster.restart(name)
        await self._cluster.ready(*names)


@contextlib.asynccontextmanager
async def releases(directory: Path, holds: float, say: Callable[[str], None]) -> AsyncIterator[Releases]:
    """holds: by which the rules' `for` are multiplied."""
    rules = with_holds(RULES.read_text(encoding="utf-8"), holds)
    async with ProcessCluster(directory, 3, heartbeat_interval=0.1, election_timeout=1.0) as cluster:
        targets = [node.http for node in cluster.nodes.values()]
        with Prometheus(directory / "prometheus", targets, rules) as prometheus:
            async with cluster.connect() as client:
                one = Releases(cluster, client, prometheus, holds, say)
                await one.quiet(len(targets))
                yield one
