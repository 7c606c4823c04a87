"""A change feed: each committed change of a collection once, in the order of each shard's log (docs/adr/0098).

Every shard is read side by side, from any of its replicas. Invariants:
- A position is told, in `token`, only once all changes before it were handed out: who goes on from it misses none.
- Where a move of ranges brought documents to a shard, the feed waits there until it has handed out what the shard they
  came from told before it gave them away. So the changes of a document keep their order across a move.
- What cannot be told any more is never passed over: the feed begins anew, with all documents of one index of each
  shard.

Nothing runs while nobody waits for the next change, but the calls that were begun; these end by themselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Self

import msgspec

from needle.base.errors import CollectionNotFound, InvalidArgument, NeedleError, ScanEnded, Unavailable
from needle.base.model import ReadMode
from needle.client import answers, feed_token
from needle.client.document_calls import DocumentCalls
from needle.client.feed_calls import Asked, FeedCalls
from needle.client.feed_token import VERSION, Token
from needle.protocol.calls import ScanPin
from needle.protocol.change_calls import KINDS, ChangesAnswer, Position
from needle.routing.topology import Topology, public_name

NOW, START = "now", "start"
WAIT_SECONDS: Final = 5.0
"""A node answers after this time at the latest, also if there is no change: so one that is gone is noticed."""
LOOK_SECONDS: Final = 5.0
"""So often it is looked for shards that were added or removed."""
PAUSE_SECONDS: Final = 0.1
PAGE: Final = 1000
ATTEMPTS: Final = 5
DELETE: Final = KINDS.index("delete")
FIRST: Final[Position] = (1, 0)
OVER: Final[Position] = (0, 0)
"""Of a shard that was removed, and had told everything."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """kind: "insert", "update" or "delete": what became of the document `id`. vector: float32 numpy array of shape
    (dimensions,); None of a deletion, or if it was not asked for. metadata: as the change left it; None of a deletion.
    version: as in Document; of a deletion that of the delete. shard: whose log told it.

    kind "reset": the changes that come next are not known any more, or the feed was to begin with what there is. Forget
    all documents: those that there are follow, each as an "insert" with shard -1, and then "ready"; changes go on from
    there."""

    kind: str
    id: str = ""
    vector: Any = None
    metadata: Any = None
    version: int = 0
    shard: int = -1


class _Hold:
    """A shard that is not read on before others have told what they gave away. needs: by shard, the entry that has to
    be told; None while it is looked for."""

    def __init__(self, move: int, looking: asyncio.Task[dict[int, int] | None]) -> None:
        self.move = move
        self.looking = looking


class Changes(AsyncIterator[Change]):
    """The changes of one collection, one after the other: an async iterator, for one reader. It ends by an error only:
    CollectionNotFound once the collection is dropped; what a shard's nodes answer if none tells anything for `timeout`
    seconds. After an error that may pass, the next step goes on where this one was."""

    def __init__(
        self,
        documents: Callable[[], Awaitable[DocumentCalls]],
        collection: str,
        since: str,
        *,
        with_vectors: bool,
        timeout: float,
    ) -> None:
        self._documents = documents
        self._collection = collection
        self._since = since
        self._with_vectors = with_vectors
        self._timeout = timeout
        if since not in (NOW, START):
            feed_token.decode(since)
        self._feeding: FeedCalls | None = None
        self._stored, self._id, self._founding = "", 0, 0
        self._whole = since != START
        self._told: dict[int, Position] = {}
        """Up to where changes were handed out."""
        self._read: dict[int, Position] = {}
        """Up to where they were read."""
        self._left: deque[tuple[int, Position, Change | None]] = deque()
        self._polls: dict[int, asyncio.Task[ChangesAnswer | None]] = {}
        self._holds: dict[int, _Hold] = {}
        self._past: dict[int, int] = {}
        self._anew: AsyncIterator[Change] | None = None
        self._ends: dict[int, Position] = {}
        """Where changes go on behind these."""
        self._pending: asyncio.Task[Change | None] | None = None
        """The next of these. It goes on when the reader gives up waiting for it, as with a timeout."""
        self._looked = 0.0

    # --- for the reader ----------------------------------------------------------------------------------------------
    @property
    def token(self) -> str:
        """Where it goes on behind the last change that was handed out: `since` of another feed, of any client. Before
        the feed has begun, the `since` of this one."""
        if self._feeding is None:
            return self._since
        return feed_token.encode(
            Token(VERSION, self._founding, self._collection, self._id, dict(self._told), self._whole)
        )

    async def begin(self) -> Self:
        """Find out where it begins, if that was not done: what is committed from now on is told. Raises InvalidArgument
        for a `since` of another collection or cluster, CollectionNotFound."""
        if self._feeding is not None:
            return self
        documents = await self._documents()
        feeding = documents.feeding()
        begun = await feeding.begin(self._collection, self._timeout)
        founding = feeding.topology.founding
        if self._since in (NOW, START):
            self._told = {**_retired(feeding.topology), **begun.ends}
        else:
            token = feed_token.decode(self._since)
            feed_token.check(token, self._collection, begun.collection_id, founding)
            self._told, self._whole = dict(token.positions), token.whole
        self._read = {shard: position for shard, position in self._told.items() if position != OVER}
        self._stored, self._id, self._founding = begun.stored, begun.collection_id, founding
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
        while True:
            while self._left:
                shard, position, change = self._left.popleft()
                self._told[shard] = position
                if change is not None:
                    return change
            if not self._whole:
                if (change := await self._next_anew()) is not None:
                    return change
                continue
            await self._step()

    async def aclose(self) -> None:
        """Read no more. Idempotent."""
        tasks: list[asyncio.Task[Any]] = [*self._polls.values(), *(hold.looking for hold in self._holds.values())]
        tasks += [] if self._pending is None else [self._pending]
        self._polls, self._holds, self._pending = {}, {}, None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- reading the shards ------------------------------------------------------------------------------------------
    def _calls(self) -> FeedCalls:
        if self._feeding is None:
            raise Unavailable("this feed has not begun")
        return self._feeding

    async def _step(self) -> None:
        """Wait for the next page of a shard, or until it is time to look for other shards."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._looked > LOOK_SECONDS:
            await self._look_for_shards(await self._calls().look(PAUSE_SECONDS))
            self._looked = loop.time()
        for shard, hold in list(self._holds.items()):
            if self._whole:
                await self._judge(shard, hold)
        if not self._whole:
            return
        for shard in self._read:
            if shard not in self._polls and shard not in self._holds:
                self._polls[shard] = task = loop.create_task(self._poll(shard))
                task.add_done_callback(_heard)
        waiting = [*self._polls.values(), *(hold.looking for hold in self._holds.values() if not hold.looking.done())]
        if not waiting:
            await asyncio.sleep(PAUSE_SECONDS)
            return
        await asyncio.wait(waiting, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for shard, task in list(self._polls.items()):
            if task.done() and self._polls.pop(shard, None) is task:  # not of a feed that has begun anew since
                await self._took(shard, task)

    async def _poll(self, shard: int) -> ChangesAnswer | None:
        past = self._past.get(shard, 0)
        asked = Asked(self._stored, shard, self._read[shard], self._with_vectors, WAIT_SECONDS, past)
        return await self._calls().page(asked, self._timeout)

    async def _took(self, shard: int, task: asyncio.Task[ChangesAnswer | None]) -> None:
        try:
            page = task.result()
        except CollectionNotFound as error:
            raise CollectionNotFound(
                f"collection {self._collection[:80]!r} was dropped: the feed of its changes has ended",
                collection=self._collection[:80],
            ) from error
        except NeedleError:
            await self._look_for_shards(await self._calls().look(PAUSE_SECONDS))
            if shard in self._read and self._whole:
                raise
            return
        if page is None:
            await self._begin_anew()
            return
        self._left.extend(
            (shard, after, change) for after, change in zip(page.after, _changes(shard, page), strict=True)
        )
        self._left.append((shard, page.reached, None))
        self._read[shard] = page.reached
        if page.owned:
            self._holds[shard] = _Hold(page.owned, asyncio.create_task(self._given_away(shard, page.owned)))

    def _add_shards(self, topology: Topology) -> None:
        for info in topology.serving:
            self._read.setdefault(info.shard, FIRST)

    async def _look_for_shards(self, topology: Topology) -> None:
        """A shard that was removed tells nothing any more, and what it told last may not have been read."""
        if any(self._told.get(shard) != OVER for shard in _retired(topology)):
            await self._begin_anew()
        else:
            self._add_shards(topology)

    # --- moves of ranges ---------------------------------------------------------------------------------------------
    async def _given_away(self, owner: int, move: int) -> dict[int, int] | None:
        """By shard, the entry by which the move took ranges away from it, if that was not read yet. A move leaves one
        shard before it comes to another, so whoever asks the leaders now hears of it. None: that is not known."""
        feeding = self._calls()
        self._add_shards(await feeding.renewed(self._timeout))

        async def ask(shard: int) -> int | None:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + self._timeout
            while True:
                position = self._read.get(shard)
                if position is None:
                    return 0
                found = await feeding.released(self._stored, shard, position, move, self._timeout)
                if found is not None or loop.time() > deadline:
                    return found
                await asyncio.sleep(PAUSE_SECONDS)  # its leader began lately; the feed is being read on by another one

        others = [shard for shard in self._read if shard != owner]
        found = dict(zip(others, await asyncio.gather(*map(ask, others)), strict=True))
        if any(index is None for index in found.values()):
            return None
        return {shard: index for shard, index in found.items() if index}

    async def _judge(self, shard: int, hold: _Hold) -> None:
        """Read the shard on, if the others have told what is before."""
        if not hold.looking.done():
            return
        try:
            needs = hold.looking.result()
        except NeedleError:
            hold.looking = asyncio.create_task(self._given_away(shard, hold.move))
            raise
        if needs is None:
            await self._begin_anew()
        elif all(self._read[other][0] > index for other, index in needs.items() if other in self._read):
            del self._holds[shard]
            self._past[shard] = hold.move

    # --- all documents -----------------------------------------------------------------------------------------------
    async def _begin_anew(self) -> None:
        await self.aclose()
        self._whole, self._anew = False, None
        self._left.clear()
        self._past.clear()

    async def _next_anew(self) -> Change | None:
        if self._anew is None:
            self._anew = self._all_documents()
        if self._pending is None:
            self._pending = asyncio.create_task(_next(self._anew))
        pending = self._pending
        try:
            change = await asyncio.shield(pending)
        except asyncio.CancelledError:
            raise  # the reader gave up waiting: the next step takes what comes
        except BaseException:
            self._anew = self._pending = None  # what was told is no whole
            raise
        self._pending = None
        if change is not None and change.kind == "ready":  # not before it is handed out: a token would say so
            self._told = {**_retired(self._calls().topology), **self._ends}
            self._read, self._whole, self._anew = dict(self._ends), True, None
        return change

    async def _all_documents(self) -> AsyncIterator[Change]:
        """All that there are at one index of each shard, between "reset" and "ready"; changes go on behind that."""
        documents, name = await self._documents(), public_name(self._stored)
        ended: ScanEnded | None = None
        for _ in range(ATTEMPTS):
            begun = await self._pinned(documents, name)
            if begun is None:
                continue
            page, positions = begun
            yield Change(kind="reset")
            try:
                while True:
                    for one in answers.documents(page.documents):
                        yield Change(
                            kind="insert", id=one.id, vector=one.vector, metadata=one.metadata, version=one.version
                        )
                    if page.reached is None:
                        break
                    page = await self._page(documents, name, page.reached, page.pin)
            except ScanEnded as error:
                ended = error
                continue
            self._ends = positions
            yield Change(kind="ready")
            return
        if ended is not None:
            raise ended
        raise Unavailable("ranges of keys move all the time: no moment was found at which every shard could be read")

    async def _page(self, documents: DocumentCalls, name: str, after: str, pin: ScanPin | None) -> Any:
        return await documents.scan(
            name, b"", after, PAGE, self._with_vectors, (0, 1), ReadMode.STRONG, self._timeout, None, self._id, pin
        )

    async def _pinned(self, documents: DocumentCalls, name: str) -> tuple[Any, dict[int, Position]] | None:
        """The first page, and where the changes go on in each shard; None if ranges moved meanwhile."""
        feeding = self._calls()
        before = (await feeding.renewed(self._timeout)).map
        try:
            page = await self._page(documents, name, "", ScanPin())
        except InvalidArgument as error:
            raise CollectionNotFound(
                f"collection {name[:80]!r} was dropped and made again", collection=name[:80]
            ) from error
        positions = await feeding.ends(self._stored, self._timeout)  # of those that own nothing, and so have no pin
        after = (await feeding.renewed(self._timeout)).map
        if before is None or after is None or before.epoch != after.epoch:
            return None
        positions.update({shard: (index + 1, 0) for shard, index in page.pin.open})
        return page, positions


def _changes(shard: int, page: ChangesAnswer) -> list[Change]:
    written = iter(answers.documents(page.documents))
    gone = iter(zip(page.deleted, page.versions, strict=True))
    found = list[Change]()
    for kind in page.kinds:
        if kind == DELETE:
            name, version = next(gone)
            found.append(Change(kind=KINDS[kind], id=name, version=version, shard=shard))
        else:
            one = next(written)
            found.append(
                Change(
                    kind=KINDS[kind], id=one.id, vector=one.vector, metadata=one.metadata, version=one.version,
                    shard=shard,
                )
            )  # fmt: skip
    return found


async def _next(changes: AsyncIterator[Change]) -> Change | None:
    return await anext(changes, None)


def _retired(topology: Topology) -> dict[int, Position]:
    """The shards that were removed, as what was read to its end."""
    return {info.shard: OVER for info in topology.shards if info.retired}


def _heard(task: asyncio.Task[Any]) -> None:
    """A feed that is given up without `aclose` leaves no task whose error nobody took."""
    if not task.cancelled():
        task.exception()
