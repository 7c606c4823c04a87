"""A scan: documents page by page, one after the other, or all of them as an Arrow table.

Knows pages and cursors, not where they come from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple

from needle.base.errors import InvalidArgument
from needle.base.model import Document
from needle.client import answers, arrow_tables
from needle.protocol.calls import DocumentBatch


class Batch(NamedTuple):
    """A page. cursor: of the next one, None behind the last."""

    documents: DocumentBatch
    cursor: str | None


class Place:
    """How far a scan has come."""

    def __init__(self, cursor: str | None, with_vectors: bool) -> None:
        self.cursor = cursor
        self.done = self.begun = False
        self.with_vectors = with_vectors
        self.left: deque[Document] = deque()

    def took(self, batch: Batch) -> DocumentBatch:
        """A page was read."""
        self.begun, self.cursor, self.done = True, batch.cursor, batch.cursor is None
        return batch.documents

    def check_whole(self) -> None:
        """Raises InvalidArgument once documents were taken one by one."""
        if self.begun:
            raise InvalidArgument(
                "documents of this scan were read already; begin another one for a table", field="scan"
            )


class Scan(AsyncIterator[Document]):
    """Documents one after the other, in the order of their ids; `async for` reads them page by page."""

    def __init__(
        self, read: Callable[[str | None], Awaitable[Batch]], cursor: str | None, *, with_vectors: bool
    ) -> None:
        """read: a page by its cursor."""
        self.read = read
        self.place = Place(cursor, with_vectors)

    def __aiter__(self) -> Scan:
        return self

    async def __anext__(self) -> Document:
        place = self.place
        while not place.left:
            if place.done:
                raise StopAsyncIteration
            place.left.extend(answers.documents(place.took(await self.read(place.cursor))))
        return place.left.popleft()

    async def aclose(self) -> None:
        """Read no more."""
        self.place.done = True
        self.place.left.clear()

    async def to_arrow(self) -> Any:
        """All of them as a `pyarrow.Table`: id, vector (with `with_vectors`), metadata as JSON text, expires_at. What
        it gives, inserts take. Needs pyarrow; the table is in memory as a whole."""
        arrow_tables.library()
        place, found = self.place, list[DocumentBatch]()
        place.check_whole()
        while not place.done:
            found.append(place.took(await self.read(place.cursor)))
        return arrow_tables.table(found, vectors=place.with_vectors)


class SyncScan(Iterator[Document]):
    """`Scan` for code without asyncio."""

    def __init__(self, read: Callable[[str | None], Batch], place: Place) -> None:
        """read: as of Scan, blocking. place: where it begins."""
        self._read = read
        self._place = place

    def __next__(self) -> Document:
        place = self._place
        while not place.left:
            if place.done:
                raise StopIteration
            place.left.extend(answers.documents(place.took(self._read(place.cursor))))
        return place.left.popleft()

    def to_arrow(self) -> Any:
        """See Scan.to_arrow."""
        arrow_tables.library()
        place, found = self._place, list[DocumentBatch]()
        place.check_whole()
        while not place.done:
            found.append(place.took(self._read(place.cursor)))
        return arrow_tables.table(found, vectors=place.with_vectors)
