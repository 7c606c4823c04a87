"""The calling end: one connection an address, many calls in flight, one-way frames, reconnecting with backoff.

Invariant: every call ends with the peer's answer, the peer's error, ConnectionLost or DeadlineExceeded, within its
timeout (+ SWEEP_SECONDS). Connecting is lazy: the first call or send after a loss starts it; while an address is in its
backoff, calls fail at once so that a caller can try elsewhere. Does not know nodes' names beyond checking the hello.
"""

from __future__ import annotations

import asyncio
import copy
import socket
from typing import cast

from needle.base.errors import (
    ClientClosed,
    ConnectionLost,
    DeadlineExceeded,
    FrameTooLarge,
    NeedleError,
    ProtocolError,
)
from needle.base.runtime import Clock, Rng
from needle.rpc.codec import (
    PROTOCOL_VERSION,
    Hello,
    check_hello,
    decode,
    decode_error,
    encode,
    parse_endpoint,
    request_head,
)
from needle.rpc.connection import FrameConnection, RpcLimits, RpcStats
from needle.rpc.frame import ENVELOPE_BYTES, ERROR, HELLO, HELLO_ACK, ONEWAY, REQUEST, RESPONSE, Frame

SWEEP_SECONDS = 0.005
HELD_BYTES_MAX = 1 << 20
"""Calls that are due are looked for by one timer a connection, at most this often."""


