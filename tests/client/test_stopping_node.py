"""A node that stops while it executes a write: what its client is told must not make it write again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import Any

import pytest

from needle.base.access import Identity, everybody
from needle.base.errors import OutcomeUnknown, SessionExpired
from needle.base.model import WriteResult
from needle.connecting import DEFAULT_CLUSTER_ID, system_caller
from needle.local.process_cluster import free_ports
from needle.protocol import calls, commands
from needle.rpc.connection import RpcLimits
from needle.rpc.server import RpcServer
from proof.plain_client import PlainClient


class RoutingNode:
    """A node that routes writes of clients that know no shards (server/service/proxy.py): its shard takes long."""

    def __init__(self, name: str, port: int, done: list[str], *, slow: bool) -> None:
        self.name = name
        self._port = port
        self._done = done
        self._slow = slow
        self.sessions: set[int] = set()
        self.busy = asyncio.Event()

    def on_oneway(self, peer: Any, body: Any) -> None:
        return

    def on_gone(self, peer: Any) -> None:
        return

    def admit(self, node_id: str, key: str, proven: bool, remote: str) -> Identity:
        return everybody()

    def is_droppable(self, method: str) -> bool:
        return False

    def on_request(self, peer: Any, method: str, body: Any) -> bytes | Awaitable[bytes]:
        if method == calls.WRITE:
            return self._write(commands.decode(calls.decode(body, calls.WriteCall).command))
        return calls.encode(calls.LeaderAnswer(self.name, self.name, 1, {}))

    async def _write(self, command: Any) -> bytes:
        if isinstance(command, commands.OpenSession):
            self.sessions.add(self._port)
            return calls.encode(WriteResult(version=0, index=self._port))
        if command.session.id not in self.sessions:
            raise SessionExpired("opened through another node")
        self._done.append(self.name)  # from here on the shard has it
        self.busy.set()
        if self._slow:
            await asyncio.Event().wait()
        return calls.encode(WriteResult(version=1, index=1))


async def test_a_write_that_a_stopping_node_gave_up_is_not_written_again_through_another() -> None:
    done: list[str] = []
    first_port, other_port = free_ports(2)
    first = RoutingNode("first", first_port, done, slow=True)
    other = RoutingNode("other", other_port, done, slow=False)

    def listener(node: RoutingNode, port: int) -> RpcServer:
        limits = RpcLimits(stop_timeout=0.02)
        return RpcServer(f"127.0.0.1:{port}", node, cluster_id=DEFAULT_CLUSTER_ID, node_id=node.name, limits=limits)

    first_server, other_server = listener(first, first_port), listener(other, other_port)
    await first_server.start()
    addresses = [f"127.0.0.1:{port}" for port in (first_port, other_port)]
    async with PlainClient(system_caller(DEFAULT_CLUSTER_ID), addresses, rng=random.Random(1)) as client:
        writing = asyncio.ensure_future(client.insert("a", [1.0, 2.0], timeout=10))
        await asyncio.wait_for(first.busy.wait(), 10)
        await other_server.start()
        await first_server.stop()
        with pytest.raises(OutcomeUnknown):
            await writing
    await other_server.stop()
    assert done == ["first"]
