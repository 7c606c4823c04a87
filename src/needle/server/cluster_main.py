"""A node of a sharded cluster as made from configuration, over the real network."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from needle.base.config import RaftConfig, check_range, parse_address, refuse
from needle.client.directory import Caller
from needle.routing.loading import load_routers
from needle.rpc.transport import RpcClient
from needle.server.cluster_node import ClusterNode, ClusterOptions
from needle.server.ports import NodePorts

SECTION = "sharding"
"""The table of a node's configuration file that makes it a node of a sharded cluster."""


def cluster_options(values: Mapping[str, Any]) -> ClusterOptions:
    """From the table `[sharding]`: join (addresses of nodes of a running cluster), zone, weight, router_modules (which
    are imported here, see `routers`). Raises ConfigError."""
    known = ("join", "zone", "weight", "router_modules")
    for key in values:
        if key not in known:
            raise refuse(f"{SECTION}.{key}", values[key], f"one of {', '.join(known)}")
    modules = values.get("router_modules", [])
    load_routers([modules] if isinstance(modules, str) else modules, f"{SECTION}.router_modules")
    seeds = values.get("join", [])
    for seed in [seeds] if isinstance(seeds, str) else seeds:
        parse_address(f"{SECTION}.join", seed)
    return ClusterOptions(
        seeds=(seeds,) if isinstance(seeds, str) else tuple(seeds),
        zone=str(values.get("zone", "")),
        weight=check_range(f"{SECTION}.weight", values.get("weight", 1.0), 0, 1000),
    )


def cluster_node(config: RaftConfig, ports: NodePorts, options: ClusterOptions) -> ClusterNode:
    """A node whose own client uses the real network."""

    def clients() -> Caller:
        rng = random.Random(ports.rng.getrandbits(64))
        return RpcClient(cluster_id=config.cluster_id, rng=rng, clock=ports.clock)

    return ClusterNode(config, ports, options, clients)
