"""Real processes of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from needle.client.client import Client
from needle.client.health import ClusterHealth
from needle.local.process_cluster import ProcessCluster, wait_for

CALM = {"election_timeout": 0.6, "heartbeat_interval": 0.1}
"""Many nodes share few cores here."""


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
