"""Real processes of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.calm import CALM
from needle.client.client import Client
from needle.client.health import ClusterHealth
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.protocol.catalog_commands import StartMove


class ShardedProcesses(ProcessCluster):
    """`create` makes them a cluster."""

    def __init__(self, directory: Path, nodes: int = 6, **settings: Any) -> None:
        super().__init__(directory, nodes, **{**CALM, "sharding": {}, **settings})


async def healthy(client: Client, deadline: float = 60.0) -> ClusterHealth:
    """Wait until every shard is healthy."""

    async def look() -> ClusterHealth | None:
        health = await client.health_check(timeout=1.0)
        return health if health.healthy else None

    return await wait_for(look, deadline, "health")


async def half_moved(client: Client) -> None:
    """Half of the ranges of shard 0 go to shard 1, and this has ended."""
    shard_map = (await client.refresh_topology(timeout=1)).map
    assert shard_map is not None
    ranges = shard_map.ranges(0)
    await client.change_catalog(StartMove(1, shard_map.epoch, ranges[: len(ranges) // 2], 0, 1), timeout=10)

    async def moved() -> bool:
        now = await client.refresh_topology(timeout=0.2)
        return now.map is not None and now.map.epoch > shard_map.epoch and not now.moves

    await wait_for(moved, 60, "the move")
