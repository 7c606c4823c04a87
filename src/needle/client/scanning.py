"""A scan: documents page by page, one after the other, or all of them as an Arrow table.

Knows pages and cursors, not where they come from.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from needle.base.errors import InvalidArgument, NeedleError
from needle.base.model import Document, ReadMode
from needle.client import answers, arrow_tables
from needle.client import cursor as cursors
from needle.client.document_calls import DocumentCalls
from needle.protocol.calls import DocumentBatch, ScanPin


class Batch(NamedTuple):
    """A page. cursor: of the next one, None behind the last."""

    documents: DocumentBatch
    cursor: str | None


class Reading(NamedTuple):
    """How pages are read: see DocumentCalls.scan. consistent: of a scan that begins. session: eventual reads see what
    the router's session has seen. named: the named vectors that come with documents."""

    limit: int
    with_vectors: bool
    mode: ReadMode
    timeout: float
    fields: tuple[str, ...] | None = None
    consistent: bool = False
    session: bool = False
    named: tuple[str, ...] = ()


async def read_batch(documents: DocumentCalls, place: cursors.Place, cursor: str | None, how: Reading) -> Batch:
    """The page at a cursor, None for the first. place: what is scanned, from any place. Raises InvalidArgument for a
    cursor that is not of it."""
    pin = ScanPin() if how.consistent else None
    if cursor is not None:
        place = cursors.decode(cursor, place)
        if how.consistent and not place.pins:
            raise InvalidArgument(
                "consistent = True is not allowed with this cursor: its scan began without, and sees what there is now",
                field="consistent",
            )
        pin = ScanPin(place.token, list(place.pins)) if place.pins else None
    answer = await documents.scan(
        place.collection,
        place.filter,
        place.after,
        how.limit,
        how.with_vectors,
        place.slice,
        how.mode,
        how.timeout,
        how.fields,
        place.collection_id,
        pin,
        place.order,
        session=how.session,
        **({"named": how.named} if how.named else {}),
    )
    if answer.reached is None:
        return Batch(answer.documents, None)
    held = answer.pin or ScanPin()
    place = msgspec.structs.replace(
        place,
        after=answer.reached,
        collection_id=answer.collection_id,
        token=held.token,
        pins=tuple(held.open),
        key=answer.key or place.key,
    )
    return Batch(answer.documents, cursors.encode(place))


async def end_scan(documents: DocumentCalls, place: cursors.Place, cursor: str, timeout: float) -> None:
    """Nobody reads on at this cursor: what a consistent scan sees need not be kept. place: as in `read_batch`."""
    place = cursors.decode(cursor, place)
    if place.pins:
        pin = ScanPin(place.token, list(place.pins), True)
        await documents.scan(
            place.collection, place.filter, place.after, 1, False, place.slice, ReadMode.STRONG, timeout,
            None, place.collection_id, pin,
        )  # fmt: skip


class Place:
    """How far a scan has come. most: how many documents it still may give, None for all."""

    def __init__(
        self, cursor: str | None, with_vectors: bool, most: int | None = None, named: Sequence[str] | None = None
    ) -> None:
        self.cursor = cursor
        self.named = named
        self.most = most
        self.done = self.begun = False
        self.with_vectors = with_vectors
        self.left: deque[Document] = deque()

    def took(self, batch: Batch) -> DocumentBatch:
        """A page was read. It may have a document more than `most`."""
        self.begun, self.cursor, self.done = True, batch.cursor, batch.cursor is None
        if self.most is not None:
            self.most = max(0, self.most - len(batch.documents.ids))
        return batch.documents

    def documents(self, batch: Batch) -> list[Document]:
        """Of a page that was read."""
        return answers.documents(self.took(batch), self.named is not None)

    def enough(self) -> str | None:
        """If no more is to be read although there is more: where nobody reads on, told once."""
        if self.most != 0 or self.done:
            return None
        self.done = True
        return self.cursor

    def check_whole(self) -> None:
        """Raises InvalidArgument once documents were taken one by one."""
        if self.begun:
            raise InvalidArgument(
                "documents of this scan were read already; begin another one for a table", field="scan"
            )


