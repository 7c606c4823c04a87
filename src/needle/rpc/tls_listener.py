"""A listening socket for TLS, and for plain connections beside it where those are let in or told why they are not.

A connection's first bytes are looked at without being taken; then the event loop gets it, with TLS or without, so what
comes after costs nothing more. Invariant: at most `room()` connections have not said enough or are in a handshake, or
WAITING_MIN where there is less, each for `seconds` at the most; beyond it the one that waits longest is closed. Knows
no protocol above.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final

from needle.rpc.tls import HANDSHAKE, Door, in_words, watched

log = logging.getLogger(__name__)

ACCEPTED_A_TURN: Final = 64
PAUSE_SECONDS: Final = 0.5
"""After an error of accept, such as too many open files."""
WAITING_MIN: Final = 4
"""So many may wait however many are served: who is served keeps nobody out for good."""
LOOK_SECONDS: Final = 0.02
"""Until the first bytes are looked at again, where too few have come; twice as long each time."""
FIRST_BYTES: Final = 3
Factory = Callable[[], asyncio.BaseProtocol]
Info = tuple[int, int, int, str, tuple[Any, ...]]
"""An answer of getaddrinfo."""


class TlsListener:
    """Serves `sockets`. `close()` stops accepting; connections that were handed over live on."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        door: Door,
        factory: Factory,
        refuse: Factory,
        told: Callable[[str, str], None],
        *,
        seconds: float,
        room: Callable[[], int],
    ) -> None:
        """factory: makes the protocol of a connection; refuse: that of a plain one where TLS is required. told: is
        called with "host:port" and the reason when a handshake fails. room: for how many connections there is room
        beside those that were handed over: who waits holds a file too."""
        self.sockets = tuple(sockets)
        self._door = door
        self._factory = factory
        self._refuse = refuse
        self._told = told
        self._seconds = seconds
        self._room = room
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[asyncio.Task[None], None] = {}
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._closed = False
        for one in self.sockets:
            one.setblocking(False)
            self._listen(one)

    def _listen(self, one: socket.socket) -> None:
        self._pauses.pop(one, None)
        self._loop.add_reader(one, self._accept, one)

    def _accept(self, listening: socket.socket) -> None:
        room = max(WAITING_MIN, self._room())
        # Who is closed for another holds its file until the next turn: a full house takes few at a time.
        for _ in range(min(ACCEPTED_A_TURN, max(WAITING_MIN, room - len(self._waiting)))):
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("cannot accept connections for a moment: %s", error)
                self._loop.remove_reader(listening)
                self._pauses[listening] = self._loop.call_later(PAUSE_SECONDS, self._listen, listening)
                return
            if len(self._waiting) >= room:
                oldest = next(iter(self._waiting))
                del self._waiting[oldest]
                oldest.cancel()
            task = self._loop.create_task(self._admit(accepted))
            self._waiting[task] = None
            task.add_done_callback(lambda done: self._waiting.pop(done, None))

    async def _admit(self, accepted: socket.socket) -> None:
        """Hand one connection over, or close it."""
        handed = False
        try:
            accepted.setblocking(False)
            async with asyncio.timeout(self._seconds):
                first = await self._first_bytes(accepted)
                if not first:
                    return
                if first.startswith(HANDSHAKE):
                    handed = True
                    await self._handshake(accepted)
                else:
                    handed = True
                    factory = self._refuse if self._door.required else self._factory
                    await self._loop.connect_accepted_socket(factory, accepted)
        except (TimeoutError, OSError) as error:
            log.debug("a connection ended before it began: %s", error)
        finally:
            if not handed:
                accepted.close()

    async def _first_bytes(self, accepted: socket.socket) -> bytes:
        pause = LOOK_SECONDS
        while True:
            await self._readable(accepted)
            first = accepted.recv(FIRST_BYTES, socket.MSG_PEEK)
            if len(first) == FIRST_BYTES or not HANDSHAKE.startswith(first[:2]) or not first:
                return first
            await asyncio.sleep(pause)  # what is there makes it readable already
            pause *= 2

    async def _readable(self, accepted: socket.socket) -> None:
        there = asyncio.Event()
        self._loop.add_reader(accepted, there.set)
        try:
            await there.wait()
        finally:
            self._loop.remove_reader(accepted)

    async def _handshake(self, accepted: socket.socket) -> None:
        try:
            peer = accepted.getpeername()
            remote = f"{peer[0]}:{peer[1]}"
        except OSError:
            remote = "?"
        failures = watched()
        try:
            await self._loop.connect_accepted_socket(
                self._factory, accepted, ssl=self._door.context(), ssl_handshake_timeout=self._seconds
            )
        except OSError as error:
            failure = failures[0] if failures else error
            if isinstance(failure, ssl.SSLError):
                self._told(remote, in_words(failure, "the caller", self._door.shown).message)
            else:
                log.debug("the handshake of %s did not end: %s", remote, failure)

    def close(self) -> None:
        """Accept no more, and end what waits. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for one in self.sockets:
            if (pause := self._pauses.pop(one, None)) is not None:
                pause.cancel()
            else:
                self._loop.remove_reader(one)
            one.close()
        for task in tuple(self._waiting):
            task.cancel()

    async def wait_closed(self) -> None:
        """Until nothing waits any more."""
        if waiting := tuple(self._waiting):
            await asyncio.wait(waiting)


def listening_sockets(infos: Sequence[Info], backlog: int) -> list[socket.socket]:
    """A socket for each address, as `asyncio` makes them for a server. Raises OSError."""
    made: list[socket.socket] = []
    try:
        for family, kind, number, _, address in infos:
            one = socket.socket(family, kind, number)
            made.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
            one.listen(backlog)
    except OSError:
        for one in made:
            one.close()
        raise
    return made
