"""A TCP proxy for one directed link between two real processes, so that a test can cut, silence or slow it.

Each node is configured with the proxies' addresses of its peers and listens on its own; nothing in the product knows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import permutations


class LinkProxy:
    """Forwards connections to `target`. Directions: forward is what the connecting side sends, back the answers."""

    def __init__(self, target: str) -> None:
        self.retarget(target)
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = {"forward": asyncio.Event(), "back": asyncio.Event()}
        for event in self._flowing.values():
            event.set()
        self._refusing = False
        self.delay = 0.0
        """Seconds added to each chunk in both directions."""
        self.forwarded_bytes = 0

    def retarget(self, target: str) -> None:
        """Where new connections go from now on."""
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))

    async def start(self, port: int = 0) -> str:
        """Listen; returns the address to connect to."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Break every connection and refuse new ones until `heal`."""
        self._refusing = True
        for writer in self._writers:
            writer.transport.abort()

    def silence(self, *directions: str) -> None:
        """Hold what is sent (all directions when none is named): connections stay up and say nothing."""
        for direction in directions or ("forward", "back"):
            self._flowing[direction].clear()

    def drop_held(self) -> None:
        """Break every connection, so that what `silence` held is lost; new connections still follow the silence."""
        for writer in self._writers:
            writer.transport.abort()

    def heal(self) -> None:
        """Forward everything again."""
        self._refusing = False
        self.delay = 0.0
        for event in self._flowing.values():
            event.set()

    async def stop(self) -> None:
        """Close the listener and every connection."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._pipes:
            task.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            there, onward = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, onward}
        self._spawn(self._pipe(reader, onward, "forward"), writer, onward)
        self._spawn(self._pipe(there, writer, "back"), writer, onward)

    def _spawn(self, pipe: Awaitable[None], *ends: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(pipe)
        self._pipes.add(task)
        task.add_done_callback(self._closer(ends))

    def _closer(self, ends: tuple[asyncio.StreamWriter, ...]) -> Callable[[asyncio.Future[None]], None]:
        def close(task: asyncio.Future[None]) -> None:
            self._pipes.discard(task)
            for end in ends:
                end.transport.abort()
                self._writers.discard(end)

        return close

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(1 << 16):
                await self._flowing[direction].wait()
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(chunk)
                self.forwarded_bytes += len(chunk)
                await writer.drain()


def make_links(own: Mapping[str, str], outsiders: Iterable[str] = ()) -> dict[tuple[str, str], LinkProxy]:
    """A proxy for each directed pair of nodes, and from each outsider to each node; own: where they listen. Not
    started yet."""
    pairs = [*permutations(own, 2), *((outsider, name) for outsider in outsiders for name in own)]
    return {(a, b): LinkProxy(own[b]) for a, b in pairs}