class Scan(AsyncIterator[Document]):
    """Documents one after the other, in the order of their ids; `async for` reads them page by page."""

    def __init__(
        self,
        read: Callable[[str | None, int | None], Awaitable[Batch]],
        cursor: str | None,
        *,
        with_vectors: bool,
        most: int | None = None,
        end: Callable[[str], Awaitable[None]] | None = None,
        named: Sequence[str] | None = None,
    ) -> None:
        """read: a page by its cursor, of so many documents at most. end: tells that nobody reads on at a cursor. most:
        documents of all pages; None: all that there are. named: names of vectors that documents come with; None: they
        say nothing of these."""
        self.read = read
        self.end = end
        self.place = Place(cursor, with_vectors, most, named)

    def __aiter__(self) -> Scan:
        return self

    async def __anext__(self) -> Document:
        place = self.place
        while not place.left:
            if place.done:
                raise StopAsyncIteration
            most = place.most
            place.left.extend(
                answers.documents(place.took(await self.read(place.cursor, most)), place.named is not None)[:most]
            )
            await self._end_at(place.enough())
        return place.left.popleft()

    async def aclose(self) -> None:
        """Read no more. What is kept for a consistent scan is given back; without this, after
        `limits.pinned_scan_seconds`."""
        place = self.place
        at = place.cursor if place.begun and not place.done else None
        place.done = True
        place.left.clear()
        await self._end_at(at)

    async def _end_at(self, cursor: str | None) -> None:
        if cursor is not None and self.end is not None:
            with contextlib.suppress(NeedleError):
                await self.end(cursor)

    async def to_arrow(self) -> Any:
        """All of them as a `pyarrow.Table`: id, vector (with `with_vectors`), metadata as JSON text, expires_at. What
        it gives, inserts take. Needs pyarrow; the table is in memory as a whole."""
        arrow_tables.library()
        place, found = self.place, list[DocumentBatch]()
        most = place.most
        place.check_whole()
        while not place.done:
            found.append(place.took(await self.read(place.cursor, place.most)))
            await self._end_at(place.enough())
        return arrow_tables.table(found, vectors=place.with_vectors, named=place.named or ()).slice(0, most)


class SyncScan(Iterator[Document]):
    """`Scan` for code without asyncio."""

    def __init__(
        self, read: Callable[[str | None, int | None], Batch], place: Place, end: Callable[[str], None] | None = None
    ) -> None:
        """read, end: as of Scan, blocking. place: where it begins."""
        self._read = read
        self._end = end
        self._place = place

    def __next__(self) -> Document:
        place = self._place
        while not place.left:
            if place.done:
                raise StopIteration
            most = place.most
            place.left.extend(
                answers.documents(place.took(self._read(place.cursor, most)), place.named is not None)[:most]
            )
            self._end_at(place.enough())
        return place.left.popleft()

    def close(self) -> None:
        """See Scan.aclose."""
        place = self._place
        at = place.cursor if place.begun and not place.done else None
        place.done = True
        place.left.clear()
        self._end_at(at)

    def _end_at(self, cursor: str | None) -> None:
        if cursor is not None and self._end is not None:
            with contextlib.suppress(NeedleError):
                self._end(cursor)

    def to_arrow(self) -> Any:
        """See Scan.to_arrow."""
        arrow_tables.library()
        place, found = self._place, list[DocumentBatch]()
        most = place.most
        place.check_whole()
        while not place.done:
            found.append(place.took(self._read(place.cursor, place.most)))
            self._end_at(place.enough())
        return arrow_tables.table(found, vectors=place.with_vectors, named=place.named or ()).slice(0, most)
