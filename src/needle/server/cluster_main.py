"""A node of a sharded cluster as made from configuration, over the real network."""

from __future__ import annotations

import random

from needle.base.config import RaftConfig
from needle.client.directory import Caller
from needle.rpc.transport import RpcClient
from needle.server.cluster_node import ClusterNode
from needle.server.ports import NodePorts


def cluster_node(config: RaftConfig, ports: NodePorts) -> ClusterNode:
    """A node whose own client uses the real network."""

    def clients() -> Caller:
        rng = random.Random(ports.rng.getrandbits(64))
        return RpcClient(cluster_id=config.cluster_id, rng=rng, clock=ports.clock)

    return ClusterNode(config, ports, clients)
