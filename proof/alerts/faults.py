"""Faults of real processes, seen by a real Prometheus and by `health_check()`: what fires, and that it clears.

Each fault names the alerts that must fire while it lasts; after its end nothing may. Both judges must agree where one
look can tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

import numpy as np

from needle.base.errors import NeedleError
from needle.client.alerts import ALERTS
from needle.client.client import Client
from needle.local.process_cluster import ProcessCluster, wait_for
from proof.alerts.prometheus import Prometheus, with_holds
from proof.alerts.promtool import RULES

DEADLINE = 120.0
PASSING = frozenset({"NeedleElection"})
"""Over by the time that somebody looks: Prometheus remembers it for a minute."""


class Trial:
    """A cluster of three nodes and a Prometheus. say: is told what happens."""

    def __init__(
        self, cluster: ProcessCluster, client: Client, prometheus: Prometheus, holds: float, say: Callable[[str], None]
    ) -> None:
        self._cluster, self._client, self._prometheus = cluster, client, prometheus
        self._scheme = "https" if cluster.tls else "http"
        self._wait = DEADLINE + 60 * holds
        self._say = say

    async def node_killed(self) -> None:
        """kill -9 of one node, and its restart."""
        self._cluster.kill("node-2")
        await self.fires("a node is killed", {"NeedleNodeUnreachable", "NeedleNodeNotScraped", "NeedleUnderReplicated"})
        self._cluster.restart("node-2")
        await self._cluster.ready("node-2")
        await self.clears("the node is back")

    async def follower_paused(self) -> None:
        """A follower that says nothing while others write."""
        follower = "node-2" if await self._client.leader(shard=0) != "node-2" else "node-3"
        self._cluster.pause(follower)
        try:
            with contextlib.suppress(NeedleError):  # what a leader that is paused with it had is written again
                await self._write("late")
            await self.fires("a follower is paused", {"NeedleReplicationLagLong"}, before={"NeedleReplicationLag"})
        finally:
            self._cluster.resume(follower)
        await self.clears("the follower goes on")

    async def majority_killed(self) -> None:
        """Two of three nodes."""
        self._cluster.kill("node-2", "node-3")
        await self.fires("two nodes are killed", {"NeedleShardNoLeader", "NeedleCatalogNoLeader"})
        for name in ("node-2", "node-3"):
            self._cluster.restart(name)
        await self._cluster.ready()
        await self.clears("both are back")

    async def leader_killed(self) -> None:
        """kill -9 of the node that leads."""
        leader = await self._client.leader(shard=0)
        assert leader is not None
        self._cluster.kill(leader)
        await self.fires("the leader is killed", PASSING)
        self._cluster.restart(leader)
        await self._cluster.ready(leader)
        await self.clears("it is back")

    async def all_killed(self) -> None:
        """No node answers, neither Prometheus nor anybody else."""
        self._cluster.kill(*self._cluster.nodes)
        await self.fires("all are killed", {"NeedleClusterNotScraped", "NeedleNodeNotScraped"}, looks=False)
        for name in self._cluster.nodes:
            self._cluster.restart(name)
        await self._cluster.ready()
        await self.clears("all are back")

    async def quiet(self, nodes: int) -> None:
        """Before anything is done nothing fires, and Prometheus sees so many nodes."""

        async def scraped() -> bool:
            try:
                return await asyncio.to_thread(self._prometheus.seen, "needle_cluster_healthy==1") == nodes
            except OSError:
                return False

        await wait_for(scraped, self._wait, "every node on Prometheus")
        await self.clears("at the beginning", but=PASSING)

    async def _write(self, prefix: str) -> None:
        rows = np.ones((20, 8), "f4")
        await self._client.insert_batch(ids=[f"{prefix}-{n}" for n in range(20)], vectors=rows, timeout=20)

    async def fires(
        self, what: str, alerts: Collection[str], before: Collection[str] = (), *, looks: bool = True
    ) -> None:
        """All of these fire, at once, and of this cluster only. looks: and health_check() says those that it can tell.
        before: that fired until then."""
        begun = time.monotonic()
        first: dict[str, float] = {}

        async def all_fire() -> bool:
            firing = await asyncio.to_thread(self._prometheus.firing)
            for name in firing:
                first.setdefault(name, time.monotonic() - begun)
            return set(alerts) <= set(firing)

        await wait_for(all_fire, self._wait, f"{what}: {', '.join(alerts)}")
        self._say(f"{what}: " + ", ".join(f"{name} after {seconds:.1f} s" for name, seconds in first.items()))
        books = {f"{self._scheme}://{node.http}/ui#/runbooks/" for node in self._cluster.nodes.values()}
        for name, one in (await asyncio.to_thread(self._prometheus.firing)).items():
            assert all(told["summary"] for told in one)
            # That of the cluster beside this one is not among them.
            named = {told["runbook_url"].removesuffix(name.lower()) for told in one}
            assert named <= books, f"{what}: {name} sends people to {named}"
        assert set(before) <= set(first), f"{what}: {before} did not fire"
        if not looks:
            return
        conditions = (await self._client.health_check(timeout=2.0)).conditions
        assert all(one.runbook in {book + one.alert.lower() for book in books} for one in conditions), conditions
        told = {one.alert for one in conditions}
        missing = {name for name in alerts if ALERTS[name].condition} - told - PASSING
        assert not missing, f"{what}: Prometheus says {missing}, and health_check() says {told}"

    async def clears(self, what: str, but: Collection[str] = ()) -> None:
        """Nothing fires any more, and no condition holds."""
        begun = time.monotonic()

        async def none() -> bool:
            firing = set(await asyncio.to_thread(self._prometheus.firing)) - PASSING - set(but)
            conditions = (await self._client.health_check(timeout=2.0)).conditions
            return not firing and not conditions

        await wait_for(none, self._wait, f"{what}: nothing that fires")
        self._say(f"{what}: all clear after {time.monotonic() - begun:.1f} s")


@contextlib.asynccontextmanager
async def trial(directory: Path, holds: float, say: Callable[[str], None]) -> AsyncIterator[Trial]:
    """holds: by which the rules' `for` are multiplied."""
    rules = with_holds(RULES.read_text(encoding="utf-8"), holds)
    (directory / "beside").mkdir()
    async with ProcessCluster(directory, 3, heartbeat_interval=0.1, election_timeout=0.6) as cluster:
        targets = [node.http for node in cluster.nodes.values()]
        # Another cluster in the same job, which is well.
        async with ProcessCluster(directory / "beside", 1) as beside:
            targets += [node.http for node in beside.nodes.values()]
            with Prometheus(directory / "prometheus", targets, rules) as prometheus:
                async with cluster.connect() as client:
                    one = Trial(cluster, client, prometheus, holds, say)
                    await one.quiet(len(targets))
                    yield one
