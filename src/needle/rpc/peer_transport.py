"""Messages to nodes by name: the `multiraft.ports.Transport` of a running node.

Invariant: a frame meant for a node is only ever sent over a connection whose hello said that node's name. The address
book is the caller's; it is asked on every message, so a change takes effect with the next one.
"""

from __future__ import annotations

from collections.abc import Callable

from needle.base.errors import ConnectionLost
from needle.base.ids import NodeId
from needle.base.parts import Body, Payload
from needle.rpc.transport import RpcClient


class PeerTransport:
    """Sends through `client`, which it shares with nobody: the connections it makes are bound to node names."""

    def __init__(self, client: RpcClient, address_of: Callable[[NodeId], str | None]) -> None:
        """address_of: the present "host:port" of a node, or None when it is not known."""
        self.client = client
        self._address_of = address_of
        self._used: dict[NodeId, str] = {}

    def send(self, to: NodeId, body: Body) -> bool:
        """Queue one one-way frame; False if it was dropped (no address, not connected yet, queue full)."""
        address = self._address_of(to)
        if address is None:
            return False
        if self._used.get(to) != address:
            self._moved(to, address)
        return self.client.send(address, body, to)

    async def call(self, to: NodeId, method: str, body: bytes, timeout: float) -> Payload:
        """Ask a node, wait at most `timeout` seconds; raises like RpcClient.call, ConnectionLost without an address."""
        address = self._address_of(to)
        if address is None:
            raise ConnectionLost(f"no address is known for node {to!r}", node=to)
        if self._used.get(to) != address:
            self._moved(to, address)
        return await self.client.call(address, method, body, timeout, to)

    def update(self) -> None:
        """The address book changed: drop the connections to nodes that left it or moved."""
        for node, used in list(self._used.items()):
            address = self._address_of(node)
            if address is None:
                self.forget(node)
            elif address != used:
                self._moved(node, address)

    def refuse_older(self, version: int) -> None:
        """From now on refuse nodes that do not know commands and formats of `version`."""
        self.client.refuse_older(version)

    def forget(self, node: NodeId) -> None:
        """Close the connection to `node`; the next message connects again, and checks the node's name again."""
        used = self._used.pop(node, None)
        if used is not None:
            self.client.forget(used, node)

    def _moved(self, node: NodeId, address: str) -> None:
        self.forget(node)
        self._used[node] = address
