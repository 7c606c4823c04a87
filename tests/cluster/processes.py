"""Real processes of a sharded cluster: started, created, killed and brought back."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import needle
from needle.client.health import ClusterHealth
from needle.client.sharded import ShardedClient
from needle.connecting import Connecting, system_caller
from needle.local.free_ports import free_ports
from needle.local.process_cluster import NodeProcess, wait_for
from needle.routing.strategy import CONSISTENT_HASH, ShardStrategy
from needle.routing.topology import ClusterSettings, Topology
from needle.server.catalog.founding import create_cluster


class ShardedProcesses:
    """`nodes` processes; `create` makes them a cluster."""

    def __init__(self, directory: Path, nodes: int = 6, zones: int = 0, **settings: Any) -> None:
        self.directory = directory
        self.nodes: dict[str, NodeProcess] = {}
        ports = free_ports(2 * nodes)
        for n in range(nodes):
            self.add(ports[2 * n], ports[2 * n + 1], zone=f"zone-{n % zones}" if zones else "", **settings)

    def add(self, port: int, http: int, *, zone: str = "", join: list[str] | None = None, **settings: Any) -> str:
        name = f"node-{len(self.nodes) + 1}"
        values = {
            "node_id": name,
            "cluster_nodes": [f"{name}=127.0.0.1:{port}"],
            "listen": f"127.0.0.1:{port}",
            "http_address": f"127.0.0.1:{http}",
            "data_dir": str(self.directory / name),
            "election_timeout": 0.6,
            "heartbeat_interval": 0.1,
            "sharding": {"zone": zone, **({"join": join} if join else {})},
            **settings,
        }
        self.nodes[name] = NodeProcess(name, self.directory, values)
        return name

    async def __aenter__(self) -> ShardedProcesses:
        for node in self.nodes.values():
            node.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes.values():
            if node.running():
                node.signal(signal.SIGKILL)
                node.wait()

    @property
    def addresses(self) -> dict[str, str]:
        return {name: node.address for name, node in self.nodes.items()}

    async def create(
        self, shards: int, factor: int, strategy: ShardStrategy = CONSISTENT_HASH, *, seed: int = 1
    ) -> Topology:
        caller = system_caller("needle")
        settings = ClusterSettings(shard_count=shards, replication_factor=factor, strategy=strategy)
        try:

            async def made() -> Topology:
                return await create_cluster(caller, settings, self.addresses, rng=random.Random(seed), timeout=60)

            return await wait_for(made, 60, "the cluster's creation")
        finally:
            await caller.close()

    def connect(self, *names: str) -> Connecting:
        return needle.connect([self.nodes[name].address for name in names] or list(self.addresses.values()))

    def kill(self, name: str) -> None:
        self.nodes[name].signal(signal.SIGKILL)
        self.nodes[name].wait()

    def restart(self, name: str) -> None:
        self.nodes[name].start()


async def healthy(client: ShardedClient, deadline: float = 60.0) -> ClusterHealth:
    """Wait until every shard is healthy."""

    async def look() -> ClusterHealth | None:
        health = await client.health_check(timeout=1.0)
        return health if health.healthy else None

    return await wait_for(look, deadline, "health")