class ClientConnection(FrameConnection):
    """One outgoing connection: hello first, then calls matched to answers by request id."""

    def __init__(self, link: Link, hello: Hello, limits: RpcLimits, stats: RpcStats) -> None:
        super().__init__(limits, stats)
        self._link = link
        self._hello = hello
        self.ready: asyncio.Future[Hello] = self.loop.create_future()
        self._pending: dict[int, tuple[asyncio.Future[bytes], float]] = {}
        self._next_id = 0
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at = 0.0
        self._writable: asyncio.Future[None] | None = None
        self._reason: NeedleError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.write_frame(HELLO, 0, (encode(self._hello),))

    # --- output ------------------------------------------------------------------------------------------------------
    def request(self, head: bytes, body: bytes, deadline: float) -> asyncio.Future[bytes]:
        """Send a request; the future ends by `deadline` (loop time) at the latest, give or take a sweep."""
        if self.closing:
            raise self.lost_error()
        future: asyncio.Future[bytes] = self.loop.create_future()
        self._next_id = request_id = self._next_id + 1
        self._pending[request_id] = (future, deadline)
        self.write_frame(REQUEST, request_id, (head, body))
        if self._sweep is None or deadline < self._sweep_at:
            self._arm(deadline)
        return future

    async def writable(self, deadline: float) -> None:
        """Wait until the peer reads again."""
        while self.slow and not self.closing:
            if self._writable is None:
                self._writable = self.loop.create_future()
            await asyncio.wait((self._writable,), timeout=max(0.0, deadline - self.loop.time()))
            if self.loop.time() >= deadline:
                raise DeadlineExceeded(f"{self._link.address} reads too slowly: the request could not be sent in time")

    def _arm(self, deadline: float) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep_at = max(deadline, self.loop.time() + SWEEP_SECONDS)
        self._sweep = self.loop.call_at(self._sweep_at, self._sweep_due)

    def _sweep_due(self) -> None:
        self._sweep = None
        now = self.loop.time()
        earliest = float("inf")
        due = []
        for request_id, (future, deadline) in self._pending.items():
            if deadline <= now or future.done():
                due.append(request_id)
            elif deadline < earliest:
                earliest = deadline
        for request_id in due:
            future, _ = self._pending.pop(request_id)
            if not future.done():
                self.stats.timeouts += 1
                future.set_exception(DeadlineExceeded(f"no answer from {self._link.address} in time"))
        if self._pending:
            self._arm(earliest)

    # --- input -------------------------------------------------------------------------------------------------------
    def on_frames(self, frames: list[Frame]) -> None:
        pending = self._pending
        for kind, request_id, payload in frames:
            if kind == RESPONSE and request_id:
                entry = pending.pop(request_id, None)
                if entry is not None and not entry[0].done():
                    entry[0].set_result(payload if isinstance(payload, bytes) else bytes(payload))
                else:
                    self.stats.late_answers += 1
                continue
            try:
                self._other(kind, request_id, payload if isinstance(payload, bytes) else bytes(payload))
            except ProtocolError as error:
                self._violated(error)
                return
        if self.decoder.error is not None:
            self._violated(self.decoder.error)

    def _other(self, kind: int, request_id: int, payload: bytes) -> None:
        if kind == ERROR and request_id:
            error = decode_error(payload)
            entry = self._pending.pop(request_id, None)
            if entry is not None and not entry[0].done():
                entry[0].set_exception(error)
            else:
                self.stats.late_answers += 1
        elif kind == ERROR:
            # The server refuses this connection and says why.
            self._reason = decode_error(payload)
            self.close()
        elif kind == HELLO_ACK and not self.ready.done():
            theirs = decode(payload, Hello)
            check_hello(self._hello, theirs, expected_node=self._link.expected_node)
            self.ready.set_result(theirs)
        else:
            raise ProtocolError(f"{self._link.address} sent frame kind {kind}, which a client does not take")

    def _violated(self, error: ProtocolError) -> None:
        self.stats.protocol_errors += 1
        self._reason = error
        self.abort()

    # --- flow and end ------------------------------------------------------------------------------------------------
    def on_flow(self) -> None:
        if not self.slow:
            self._release_writers()

    def _release_writers(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def lost_error(self) -> ConnectionLost:
        """A fresh error for one call that the loss of this connection ends."""
        why = f": {self._reason}" if self._reason is not None else ""
        return ConnectionLost(f"the connection to {self._link.address} is lost{why}", address=self._link.address)

    def end(self, error: NeedleError) -> None:
        """Close; calls in flight end with `error` now, whether or not the peer still reads."""
        if self._reason is None:
            self._reason = error
        self._fail_pending(error)
        self.close()

    def _fail_pending(self, error: NeedleError | None = None) -> None:
        pending, self._pending = self._pending, {}
        for future, _ in pending.values():
            if not future.done():
                future.set_exception(copy.copy(error) if error is not None else self.lost_error())

    def on_lost(self, error: Exception | None) -> None:
        if self._reason is None and error is not None:
            self._reason = ConnectionLost(str(error), address=self._link.address)
        if self._sweep is not None:
            self._sweep.cancel()
        self._fail_pending()
        if not self.ready.done():
            self.ready.set_exception(copy.copy(self._reason) if self._reason is not None else self.lost_error())
            self.ready.exception()  # also when nobody waits any more, it counts as seen
        self._release_writers()
        self._link.lost(self)


def _closed() -> ClientClosed:
    return ClientClosed("this client is closed")


class Link:
    """What a client knows of one address: its connection, the attempt under way, and when the next may start."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.expected_node = ""
        self.connection: ClientConnection | None = None
        self.connecting: asyncio.Task[None] | None = None
        self.was_connected = False
        self.failures = 0
        self.retry_at = 0.0
        self.error: NeedleError | None = None
        self.held: list[bytes] = []
        """One-way frames that wait for the connection under way."""
        self.held_bytes = 0

    def take_held(self) -> list[bytes]:
        held, self.held, self.held_bytes = self.held, [], 0
        return held

    def lost(self, connection: ClientConnection) -> None:
        if self.connection is connection:
            self.connection = None

    def drop(self, error: NeedleError | None = None) -> None:
        """Close the connection and end the attempt, if any; calls in flight end with `error` (ConnectionLost)."""
        if self.connecting is not None:
            self.connecting.cancel()
            self.connecting = None
        if self.connection is not None:
            connection, self.connection = self.connection, None
            if error is not None:
                connection.end(error)
            else:
                connection.close()


class RpcClient:
    """Calls and one-way frames to any address of one cluster. Use from one event loop."""

    def __init__(
        self,
        *,
        cluster_id: str,
        node_id: str = "",
        rng: Rng,
        clock: Clock,
        incarnation: int = 0,
        limits: RpcLimits | None = None,
        version: int = PROTOCOL_VERSION,
    ) -> None:
        self._hello = Hello(version=version, cluster_id=cluster_id, node_id=node_id, incarnation=incarnation)
        self._rng = rng
        self._clock = clock
        self._limits = limits or RpcLimits()
        self._links: dict[str, Link] = {}
        self._closed = False
        self.stats = RpcStats()

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        """Ask `address` and wait at most `timeout` seconds. Raises the peer's NeedleError, ConnectionLost,
        DeadlineExceeded, the refusal of a hello (WrongCluster, ...) or FrameTooLarge."""
        head = request_head(method)
        size = len(head) + len(body) + ENVELOPE_BYTES
        if size > self._limits.frame_bytes_max:
            limit = self._limits.frame_bytes_max
            raise FrameTooLarge(f"a request of {size} bytes is over the limit of {limit}", bytes=size, limit=limit)
        deadline = asyncio.get_running_loop().time() + timeout
        link = self._links.get(address)
        connection = link.connection if link is not None else None
        if connection is None:
            connection = await self._connected(address, deadline)
        if connection.slow:
            await connection.writable(deadline)
        return await connection.request(head, body, deadline)

    def send(self, address: str, body: bytes) -> bool:
        """Queue a one-way frame. False if it was dropped: not connected and the backoff forbids to try, the queue is
        full, or the frame is over the limit. Frames queued while connecting are sent when that succeeds: an election
        must not wait another timeout because its first vote request only opened the connection."""
        link = self._links.get(address)
        connection = link.connection if link is not None else None
        size = len(body) + ENVELOPE_BYTES
        if connection is None:
            link = self._link(address)
            if self._start_connecting(link) and link.held_bytes + size <= HELD_BYTES_MAX:
                link.held.append(body)
                link.held_bytes += size
                return True
        elif size <= self._limits.frame_bytes_max and not connection.closing:
            unsent = connection.unsent_bytes()
            # A frame larger than the whole queue may pass alone, otherwise it never could.
            if not unsent or unsent + size <= self._limits.oneway_bytes_max:
                connection.write_frame(ONEWAY, 0, (body,))
                return True
        self.stats.dropped_frames += 1
        self.stats.dropped_bytes += len(body)
        return False

    def connected(self, address: str) -> bool:
        """Whether a connection to `address` has passed its hello."""
        link = self._links.get(address)
        return link is not None and link.connection is not None

    async def connect(self, address: str, timeout: float) -> None:
        """Wait until `address` is connected; raises like `call`."""
        await self._connected(address, asyncio.get_running_loop().time() + timeout)

    def expect(self, address: str, node_id: str) -> None:
        """Refuse whoever answers at `address` under another node id ("" accepts anyone). Drops a present connection."""
        link = self._link(address)
        if link.expected_node != node_id:
            link.drop()
            link.expected_node, link.retry_at, link.failures = node_id, 0.0, 0

    def forget(self, address: str) -> None:
        """Close the connection to `address` and drop all that is known of it; calls in flight get ConnectionLost."""
        link = self._links.pop(address, None)
        if link is not None:
            link.drop()

    async def close(self) -> None:
        """Close every connection; calls in flight end with ClientClosed, as do later ones. Idempotent."""
        self._closed = True
        links, self._links = list(self._links.values()), {}
        tasks = [link.connecting for link in links if link.connecting is not None]
        for link in links:
            link.drop(_closed())
        if tasks:
            await asyncio.wait(tasks)

    # --- connecting --------------------------------------------------------------------------------------------------
    def _link(self, address: str) -> Link:
        link = self._links.get(address)
        if link is None:
            parse_endpoint(address)
            link = self._links[address] = Link(address)
        return link

    async def _connected(self, address: str, deadline: float) -> ClientConnection:
        link = self._link(address)
        if link.connection is None:
            if not self._start_connecting(link):
                raise self._why_not(link)
            timeout = max(0.0, deadline - asyncio.get_running_loop().time())
            # wait() leaves the attempt running when this caller gives up or is cancelled: others wait for it too.
            done, _ = await asyncio.wait((cast("asyncio.Task[None]", link.connecting),), timeout=timeout)
            if not done:
                self.stats.timeouts += 1
                raise DeadlineExceeded(f"{address} did not accept a connection in time", address=address)
        if link.connection is None:
            raise self._why_not(link)
        return link.connection

    def _why_not(self, link: Link) -> NeedleError:
        if self._closed:
            return _closed()
        if link.error is None:
            return ConnectionLost(f"no connection to {link.address}", address=link.address)
        return copy.copy(link.error)

    def _start_connecting(self, link: Link) -> bool:
        """Whether an attempt is under way (started now, if the backoff allows)."""
        if link.connecting is None:
            if self._closed or self._clock.monotonic() < link.retry_at:
                return False
            link.connecting = asyncio.get_running_loop().create_task(self._connect(link))
        return True

    async def _connect(self, link: Link) -> None:
        """One attempt: TCP, then the hello, both within hello_timeout. Its outcome is left in `link`."""
        connection: ClientConnection | None = None
        try:
            async with asyncio.timeout(self._limits.hello_timeout):
                host, port = parse_endpoint(link.address)
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(
                    lambda: ClientConnection(link, self._hello, self._limits, self.stats), host, port
                )
                await connection.ready
        except NeedleError as error:
            self._failed(link, error)
        except TimeoutError:
            text = f"{link.address} did not finish the hello within {self._limits.hello_timeout:g} s"
            self._failed(link, ConnectionLost(text, address=link.address))
        except OSError as error:
            # Nobody listens, or there is no such host: waiting helps only if somebody starts a node.
            refused = isinstance(error, ConnectionRefusedError | socket.gaierror)
            text = f"cannot connect to {link.address}: {error}"
            self._failed(link, ConnectionLost(text, address=link.address, refused=refused))
        else:
            if not connection.closing:
                self.stats.connects += 1
                self.stats.reconnects += link.was_connected
                link.connection, link.was_connected, link.failures, link.error = connection, True, 0, None
                connection = None
                for body in link.take_held():
                    link.connection.write_frame(ONEWAY, 0, (body,))
            else:
                self._failed(link, connection.lost_error())
        finally:
            if connection is not None:
                connection.abort()
            if link.connecting is asyncio.current_task():
                link.connecting = None

    def _failed(self, link: Link, error: NeedleError) -> None:
        """Remember why, and pause: backoff_min doubling to backoff_max, times 0.5 to 1 so that clients spread out."""
        self.stats.connect_failures += 1
        for body in link.take_held():
            self.stats.dropped_frames += 1
            self.stats.dropped_bytes += len(body)
        pause = min(self._limits.backoff_max, self._limits.backoff_min * 2.0 ** min(link.failures, 30))
        link.failures += 1
        link.error = error
        link.retry_at = self._clock.monotonic() + pause * self._rng.uniform(0.5, 1.0)
