"""A node as made from configuration, over the real network."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Protocol

from needle.base.config import RaftConfig
from needle.client.directory import Caller
from needle.rpc.transport import RpcClient
from needle.server.node import Node
from needle.server.ports import Exposition, NodePorts


def system_node(config: RaftConfig, ports: NodePorts) -> Node:
    """A node whose own client uses the real network."""
    if config.http_address is not None:
        # Here, for it takes 0.2 s and 5 MB, which a node without HTTP need not spend; and not once the node has
        # started: on its event loop that is an election.
        import needle.server.http.listener  # noqa: F401

    def clients() -> Caller:
        rng = random.Random(ports.rng.getrandbits(64))
        dial = ports.certificates.dial() if ports.certificates is not None else None
        return RpcClient(
            cluster_id=config.cluster_id,
            rng=rng,
            clock=ports.clock,
            secrets=config.secrets,
            dial=dial,
            within=config.node_id,
        )

    return Node(config, ports, clients)


class Http(Protocol):
    """What listens at a node's `http_address`."""

    def drain(self) -> None:
        """Refuse what comes from now on; what is under way goes on."""
        ...

    async def stop(self) -> None:
        """End it. Idempotent."""
        ...

    @property
    def connections(self) -> int:
        """How many there are."""
        ...

    @property
    def refused(self) -> Mapping[str, int]:
        """Requests that were answered with an error, by code, since the start."""
        ...


async def http_server(node: Node, metrics: Exposition) -> Http | None:
    """Listens; None if the configuration has no `http_address`. Raises Unavailable if it is taken."""
    if node.config.http_address is None:
        return None
    from needle.server.http.listener import HttpServer  # `system_node` says why here

    certificates = node.ports.certificates
    door = certificates.http_door() if certificates is not None else None
    config = node.config
    server = HttpServer(
        config.http_address or "", node, node, metrics, api=config.http_api, tls=door, hosts=config.http_hosts
    )
    await server.start()
    return server
