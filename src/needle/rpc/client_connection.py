"""One outgoing connection, and what a client knows of its address.

Invariant: every request ends with the peer's answer, the peer's error, ConnectionLost or DeadlineExceeded, by its
deadline (+ SWEEP_SECONDS). Does not know when to connect, nor other addresses.
"""

from __future__ import annotations

import asyncio
import copy
import ssl
from collections.abc import Sequence

import msgspec

from needle.base.errors import (
    ConnectionLost,
    DeadlineExceeded,
    NeedleError,
    OutOfMemory,
    ProtocolError,
    Unauthenticated,
)
from needle.base.parts import Body, Payload, as_bytes
from needle.base.versions import FIRST
from needle.rpc.codec import ABOUT_SINCE, Hello, check_hello, decode, decode_error, encode
from needle.rpc.connection import FrameConnection, RpcLimits, RpcStats
from needle.rpc.frame import ERROR, GATHERED_BYTES_MIN, HELLO, HELLO_ACK, REQUEST, RESPONSE, Frame
from needle.rpc.proof import CALLER, NODE, Exchange, new_nonce
from needle.rpc.tls import Dial, check_node_name, in_words

SWEEP_SECONDS = 0.005
"""Calls that are due are looked for by one timer a connection, at most this often."""


class ClientConnection(FrameConnection):
    """One outgoing connection: hello first, then calls matched to answers by request id."""

    def __init__(
        self,
        link: Link,
        hello: Hello,
        limits: RpcLimits,
        stats: RpcStats,
        secrets: Sequence[str] = (),
        least: int = FIRST,
        dial: Dial | None = None,
    ) -> None:
        """secrets: of the cluster, of a node: that which the other side proves is proved to it; () of others. least:
        see check_hello. dial: how TLS is spoken on this connection, None if it is not."""
        super().__init__(limits, stats)
        self._link = link
        self._secrets = secrets
        self._least = least
        self._dial = dial
        self._hello = msgspec.structs.replace(hello, nonce=new_nonce()) if secrets else hello
        self.ready: asyncio.Future[Hello] = self.loop.create_future()
        self.takes_about = False
        """Whether the node understands what is told of a request before its head."""
        self.founding = 0
        """Of the cluster of which the node said to be."""
        self._pending: dict[int, tuple[asyncio.Future[Payload], float]] = {}
        self._next_id = 0
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at = 0.0
        self._writable: asyncio.Future[None] | None = None
        self._reason: NeedleError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.write_frame(HELLO, 0, (encode(self._hello),))

    # --- output ------------------------------------------------------------------------------------------------------
    def request(self, head: bytes, body: Body, deadline: float) -> asyncio.Future[Payload]:
        """Send a request; the future ends by `deadline` (loop time) at the latest, give or take a sweep."""
        if self.closing:
            raise self.lost_error()
        future: asyncio.Future[Payload] = self.loop.create_future()
        self._next_id = request_id = self._next_id + 1
        self._pending[request_id] = (future, deadline)
        self.write_frame(REQUEST, request_id, (head, body) if isinstance(body, bytes) else (head, *body))
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
                    # A small part of a chunk must not keep it alive; a large frame is not copied on the event loop.
                    entry[0].set_result(payload if len(payload) >= GATHERED_BYTES_MIN else as_bytes(payload))
                else:
                    self.stats.late_answers += 1
                continue
            try:
                self._other(kind, request_id, payload)
            except (ProtocolError, Unauthenticated) as error:
                self._violated(error)
                return
        if self.decoder.error is not None:
            self._violated(self.decoder.error)

    def _other(self, kind: int, request_id: int, payload: Payload) -> None:
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
            check_hello(self._hello, theirs, expected_node=self._link.expected_node, least=self._least)
            if self._dial is not None and self._dial.by_name and self.transport is not None:
                shown = self.transport.get_extra_info("peercert")
                check_node_name(shown, theirs.node_id, f"the node at {self._link.address}")
            self._prove(theirs)
            self.takes_about, self.founding = theirs.knows >= ABOUT_SINCE, theirs.founding
            self.ready.set_result(theirs)
        else:
            raise ProtocolError(f"{self._link.address} sent frame kind {kind}, which a client does not take")

    def _prove(self, theirs: Hello) -> None:
        """Say hello once more, with a proof of the secret, to a node that asks for it and has proved its own. To one
        that has no secret there is nothing to prove: whether it may go without is its settings' to say."""
        if not self._secrets or not theirs.nonce:
            return
        mine = self._hello
        made = Exchange(mine.cluster_id, mine.node_id, theirs.node_id, mine.nonce, theirs.nonce)
        known = made.proven(self._secrets, NODE, theirs.proof)
        proof = msgspec.structs.replace(mine, proof=made.proof(known, CALLER))
        self.write_frame(HELLO, 0, (encode(proof),))

    def _violated(self, error: ProtocolError | OutOfMemory | Unauthenticated) -> None:
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
        if self._reason is None and isinstance(error, ssl.SSLError) and self._dial is not None:
            self._reason = in_words(error, self._link.address, self._dial.shown)
        elif self._reason is None and error is not None:
            self._reason = ConnectionLost(str(error), address=self._link.address)
        if self._sweep is not None:
            self._sweep.cancel()
        self._fail_pending()
        if not self.ready.done():
            self.ready.set_exception(copy.copy(self._reason) if self._reason is not None else self.lost_error())
            self.ready.exception()  # also when nobody waits any more, it counts as seen
        self._release_writers()
        self._link.lost(self)


class Link:
    """What a client knows of one address, and of the node that is meant there ("": any): its connection, the attempt
    under way, and when the next may start."""

    def __init__(self, address: str, expected_node: str = "") -> None:
        self.address = address
        self.expected_node = expected_node
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
