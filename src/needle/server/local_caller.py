"""A client's network for code inside a node's process: calls to the node itself need no socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from needle.base.access import NODE, Identity
from needle.base.errors import ConnectionLost
from needle.base.parts import Body, Payload, whole
from needle.base.versions import KNOWN
from needle.client.directory import Caller
from needle.server.ports import LOCAL, Handler


class LocalNode(Protocol):
    """The node of this process."""

    @property
    def service(self) -> Handler: ...
    @property
    def blocking(self) -> Callable[..., Awaitable[Any]]: ...
    def alive(self) -> bool: ...


class _LocalPeer:
    """Who calls when the caller is this process: what runs in it may do everything."""

    node_id = within = ""
    remote = LOCAL
    identity = Identity("", NODE)
    knows = KNOWN


class LocalCaller:
    """A client's network in which one address is the node of this process: called directly, others through `remote`."""

    def __init__(self, node: LocalNode, address: str, remote: Caller) -> None:
        self._node = node
        self._address = address
        self._remote = remote
        self._peer = _LocalPeer()

    async def call(self, address: str, method: str, body: Body, timeout: float) -> Payload:
        """Like RpcClient.call. The node bounds the time of its own answers by the timeout in the body."""
        if address != self._address:
            return await self._remote.call(address, method, body, timeout)
        if not self._node.alive():
            raise ConnectionLost(f"the node at {address} in this process is stopped", address=address)
        made = self._node.service.on_request(self._peer, method, whole(body))
        answer = await made if isinstance(made, Awaitable) else made
        if isinstance(answer, bytes):
            return answer
        joined: bytes = await self._node.blocking(b"".join, answer)
        return joined

    def connected(self, address: str) -> bool:
        """Whether a call would be sent at once."""
        return address == self._address or self._remote.connected(address)

    async def connect(self, address: str, timeout: float) -> None:
        """Connect to another node."""
        if address != self._address:
            await self._remote.connect(address, timeout)

    async def close(self) -> None:
        """Close the connections to other nodes."""
        await self._remote.close()
