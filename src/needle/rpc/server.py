"""The listening end: accepts connections, counts what is held for all of them together, ends them.

Invariant: all connections together hold about `held_bytes_max`, at most three times that: beyond it those that hold
more than their share are refused, in requests, in unfinished frames and in answers nobody reads
(server_connection.py). Does not know methods.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from needle.base.errors import ProtocolError, TlsFailed, Unavailable
from needle.base.news import News
from needle.base.versions import FIRST, KNOWN
from needle.rpc.codec import PROTOCOL_VERSION, Hello, check_hello, parse_endpoint
from needle.rpc.connection import RpcLimits, RpcStats
from needle.rpc.handler import Handler
from needle.rpc.promise import Promise
from needle.rpc.server_connection import ServerConnection
from needle.rpc.tls import Door
from needle.rpc.tls_listener import TlsListener, listening_sockets
from needle.rpc.turns import Turns

log = logging.getLogger(__name__)

TOLD_MAX = 64
"""Refusals that are not logged again for a while."""
SWEEP_SECONDS = 1.0
BACKLOG = 1024
LOOK_SECONDS = 0.05
"""While too much is held, so often it is counted again: not for each chunk that arrives."""


class RpcServer:
    """Listens on `address` ("host:port", port 0 for any)."""

    def __init__(
        self,
        address: str,
        handler: Handler,
        *,
        cluster_id: str,
        node_id: str,
        incarnation: int = 0,
        limits: RpcLimits | None = None,
        version: int = PROTOCOL_VERSION,
        secrets: Sequence[str] = (),
        knows: int = KNOWN,
        door: Door | None = None,
        computed: Callable[[], float] = time.thread_time,
        passed: Callable[[], float] = time.monotonic,
    ) -> None:
        """secrets: of the cluster, (): it has none; the first is proved to callers, any of them is taken. knows: see
        Hello. door: for TLS; None for plain connections only. computed,
        passed: see Turns."""
        self.endpoint = parse_endpoint(address)
        self.handler = handler
        self.hello = Hello(
            version=version, cluster_id=cluster_id, node_id=node_id, incarnation=incarnation, knows=knows
        )
        self.least = FIRST
        self.secrets = tuple(secrets)
        self.door = door
        self.limits = limits or RpcLimits()
        self.stats = RpcStats()
        self.refused: Counter[str] = Counter()
        """Answers that were errors, and connections refused, by code."""
        self.connections: dict[ServerConnection, None] = {}
        self.passing: dict[ServerConnection, None] = {}
        self.known = 0
        self.tasks: dict[asyncio.Future[Any], None] = {}
        self.turns = Turns(computed, passed)
        self.more = self.turns.more
        self.held = 0
        """Bytes held for all peers; since unsent answers leave without a word, at most these."""
        self._looked_at = float("-inf")
        self._refusals = News(keys_max=TOLD_MAX)
        self._sweeper: asyncio.TimerHandle | None = None
        self._promised = 0
        self._kept: asyncio.Future[None] | None = None
        self._server: asyncio.Server | TlsListener | None = None
        self._stopped = False

    def refuse_older(self, version: int) -> None:
        """From now on refuse nodes that do not know commands and formats of `version`. Clients write none."""
        self.least = version

    def of_founding(self, founding: int) -> None:
        """This node belongs to the cluster of that founding: clients that work with another one are sent away."""
        if founding == self.hello.founding:
            return
        self.hello = msgspec.structs.replace(self.hello, founding=founding)
        for connection in list(self.connections):
            try:
                if connection.said is not None:
                    check_hello(self.hello, connection.said, accepting=True)
            except ProtocolError as error:
                connection.refuse(error)

    async def start(self) -> None:
        """Listen. Raises Unavailable with the system's reason when the address cannot be bound."""
        host, port = self.endpoint
        try:
            loop = asyncio.get_running_loop()
            if self.door is None:
                self._server = await loop.create_server(lambda: ServerConnection(self), host, port, backlog=BACKLOG)
            else:
                self._server = await self._listen_for_tls(self.door, host, port)
            self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep)
        except OSError as error:
            raise Unavailable(f"cannot listen on {host}:{port}: {error}", address=f"{host}:{port}") from error

    async def _listen_for_tls(self, door: Door, host: str, port: int) -> TlsListener:
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return TlsListener(
            listening_sockets(infos, BACKLOG),
            door,
            lambda: ServerConnection(self),
            lambda: ServerConnection(self, only_tls=True),
            self._tls_failed,
            seconds=self.limits.hello_timeout,
            room=lambda: self.limits.connections_max - len(self.connections),
        )

    def _tls_failed(self, remote: str, why: str) -> None:
        self.stats.protocol_errors += 1
        self.refused[TlsFailed.code] += 1
        level = logging.WARNING if self.is_news(remote, why) else logging.DEBUG
        log.log(level, "closing the connection from %s: %s [%s]", remote, why, TlsFailed.code)

    @property
    def open_connections(self) -> int:
        """How many there are."""
        return len(self.connections)

    @property
    def port(self) -> int:
        """The port bound."""
        if self._server is None or not self._server.sockets:
            raise Unavailable("the RPC server does not listen")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def address(self) -> str:
        """ "host:port" as bound."""
        host = self.endpoint[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def met(self, connection: ServerConnection) -> None:
        """A connection begins. The loop may have accepted it before `stop`, and tell of it behind that: nobody else
        would end it."""
        self.connections[connection] = None
        if self._stopped:
            connection.abort()

    def promised(self, more: int) -> None:
        """So many more answers are promised."""
        self._promised += more
        if self._kept is not None and not self._promised and not self._kept.done():
            self._kept.set_result(None)

    def over_budget(self, more: int) -> bool:
        """Whether `more` bytes are too many beside those that are held for all peers together."""
        limit = self.limits.held_bytes_max
        if self.held + more > limit and (now := asyncio.get_running_loop().time()) >= self._looked_at + LOOK_SECONDS:
            self._looked_at = now
            for connection in self.connections:
                connection.account()
        return self.held + more > limit

    def is_news(self, remote: str, why: str) -> bool:
        """Whether the log should tell that a connection from `remote` is refused: a node with a wrong setting tries
        again all the time, from another port each time, and says nothing new."""
        return self._refusals.is_news((remote.rpartition(":")[0], why), asyncio.get_running_loop().time())

    def _sweep(self) -> None:
        """Look after frames that do not get finished."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.connections):
            connection.account()
            connection.check_frame(now)
        self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep)

    async def stop(self) -> None:
        """Accept no more, let running requests finish (at most stop_timeout), cancel the rest, close. Idempotent."""
        server, self._server = self._server, None
        self._stopped = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        if server is not None:
            server.close()
        for connection in list(self.connections):
            connection.drain()
        running: list[asyncio.Future[Any]] = list(self.tasks)
        if self._promised:
            self._kept = asyncio.get_running_loop().create_future()
            running.append(self._kept)
        if running:
            _, late = await asyncio.wait(running, timeout=self.limits.stop_timeout)
            for task in late:
                task.cancel()
            for one in [one for connection in self.connections for one in connection.droppable]:
                if isinstance(one, Promise):  # others are among the tasks
                    one.cancel()
            if late:
                await asyncio.wait(late, timeout=self.limits.stop_timeout)
        for connection in list(self.connections):
            connection.close()
        if server is not None:
            await server.wait_closed()
