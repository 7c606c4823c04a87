"""A node as made from configuration, over the real network."""

from __future__ import annotations

import random

from needle.base.config import RaftConfig
from needle.client.directory import Caller
from needle.rpc.transport import RpcClient
from needle.server.node import Node
from needle.server.ports import NodePorts


def system_node(config: RaftConfig, ports: NodePorts) -> Node:
    """A node whose own client uses the real network."""

    def clients() -> Caller:
        rng = random.Random(ports.rng.getrandbits(64))
        return RpcClient(cluster_id=config.cluster_id, rng=rng, clock=ports.clock)

    return Node(config, ports, clients)
