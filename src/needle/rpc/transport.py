"""The calling end: one connection an address (and node, if one is meant), many calls in flight, one-way frames,
reconnecting with backoff.

Invariant: every call ends with the peer's answer, the peer's error, ConnectionLost or DeadlineExceeded, within its
timeout, give or take a sweep (client_connection.py). Connecting is lazy: the first call or send after a loss starts it;
while an address is in its backoff, calls fail at once so that a caller can try elsewhere. Does not know nodes' names
beyond checking the hello.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import socket
import ssl
from collections.abc import Sequence
from typing import cast

import msgspec

from needle.base.errors import (
    ClientClosed,
    ConnectionLost,
    DeadlineExceeded,
    FrameTooLarge,
    NeedleError,
    TlsFailed,
)
from needle.base.parts import Body, Payload, body_bytes, whole
from needle.base.request import current
from needle.base.runtime import Clock, Rng
from needle.base.versions import FIRST, KNOWN
from needle.rpc.client_connection import ClientConnection, Link
from needle.rpc.codec import (
    ABOUT_BYTES_MAX,
    PROTOCOL_VERSION,
    Hello,
    about_head,
    parse_endpoint,
    request_head,
)
from needle.rpc.connection import RpcLimits, RpcStats
from needle.rpc.frame import ENVELOPE_BYTES, ONEWAY
from needle.rpc.tls import Dial, in_words, is_plain, watched

log = logging.getLogger(__name__)

HELD_BYTES_MAX = 1 << 20
"""One-way frames of one address that wait for the connection under way."""
LINKS_FEW = 64
"""Up to so many addresses none is forgotten."""


def _closed() -> ClientClosed:
    return ClientClosed("this client is closed")


class RpcClient:
    """Calls and one-way frames to any address of one cluster. Use from one event loop.

    node: who is meant; whoever answers at the address under another node id is refused, "" means anyone. Each name has
    a connection of its own: two nodes may be known at one address, one that is there and one that was there before.
    """

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
        key: str = "",
        secrets: Sequence[str] = (),
        knows: int = KNOWN,
        dial: Dial | None = None,
        within: str = "",
    ) -> None:
        """key: an API key, "" for none. secrets: of the cluster, of a node and its own clients: any of them is taken
        from the other side, and proved to it. knows, within: see Hello. dial: for TLS; None for plain connections."""
        self._hello = Hello(
            version=version,
            cluster_id=cluster_id,
            node_id=node_id,
            incarnation=incarnation,
            key=key,
            knows=knows,
            within=within,
        )
        self._secrets = tuple(secrets)
        self._dial = dial
        self._least = FIRST
        self._rng = rng
        self._clock = clock
        self._limits = limits or RpcLimits()
        self._links: dict[tuple[str, str], Link] = {}
        self._tidy_at = LINKS_FEW
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """That of the first call."""
        self.stats = RpcStats()

    async def call(self, address: str, method: str, body: Body, timeout: float, node: str = "") -> Payload:
        """Ask `address` and wait at most `timeout` seconds. Raises the peer's NeedleError, ConnectionLost,
        DeadlineExceeded, the refusal of a hello (WrongCluster, ...) or FrameTooLarge."""
        head = request_head(method)
        size = len(head) + body_bytes(body) + ENVELOPE_BYTES
        if size > self._limits.frame_bytes_max:
            limit = self._limits.frame_bytes_max
            raise FrameTooLarge(f"a request of {size} bytes is over the limit of {limit}", bytes=size, limit=limit)
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._check_loop(loop)
        deadline = loop.time() + timeout
        link = self._links.get((address, node))
        connection = link.connection if link is not None else None
        if connection is None:
            connection = await self._connected(address, node, deadline)
        if connection.slow:
            await connection.writable(deadline)
        about = current.get()
        room = size + ABOUT_BYTES_MAX <= self._limits.frame_bytes_max
        if about is not None and not about.over and connection.takes_about and room:
            head = about_head(about) + head
        return await connection.request(head, body, deadline)

    def send(self, address: str, body: Body, node: str = "") -> bool:
        """Queue a one-way frame. False if it was dropped: not connected and the backoff forbids to try, the queue is
        full, or the frame is over the limit. Frames queued while connecting are sent when that succeeds: an election
        must not wait another timeout because its first vote request only opened the connection."""
        link = self._links.get((address, node))
        connection = link.connection if link is not None else None
        size = body_bytes(body) + ENVELOPE_BYTES
        if connection is None:
            link = self._link(address, node)
            if self._start_connecting(link) and link.held_bytes + size <= HELD_BYTES_MAX:
                link.held.append(whole(body))
                link.held_bytes += size
                return True
        elif size <= self._limits.frame_bytes_max and not connection.closing:
            unsent = connection.unsent_bytes()
            # A frame larger than the whole queue may pass alone, otherwise it never could.
            if not unsent or unsent + size <= self._limits.oneway_bytes_max:
                connection.write_frame(ONEWAY, 0, (body,) if isinstance(body, bytes) else body)
                return True
        self.stats.dropped_frames += 1
        self.stats.dropped_bytes += size - ENVELOPE_BYTES
        return False

    def connected(self, address: str) -> bool:
        """Whether a connection to `address` has passed its hello."""
        link = self._links.get((address, ""))
        return link is not None and link.connection is not None

    async def connect(self, address: str, timeout: float) -> None:
        """Wait until `address` is connected; raises like `call`."""
        loop = asyncio.get_running_loop()
        self._check_loop(loop)
        await self._connected(address, "", loop.time() + timeout)

    def refuse_older(self, version: int) -> None:
        """From now on refuse nodes that do not know commands and formats of `version`."""
        self._least = version

    def of_founding(self, founding: int) -> None:
        """This client works with the cluster of that founding: from now on it has nothing to do with nodes of another
        one, nor with connections to nodes that belonged to none when they were made."""
        self._hello = msgspec.structs.replace(self._hello, founding=founding)
        for link in self._links.values():
            if link.connecting is not None or (link.connection is not None and link.connection.founding != founding):
                link.drop()

    def forget(self, address: str, node: str = "") -> None:
        """Close the connection to `address` and drop all that is known of it; calls in flight get ConnectionLost."""
        link = self._links.pop((address, node), None)
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

    def _check_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raises ClientClosed in another event loop than the first: a request would be queued for that one, and sent
        when it runs again, after its caller was told that it failed."""
        if self._loop is None:
            self._loop = loop
        elif loop is not self._loop:
            raise ClientClosed("this client belongs to another event loop: connect in the one that uses it")

    # --- connecting --------------------------------------------------------------------------------------------------
    def _link(self, address: str, node: str) -> Link:
        link = self._links.get((address, node))
        if link is None:
            parse_endpoint(address)
            if len(self._links) >= self._tidy_at:
                self._tidy()
            link = self._links[address, node] = Link(address, node)
        return link

    def _tidy(self) -> None:
        """Forget the addresses without a connection, or an attempt, whose pause is over: nodes come to other addresses
        for as long as this client lives. Called when their number has doubled."""
        now = self._clock.monotonic()
        for key, link in list(self._links.items()):
            if link.connection is None and link.connecting is None and link.retry_at <= now:
                del self._links[key]
        self._tidy_at = max(LINKS_FEW, 2 * len(self._links))

    async def _connected(self, address: str, node: str, deadline: float) -> ClientConnection:
        link = self._link(address, node)
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
                connection = await self._open(link)
                await connection.ready
        except NeedleError as error:
            self._failed(link, error)
        except TimeoutError:
            text = f"{link.address} did not finish the hello within {self._limits.hello_timeout:g} s"
            self._failed(link, ConnectionLost(text, address=link.address))
        except (OSError, ValueError) as error:
            # Nobody listens, or there is no such host: waiting helps only if somebody starts a node. What can be no
            # host's name at all is a ValueError: Python encodes it itself before it asks the system.
            refused = isinstance(error, ConnectionRefusedError | socket.gaierror | ValueError)
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

    async def _open(self, link: Link) -> ClientConnection:
        """TCP, and TLS if it is to be. Raises TlsFailed, OSError."""
        dial, failures = self._dial, watched()
        try:
            return await self._open_by(link, dial)
        except OSError as error:
            failure = failures[0] if failures else error
            if dial is None or not isinstance(failure, ssl.SSLError):
                raise
            if not (dial.optional and is_plain(failure)):
                raise in_words(failure, link.address, dial.shown) from None
        return await self._open_by(link, None)

    async def _open_by(self, link: Link, dial: Dial | None) -> ClientConnection:
        host, port = parse_endpoint(link.address)
        made = ClientConnection(link, self._hello, self._limits, self.stats, self._secrets, self._least, dial)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: made,
                host,
                port,
                ssl=dial.context() if dial is not None else None,
                server_hostname=host if dial is not None else None,
                ssl_handshake_timeout=self._limits.hello_timeout if dial is not None else None,
            )
        except BaseException:
            made.given_up()
            raise
        return made

    def _failed(self, link: Link, error: NeedleError) -> None:
        """Remember why, and pause: backoff_min doubling to backoff_max, times 0.5 to 1 so that clients spread out."""
        if isinstance(error, TlsFailed) and self._hello.node_id and str(link.error) != str(error):
            log.warning("no connection to node %s: %s", link.expected_node or link.address, error)
        self.stats.connect_failures += 1
        for body in link.take_held():
            self.stats.dropped_frames += 1
            self.stats.dropped_bytes += len(body)
        pause = min(self._limits.backoff_max, self._limits.backoff_min * 2.0 ** min(link.failures, 30))
        link.failures += 1
        link.error = error
        link.retry_at = self._clock.monotonic() + pause * self._rng.uniform(0.5, 1.0)
