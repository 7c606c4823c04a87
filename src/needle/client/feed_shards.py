"""Reading the changes of all shards of a collection, side by side, from any of their replicas (docs/adr/0098).

Invariants:
- Where a move of ranges brought documents to a shard, it is read on only once the shard they came from was read up to
  where it gave them away. So the changes of a document keep their order across a move.
- What cannot be told any more is never passed over: `Forgotten` is raised.

Nothing runs while nobody calls `step`, but the calls that were begun; these end by themselves. It must not know what
becomes of the changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from needle.base.errors import CollectionNotFound, NeedleError
from needle.client.feed_calls import Asked, FeedCalls
from needle.client.feed_memory import Held, size_of
from needle.protocol.change_calls import LIMIT_MAX, ChangesAnswer, Near, Position
from needle.routing.topology import Topology

WAIT_SECONDS: Final = 5.0
"""A node answers after this time at the latest, also if there is no change: so one that is gone is noticed."""
LOOK_SECONDS: Final = 5.0
"""So often it is looked for shards that were added or removed."""
PAUSE_SECONDS: Final = 0.1
LIMIT_FIRST: Final = 256
"""Changes of the first page of a shard; each page may have twice as many. So a reader gets on who never waits long."""
FIRST: Final[Position] = (1, 0)
OVER: Final[Position] = (0, 0)
"""Of a shard that was removed, and had told everything."""


class Forgotten(Exception):
    """What comes next is not known any more."""


class What(NamedTuple):
    """What is read. collection: for errors. stored: its name inside the shards. filter (JSON), near: the documents that
    there are for the reader. named: as in ChangesCall."""

    collection: str
    stored: str
    with_vectors: bool
    filter: bytes = b""
    near: Near | None = None
    named: tuple[str, ...] = ()


class _Hold:
    """A shard that is not read on before others have told what they gave away. looking: by shard, the entry that has to
    be told; None if that is not known."""

    def __init__(self, move: int, looking: asyncio.Task[dict[int, int] | None]) -> None:
        self.move = move
        self.looking = looking


class ShardFeed:
    """See the module. read: by shard, up to where it was read."""

    def __init__(
        self,
        calls: FeedCalls,
        what: What,
        timeout: float,
        took: Callable[[int, ChangesAnswer], None],
        page_max: int = LIMIT_MAX,
        held: Held | None = None,
    ) -> None:
        """took: is given each page that was read, of which shard. page_max: changes of a page.
        held: counts pages that have come."""
        self._calls = calls
        self._what = what
        self._timeout = timeout
        self._took = took
        self._page_max = page_max
        self._held = held or Held()
        self.read: dict[int, Position] = {}
        self._over: set[int] = set()
        self._polls: dict[int, asyncio.Task[ChangesAnswer | None]] = {}
        self._holds: dict[int, _Hold] = {}
        self._past: dict[int, int] = {}
        self._limits: dict[int, int] = {}
        self._looked = 0.0

    def begin(self, positions: Mapping[int, Position]) -> None:
        """Read on from there."""
        self.read = {shard: position for shard, position in positions.items() if position != OVER}
        self._over = {shard for shard, position in positions.items() if position == OVER}

    async def aclose(self) -> None:
        """Read no more, until `begin`. Idempotent."""
        tasks: list[asyncio.Task[Any]] = [*self._polls.values(), *(hold.looking for hold in self._holds.values())]
        self._polls, self._holds, self._past = {}, {}, {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def is_past(self, ends: Mapping[int, Position]) -> bool:
        """Whether all that is before these was read."""
        return all(self.read.get(shard, FIRST) >= end for shard, end in ends.items())

    async def step(self, ends: Mapping[int, Position] | None = None) -> None:
        """Wait for the next page of a shard, or until it is time to look for other shards. ends: read up to there, and
        wait for nothing that is behind. Raises Forgotten, CollectionNotFound, and what a shard's nodes answer if none
        tells anything in time."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._looked > LOOK_SECONDS:
            self._look_for_shards(await self._calls.look(PAUSE_SECONDS))
            self._looked = loop.time()
        for shard, hold in list(self._holds.items()):
            self._judge(shard, hold)
        for shard in ends or ():
            self.read.setdefault(shard, FIRST)  # a new one
        self._poll_all(ends)
        waiting = [*self._polls.values(), *(hold.looking for hold in self._holds.values() if not hold.looking.done())]
        if not waiting:
            await asyncio.sleep(PAUSE_SECONDS)
            return
        await asyncio.wait(waiting, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for shard, task in list(self._polls.items()):
            if task.done() and self._polls.pop(shard, None) is task:
                await self._take(shard, task)

    def _poll_all(self, ends: Mapping[int, Position] | None) -> None:
        for shard, position in self.read.items():
            end = None if ends is None else ends.get(shard, FIRST)
            # Where one waits for another, that one is read on wherever it is.
            wanted = end is None or position < end or bool(self._holds)
            if wanted and shard not in self._polls and shard not in self._holds:
                missing = end if end is not None and position < end else None
                self._polls[shard] = task = asyncio.create_task(self._poll(shard, missing))
                task.add_done_callback(heard)

    async def _poll(self, shard: int, end: Position | None) -> ChangesAnswer | None:
        what = self._what
        wait, applied = (WAIT_SECONDS, 0) if end is None else (0.0, end[0] - 1)
        limit = min(self._page_max, self._limits.get(shard, LIMIT_FIRST))
        asked = Asked(
            what.stored, shard, self.read[shard], what.with_vectors, wait, self._past.get(shard, 0), applied, limit,
            what.filter, what.near, what.named,
        )  # fmt: skip
        page = await self._calls.page(asked, self._timeout)
        self._held.take(size_of(page))
        return page

    async def _take(self, shard: int, task: asyncio.Task[ChangesAnswer | None]) -> None:
        try:
            page = task.result()
        except CollectionNotFound as error:
            name = self._what.collection[:80]
            if "vector" in error.details:
                raise vector_gone(name, str(error.details["vector"])) from error
            raise CollectionNotFound(
                f"collection {name!r} was dropped: the feed of its changes has ended", collection=name
            ) from error
        except NeedleError:
            self._look_for_shards(await self._calls.look(PAUSE_SECONDS))
            raise
        if page is None:
            raise Forgotten
        self._limits[shard] = min(LIMIT_MAX, 2 * self._limits.get(shard, LIMIT_FIRST))
        self.read[shard] = page.reached
        if page.owned:
            looking = asyncio.create_task(self._given_away(shard, page.owned))
            looking.add_done_callback(heard)
            self._holds[shard] = _Hold(page.owned, looking)
        self._took(shard, page)

    def _add_shards(self, topology: Topology) -> None:
        for info in topology.serving:
            self.read.setdefault(info.shard, FIRST)

    def _look_for_shards(self, topology: Topology) -> None:
        """A shard that was removed tells nothing any more, and what it told last may not have been read."""
        if retired(topology).keys() - self._over:
            raise Forgotten
        self._add_shards(topology)

    # --- moves of ranges ---------------------------------------------------------------------------------------------
    async def _given_away(self, owner: int, move: int) -> dict[int, int] | None:
        """By shard, the entry by which the move took ranges away from it, if that was not read yet. A move leaves one
        shard before it comes to another, so whoever asks now hears of it. None: that is not known."""
        self._add_shards(await self._calls.renewed(self._timeout))

        async def ask(shard: int) -> int | None:
            return await self._calls.released(self._what.stored, shard, self.read[shard], move, self._timeout)

        others = [shard for shard in self.read if shard != owner]
        found = dict(zip(others, await asyncio.gather(*map(ask, others)), strict=True))
        if any(index is None for index in found.values()):
            return None
        return {shard: index for shard, index in found.items() if index}

    def _judge(self, shard: int, hold: _Hold) -> None:
        """Read the shard on, if the others have told what is before."""
        if not hold.looking.done():
            return
        try:
            needs = hold.looking.result()
        except NeedleError:
            hold.looking = asyncio.create_task(self._given_away(shard, hold.move))
            hold.looking.add_done_callback(heard)
            raise
        if needs is None:
            raise Forgotten
        if all(self.read[other][0] > index for other, index in needs.items()):
            del self._holds[shard]
            self._past[shard] = hold.move


def retired(topology: Topology) -> dict[int, Position]:
    """The shards that were removed, as what was read to its end."""
    return {info.shard: OVER for info in topology.shards if info.retired}


def vector_gone(collection: str, vector: str) -> CollectionNotFound:
    """For who reads a feed that tells it."""
    return CollectionNotFound(
        f"vector {vector!r} of collection {collection!r} was dropped: the feed that tells it has ended; another one "
        "goes on by its token without this vector",
        collection=collection,
        vector=vector,
    )


def heard(task: asyncio.Task[Any]) -> None:
    """A feed that is given up without `aclose` leaves no task whose error nobody took."""
    if not task.cancelled():
        task.exception()
