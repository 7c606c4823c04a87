"""A change feed: each committed change of a collection once, in the order of each shard's log (docs/adr/0098, 0099).

Invariants:
- A token says exactly what was handed out: who goes on from it misses nothing, and is told nothing twice.
- What cannot be told any more is never passed over: the feed begins again, with all documents.
- All documents are told in the order of their ids, in pieces, and between two pieces the changes of what was told
  already. So nothing is kept for it anywhere, and a reader comes to the end however much is written meanwhile. A piece
  is read between two places of each shard's log; what changed between them is told as it was at the second one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, Self

import msgspec
from msgspec.structs import replace

from needle.base.errors import CollectionNotFound, InvalidArgument, Unavailable
from needle.base.model import ReadMode
from needle.client import answers, feed_token
from needle.client.document_calls import DocumentCalls
from needle.client.feed_calls import FeedCalls
from needle.client.feed_memory import Held, size_of
from needle.client.feed_shards import Forgotten, ShardFeed, What, heard, retired, vector_gone
from needle.client.feed_token import VERSION, Token
from needle.protocol.calls import ScanAnswer
from needle.protocol.change_calls import KINDS, LIMIT_MAX, ChangesAnswer, Near, Position
from needle.routing.topology import Topology, public_name

NOW, START = "now", "start"
PAGE: Final = 1000
"""Documents of a piece."""
REST_SECONDS: Final = 1.0
"""After a longer rest between two pieces the changes are read first: what is written while a piece is read has to be
little, for it is in memory."""
DELETE: Final = KINDS.index("delete")


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """kind: "insert", "update" or "delete": what became of the document `id`. vector: float32 numpy array of shape
    (dimensions,); None of a deletion, or if it was not asked for. metadata: as the change left it; None of a deletion.
    version: as in Document; of a deletion that of the delete. shard: whose log told it. distance: from the query of
    `watch`, as a search gives it; None of others, and of a deletion. vectors: by name those of the named ones that were
    asked for and that it has, as `vector`; None if none were asked for, and of a deletion.

    kind "reset": the changes that come next are not known any more, or the feed was to begin with what there is. Forget
    all documents: those that there are follow, each as an "insert" with shard -1, and then "ready"; changes go on from
    there."""

    kind: str
    id: str = ""
    vector: Any = None
    metadata: Any = None
    version: int = 0
    shard: int = -1
    distance: float | None = None
    vectors: dict[str, Any] | None = None


class Wish(NamedTuple):
    """What a feed is to tell. filter: JSON, of the only documents that there are for it, b"" for all. near: only those
    that are near; such a feed tells of what comes and goes, never all that there are. named: named vectors."""

    with_vectors: bool = True
    filter: bytes = b""
    near: Near | None = None
    named: tuple[str, ...] = ()

    def vectors(self) -> list[str]:
        """All names that it says."""
        return [*self.named, *([self.near.vector_name] if self.near and self.near.vector_name else [])]


class _Step(NamedTuple):
    """What is handed out next, and what a token says from then on: of a shard, up to where its changes were told; up to
    which id all documents were. starts: of all shards. size: bytes that are held no more then."""

    change: Change | None = None
    shard: int = -1
    position: Position = (0, 0)
    after: str | None = None
    starts: Mapping[int, Position] | None = None
    size: int = 0


class _Scan:
    """All documents, as far as they were read. after: the last id of the pieces so far. page, ends: the piece that was
    read now, and where the changes ended behind that. rows: what is to be told of it, by id. size: bytes held for
    that, and for the changes meanwhile. rested: when a piece was done."""

    def __init__(self, after: str | None = None) -> None:
        """after: None for a scan that has not begun."""
        self.begun = after is not None
        self.after = after or ""
        self.page: ScanAnswer | None = None
        self.ends: dict[int, Position] | None = None
        self.rows: dict[str, Change] = {}
        self.size = 0
        self.rested: float | None = None

    def reaches(self, name: str) -> bool:
        """Whether an id behind `after` is in the piece that was read."""
        return self.page is not None and (self.page.reached is None or name <= self.page.reached)


class Changes(AsyncIterator[Change]):
    """The changes of one collection, one after the other: an async iterator, for one reader. It ends by an error only:
    CollectionNotFound once the collection is dropped; what a shard's nodes answer if none tells anything for `timeout`
    seconds. After an error that may pass, the next step goes on where this one was."""

    def __init__(
        self,
        documents: Callable[[], Awaitable[DocumentCalls]],
        collection: str,
        since: str,
        wish: Wish,
        *,
        timeout: float,
        query: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        """query: gives the vector of `wish.near`, once the feed begins."""
        self._query = query
        self._documents = documents
        self._collection = collection
        self._since = since
        self._wish = wish
        self._timeout = timeout
        if since not in (NOW, START):
            token = feed_token.decode(since)
            if wish.near is not None and token.after is not None:
                raise InvalidArgument(
                    'since was given by `changes` between "reset" and "ready", where it tells all documents, which a '
                    'watch never does: give a token from behind "ready", or of a watch, or "now"',
                    field="since",
                )
        self._feeding: FeedCalls | None = None
        self._shards: ShardFeed | None = None
        self._stored, self._id, self._founding = "", 0, 0
        self._whole = since != START
        self._after: str | None = None
        self._told: dict[int, Position] = {}
        """These three: what was handed out."""
        self._left: deque[_Step] = deque()
        self._scan: _Scan | None = None
        self._pending: asyncio.Task[Any] | None = None
        """A call for the scan. It goes on when the reader gives up waiting for it, as with a timeout."""

        self.page_max = LIMIT_MAX
        """Changes that a shard is asked for at once, and documents; fewer hold less memory."""
        self.held = Held()

    # --- for the reader ----------------------------------------------------------------------------------------------
    @property
    def waiting(self) -> bool:
        """Whether the next change is here already."""
        return bool(self._left) and self._left[0].change is not None

    @property
    def token(self) -> str:
        """Where it goes on behind the last change that was handed out: `since` of another feed, of any client. Before
        the feed has begun, the `since` of this one."""
        if self._feeding is None:
            return self._since
        return feed_token.encode(
            Token(VERSION, self._founding, self._collection, self._id, dict(self._told), self._whole, self._after)
        )

    async def begin(self) -> Self:
        """Find out where it begins, if that was not done: what is committed from now on is told. Raises InvalidArgument
        for a `since` of another collection or cluster, CollectionNotFound."""
        if self._feeding is not None:
            return self
        if self._query is not None and self._wish.near is not None:
            vector = await self._query()
            self._query, self._wish = None, self._wish._replace(near=replace(self._wish.near, vector=vector))
        documents = await self._documents()
        feeding = documents.feeding()
        names = self._wish.vectors()
        begun = await feeding.begin(self._collection, self._timeout, *([names] if names else []))
        founding = feeding.topology.founding
        if self._since in (NOW, START):
            self._told = {**retired(feeding.topology), **begun.ends}
        else:
            token = feed_token.decode(self._since)
            feed_token.check(token, self._collection, begun.collection_id, founding)
            if token.positions.keys() - _shards(feeding.topology):  # it may not have been heard of yet
                feed_token.check_shards(token, _shards(await feeding.renewed(self._timeout)))
            feed_token.check_reached(token, begun.ends)
            self._told, self._whole, self._after = dict(token.positions), token.whole, token.after
        self._stored, self._id, self._founding = begun.stored, begun.collection_id, founding
        what, named = What(self._collection, self._stored, *self._wish), begun.vectors
        if what.near is not None and what.near.vector_name:
            what, named = what._replace(near=replace(what.near, vector_name=named[-1])), named[:-1]
        what = what._replace(named=named)
        self._shards = ShardFeed(feeding, what, self._timeout, self._took, self.page_max, self.held)
        self._shards.begin(self._told)
        if not self._whole:
            self._scan = _Scan(self._after)
        self._feeding = feeding
        return self

    async def __aenter__(self) -> Self:
        return await self.begin()

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        await self.begin()
        feeding, shards = self._feeding, self._shards
        if feeding is None or shards is None:
            raise Unavailable("this feed has not begun")
        while True:
            while self._left:
                if (change := self._hand_out(self._left.popleft())) is not None:
                    return change
            try:
                if self._scan is None:
                    await shards.step()
                else:
                    await self._scan_on(self._scan, feeding, shards)
            except Forgotten:
                self._left.clear()
                self._whole, self._after, self._scan = False, None, _Scan()
                await self._stop()

    def _hand_out(self, step: _Step) -> Change | None:
        self.held.free(step.size)
        if step.starts is not None:
            self._told = dict(step.starts)
        if step.shard >= 0:
            self._told[step.shard] = step.position
        if step.after is not None:
            self._after = step.after
        if step.change is not None and step.change.kind == ("ready" if self._wish.near is None else "reset"):
            self._whole, self._after = True, None
        return step.change

    async def aclose(self) -> None:
        """Read no more. Idempotent."""
        await self._stop()

    async def _stop(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        if self._shards is not None:
            await self._shards.aclose()
        self.held.free(self.held.bytes)

    def _took(self, shard: int, page: ChangesAnswer) -> None:
        """A page of a shard's changes was read."""
        scan, size = self._scan, size_of(page)
        if scan is not None:  # what it tells with its piece is held until then
            scan.size, size = scan.size + size, 0
        for after, change in zip(page.after, _changes(shard, page, bool(self._wish.named)), strict=True):
            told: Change | None = change
            if scan is not None and change.id > scan.after:  # it is told with its piece, if it was not read before
                told = None
                if scan.reaches(change.id):
                    scan.rows.pop(change.id, None)
                    if change.kind != "delete":
                        scan.rows[change.id] = replace(change, kind="insert", shard=-1)
            self._left.append(_Step(told, shard, after))
        self._left.append(_Step(None, shard, page.reached, size=size))

    # --- all documents -----------------------------------------------------------------------------------------------
    async def _scan_on(self, scan: _Scan, feeding: FeedCalls, shards: ShardFeed) -> None:
        loop = asyncio.get_running_loop()
        if not scan.begun:
            ends = await self._unless_given_up(lambda: feeding.ends(self._stored, self._timeout))
            starts = {**retired(feeding.topology), **ends}
            shards.begin(starts)
            self._left.append(_Step(Change(kind="reset"), after="", starts=starts))
            scan.begun, scan.rested = True, loop.time()
            if self._wish.near is not None:
                self._scan = None
        elif scan.ends is None:
            rested = scan.rested is None or loop.time() - scan.rested > REST_SECONDS
            page, scan.ends = await self._unless_given_up(lambda: self._piece(None if rested else scan, feeding))
            if page is not None:
                scan.size += size_of(page)
                scan.page, scan.rows = (
                    page,
                    {one.id: _insert(one) for one in answers.documents(page.documents, bool(self._wish.named))},
                )
        elif not shards.is_past(scan.ends):
            await shards.step(scan.ends)
        else:
            self._tell(scan)
            scan.rested = loop.time()

    def _tell(self, scan: _Scan) -> None:
        """All that is before the second place was read."""
        page, rows = scan.page, scan.rows
        size, scan.page, scan.ends, scan.rows, scan.size = scan.size, None, None, {}, 0
        self._left.extend(_Step(rows[name], after=name) for name in sorted(rows))
        self._left.append(_Step(size=size))
        if page is None:
            return
        if page.reached is None:
            self._left.append(_Step(Change(kind="ready")))
            self._scan = None
        else:
            self._left.append(_Step(after=page.reached))
            scan.after = page.reached

    async def _piece(self, scan: _Scan | None, feeding: FeedCalls) -> tuple[ScanAnswer | None, dict[int, Position]]:
        """The next one, and where the changes end behind it; None: only that."""
        page: ScanAnswer | None = None
        if scan is not None:
            name = public_name(self._stored)
            try:
                page = await (await self._documents()).scan(
                    name, self._wish.filter, scan.after, min(PAGE, self.page_max), self._wish.with_vectors, (0, 1),
                    ReadMode.STRONG, self._timeout, None, self._id,
                    named=self._wish.named,
                )  # fmt: skip
            except InvalidArgument as error:
                field = error.details.get("field")
                if field == "vector_name":
                    raise self._vector_gone(name, feeding.topology) from error
                if field != "cursor":
                    raise
                raise CollectionNotFound(
                    f"collection {name[:80]!r} was dropped and made again", collection=name[:80]
                ) from error
        self.held.take(size_of(page))
        try:
            return page, await feeding.ends(self._stored, self._timeout)
        except BaseException:
            self.held.free(size_of(page))
            raise

    def _vector_gone(self, name: str, now: Topology) -> CollectionNotFound:
        """A scan asks the catalog, which hears it before the shards do."""
        info, wanted = now.named(name), self._wish.named
        there = {one.name for one in info.vectors} if info is not None else set()
        return vector_gone(name[:80], next((one for one in wanted if one not in there), wanted[0]))

    async def _unless_given_up(self, call: Callable[[], Any]) -> Any:
        """What a call answers, or the one that a step before this one has begun and did not wait for."""
        if self._pending is None:
            self._pending = asyncio.ensure_future(call())
            self._pending.add_done_callback(heard)
        pending = self._pending
        try:
            answer = await asyncio.shield(pending)
        except asyncio.CancelledError:
            raise  # the reader gave up waiting: the next step takes what comes
        except BaseException:
            self._pending = None
            raise
        self._pending = None
        return answer


def _shards(topology: Topology) -> set[int]:
    """That there are, or were."""
    return {info.shard for info in topology.shards}


def _insert(one: Any) -> Change:
    return Change(
        kind="insert", id=one.id, vector=one.vector, metadata=one.metadata, version=one.version, vectors=one.vectors
    )


def _changes(shard: int, page: ChangesAnswer, named: bool) -> list[Change]:
    documents = answers.documents(page.documents, named)
    distances: list[float | None] = [*page.distances] or [None] * len(documents)
    written = iter(zip(documents, distances, strict=True))
    gone = iter(zip(page.deleted, page.versions, strict=True))
    found = list[Change]()
    for kind in page.kinds:
        if kind == DELETE:
            name, version = next(gone)
            found.append(Change(kind=KINDS[kind], id=name, version=version, shard=shard))
        else:
            one, distance = next(written)
            found.append(
                Change(
                    kind=KINDS[kind], id=one.id, vector=one.vector, metadata=one.metadata, version=one.version,
                    shard=shard, distance=distance, vectors=one.vectors,
                )
            )  # fmt: skip
    return found
