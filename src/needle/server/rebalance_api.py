"""The guide's rebalancing API: `RebalanceCoordinator` and the handle of a rebalance, over a running cluster.

    coordinator = RebalanceCoordinator(cluster)
    stats = await coordinator.get_stats()
    if stats.imbalance_ratio > 0.2:
        handle = await coordinator.start_rebalance(RebalanceConfig(max_concurrent_moves=10))
        async for progress in handle:
            print(progress.percent_complete)

Invariant: nothing here carries anything out; the cluster does, and goes on when this process ends.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Protocol

from needle.base.errors import DeadlineExceeded, invalid
from needle.base.ids import NodeId
from needle.client.client import Client
from needle.client.feeds import TIMEOUT
from needle.client.rebalancing import ShardOrCatalog, known_rebalance
from needle.client.values import Seconds
from needle.routing.jobs import Progress, RebalanceConfig
from needle.routing.plans import Plan, Wish
from needle.routing.stats import RebalanceStats
from needle.server.cluster_api import ShardManager

LOOK_SECONDS = 0.5


class WithClient(Protocol):
    """A RaftCluster: one node in this process, and a client of its cluster."""

    @property
    def client(self) -> Client: ...


class RebalanceHandle:
    """One rebalance. Any process may make another one of the same, by `RebalanceCoordinator.rebalance`."""

    def __init__(self, client: Client, id: int) -> None:
        self._client = client
        self.id = id
        self._last: Progress | None = None

    async def progress(self, *, timeout: Seconds = TIMEOUT) -> Progress:
        """How far it is, or how it ended, also when others were started since. Raises InvalidArgument for one that is
        not known any more, see `Client.rebalance_progress`."""
        if self._last is not None and self._last.is_complete:
            return self._last
        found = await self._client.rebalance_progress(self.id, timeout=timeout)
        assert found is not None  # an id was named
        self._last = found
        return found

    def is_complete(self) -> bool:
        """Whether it was over (done, failed or cancelled) when this client heard of the cluster last; it asks again in
        the background."""
        if self._last is not None and self._last.is_complete:
            return True
        known = known_rebalance(self._client)
        return known is not None and (known.id > self.id or (known.id == self.id and known.over))

    async def wait(self, timeout: Seconds | None = None) -> Progress:
        """Until it is over; how it ended. Raises DeadlineExceeded after `timeout` seconds: it goes on all the same."""
        loop = asyncio.get_running_loop()
        named = math.inf if timeout is None else timeout
        seconds = named.total_seconds() if isinstance(named, timedelta) else named
        deadline = loop.time() + seconds
        async for found in self:
            if found.is_complete:
                return found
            if loop.time() >= deadline:
                raise DeadlineExceeded(
                    f"rebalance {self.id} is {found.state} after {seconds:g} s, {int(found.percent_complete)} % done: "
                    f"{found.why or 'it goes on'}"
                )
        return await self.progress()

    async def __aiter__(self) -> AsyncIterator[Progress]:
        """Twice a second how far it is; how it ended is the last one."""
        while True:
            found = await self.progress()
            yield found
            if found.is_complete:
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def pause(self, *, timeout: Seconds = TIMEOUT) -> None:
        """Start no more moves, and copy no more, see `Client.pause_rebalance`."""
        await self._client.pause_rebalance(self.id, timeout=timeout)

    async def resume(self, *, timeout: Seconds = TIMEOUT) -> None:
        """Go on."""
        await self._client.resume_rebalance(self.id, timeout=timeout)

    async def cancel(self, *, timeout: Seconds = TIMEOUT) -> None:
        """End it, see `Client.cancel_rebalance`; `wait` returns when what is under way has ended."""
        await self._client.cancel_rebalance(self.id, timeout=timeout)


class RebalanceCoordinator:
    """What operators ask of a cluster that grows, shrinks or is uneven. The methods are `Client`'s, with handles."""

    def __init__(self, cluster: ShardManager | WithClient | Client) -> None:
        """cluster: a DistributedCluster or ShardManager, a RaftCluster, or a Client. Raises InvalidArgument for another
        object."""
        known = isinstance(cluster, ShardManager | Client)
        if not known and not isinstance(getattr(type(cluster), "client", None), property):
            raise invalid("cluster", type(cluster).__name__, "a DistributedCluster, a RaftCluster or a Client")
        self._cluster = cluster

    async def _client(self) -> Client:
        cluster = self._cluster
        if isinstance(cluster, ShardManager):
            return await cluster.client()
        return cluster if isinstance(cluster, Client) else cluster.client

    async def get_stats(self, *, timeout: Seconds = TIMEOUT) -> RebalanceStats:
        """See `Client.get_stats`."""
        return await (await self._client()).get_stats(timeout=timeout)

    async def plan(self, wish: Wish | None = None, *, timeout: Seconds = TIMEOUT) -> Plan:
        """See `Client.plan_rebalance`."""
        return await (await self._client()).plan_rebalance(wish, timeout=timeout)

    async def start_rebalance(
        self, config: RebalanceConfig | None = None, *, wish: Wish | None = None, timeout: Seconds = TIMEOUT
    ) -> RebalanceHandle:
        """See `Client.start_rebalance`."""
        client = await self._client()
        return RebalanceHandle(client, await client.start_rebalance(config, wish=wish, timeout=timeout))

    async def add_shard(self, config: RebalanceConfig | None = None, *, timeout: Seconds = TIMEOUT) -> RebalanceHandle:
        """See `Client.add_shard`."""
        client = await self._client()
        return RebalanceHandle(client, await client.add_shard(config, timeout=timeout))

    async def remove_shard(
        self, shard: int, config: RebalanceConfig | None = None, *, timeout: Seconds = TIMEOUT
    ) -> RebalanceHandle:
        """See `Client.remove_shard`."""
        client = await self._client()
        return RebalanceHandle(client, await client.remove_shard(shard, config, timeout=timeout))

    async def split_shard(
        self, shard: int, config: RebalanceConfig | None = None, *, timeout: Seconds = TIMEOUT
    ) -> RebalanceHandle:
        """See `Client.split_shard`."""
        client = await self._client()
        return RebalanceHandle(client, await client.split_shard(shard, config, timeout=timeout))

    async def move_replica(
        self,
        shard: ShardOrCatalog,
        source: NodeId,
        target: NodeId,
        config: RebalanceConfig | None = None,
        *,
        timeout: Seconds = TIMEOUT,
    ) -> RebalanceHandle:
        """See `Client.move_replica`."""
        client = await self._client()
        return RebalanceHandle(client, await client.move_replica(shard, source, target, config, timeout=timeout))

    async def replace_node(
        self, old: NodeId, new: NodeId, config: RebalanceConfig | None = None, *, timeout: Seconds = TIMEOUT
    ) -> RebalanceHandle | None:
        """See `Client.start_replacement`: None if it was done before."""
        client = await self._client()
        id_ = await client.start_replacement(old, new, config, timeout=timeout)
        return None if id_ is None else RebalanceHandle(client, id_)

    async def set_replication_factor(
        self, replicas: int, config: RebalanceConfig | None = None, *, timeout: Seconds = TIMEOUT
    ) -> RebalanceHandle | None:
        """See `Client.set_replication_factor`: None if nothing has to move."""
        client = await self._client()
        id_ = await client.set_replication_factor(replicas, config, timeout=timeout)
        return None if id_ is None else RebalanceHandle(client, id_)

    async def drain_node(
        self, node: NodeId, config: RebalanceConfig | None = None, *, timeout: Seconds = TIMEOUT
    ) -> RebalanceHandle:
        """See `Client.drain_node`."""
        client = await self._client()
        return RebalanceHandle(client, await client.drain_node(node, config, timeout=timeout))

    async def rebalance(self, id: int | None = None, *, timeout: Seconds = TIMEOUT) -> RebalanceHandle | None:
        """The last rebalance, whoever started it; None if there never was one. id: another one, see
        `Client.rebalance_progress`; raises InvalidArgument if it is not known."""
        client = await self._client()
        found = await client.rebalance_progress(id, timeout=timeout)
        return None if found is None else RebalanceHandle(client, found.id)
