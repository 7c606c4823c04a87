"""A plain client of server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple


class Event(NamedTuple):
    id: str
    kind: str
    data: Any


class Stream:
    """One answer, as WHATWG HTML says how to read it. status; text: of an answer that is no stream."""

    def __init__(self, reader: asyncio.StreamReader, status: int) -> None:
        self._reader = reader
        self.status = status
        self._left = b""

    async def chunk(self) -> bytes:
        """b"" at the end; raises IncompleteReadError if the answer breaks off."""
        size = int((await self._reader.readuntil(b"\r\n")), 16)
        return (await self._reader.readexactly(size + 2))[:-2]

    async def next(self) -> Event | None:
        """None at the end."""
        while True:
            while b"\n\n" in self._left:
                text, _, self._left = self._left.partition(b"\n\n")
                lines = [line.split(b": ", 1) for line in text.split(b"\n") if not line.startswith(b":")]
                fields = {name.decode(): value.decode() for name, value in lines}
                if "data" in fields:
                    return Event(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
            if not (data := await self.chunk()):
                return None
            self._left += data

    async def some(self, count: int) -> list[Event]:
        async with asyncio.timeout(30):
            found = [await self.next() for _ in range(count)]
        return [one for one in found if one is not None]


@asynccontextmanager
async def events(address: str, query: str = "", *headers: str, watch: Any = None) -> AsyncIterator[Stream]:
    """watch: the body of a request to be told what comes near."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    asked = "GET", f"changes{query}"
    body = b""
    if watch is not None:
        asked, body = ("POST", "watch"), json.dumps(watch).encode()
        headers = (*headers, "content-type: application/json", f"content-length: {len(body)}")
    lines = [f"{asked[0]} /v1/collections/default/{asked[1]} HTTP/1.1", f"host: {address}", *headers]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    stream = Stream(reader, int(head[9:12]))
    if stream.status == 200:
        assert b"content-type: text/event-stream" in head
    try:
        yield stream
    finally:
        writer.close()
