"""What a replica on this node tells of its shard's changes, to those who read a change feed.

Invariant: a feed has nothing here but the call that it waits in, so a slow reader costs nothing, and one that vanished
costs that until its connection ends, or its wait is over. It must not know sockets or encodings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from needle.base.errors import Overloaded, invalid
from needle.base.model import Claim
from needle.protocol.calls import DocumentBatch
from needle.protocol.change_calls import KINDS, LIMIT_MAX, WAIT_SECONDS_MAX, ChangesAnswer, ChangesCall
from needle.protocol.named import Named
from needle.server.replica import HostedReplica
from needle.server.service.reads import Reads
from needle.server.service.served import ServedNode
from needle.shard.apply.holdings import check_claim
from needle.shard.effects import Position
from needle.shard.feeding import DELETE, Fed, Wanted, read_changes

WAITING_MAX: Final = 4096
"""Calls that wait for a change, of all feeds and shards."""
NOTHING: Final = DocumentBatch([], [], [], b"", 0)


class Feeding:
    """See the module."""

    def __init__(self, node: ServedNode, reads: Reads) -> None:
        self._node = node
        self._reads = reads
        self.waiting = 0

    async def end(self, call: ChangesCall, claim: Claim) -> ChangesAnswer:
        """Where the shard's changes end now, if it owns what the map says. Raises StaleEpoch, CollectionNotFound."""
        hosted = await self._reads.fresh(call.group, call.freshness)
        view = hosted.replica.view
        check_claim(view.fence, claim, view.at.index)
        view.collection(call.collection)
        return _answer(None, Position(view.at.index + 1), hosted)

    async def changes(self, call: ChangesCall) -> ChangesAnswer:
        """Raises InvalidArgument, CollectionNotFound, Overloaded, and what a read raises."""
        if not 1 <= call.limit <= LIMIT_MAX:
            raise invalid("limit", call.limit, f"1 to {LIMIT_MAX} changes a call")
        if not 0 <= call.wait <= WAIT_SECONDS_MAX:
            raise invalid("wait", call.wait, f"0 to {WAIT_SECONDS_MAX:g} seconds")
        position = Position(*call.position)
        if position.entry < 1 or position.offset < 0:
            raise invalid("position", list(call.position), "an index from 1 on, and an offset from 0 on")
        hosted = await self._reads.fresh(call.group, call.freshness)
        if call.move:
            applied = Position(hosted.replica.view.at.index + 1)  # before it is looked: what is before is seen
            found = hosted.replica.effects.released(call.move, position)
            return _answer(None, applied, hosted, known=found is not None, released=found or 0)
        wanted = Wanted(
            call.collection, position, call.limit, call.with_vectors, call.bound, call.past, call.filter, call.near,
            call.named,
        )  # fmt: skip
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        deadline = loop.time() + call.wait

        def tell() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(news.set)

        about = hosted.replica.view.collection(call.collection).record.id
        stop = hosted.replica.effects.listen(about, tell)  # before it is looked: what is added from then on is heard
        try:
            while True:
                news.clear()
                fed = await self._read(hosted, wanted)
                left = deadline - loop.time()
                # What was looked at is told even if nothing of it is for this reader: so it gets on.
                if fed is None or fed.told or fed.owned or fed.more or left <= 0:
                    break
                wanted = wanted._replace(position=fed.reached)
                await self._wait(news, left)
        finally:
            stop()
        if fed is None:
            return _answer(None, wanted.position, hosted, known=False)
        return _answer(fed, fed.reached, hosted, near=call.near is not None)

    async def _read(self, hosted: HostedReplica, wanted: Wanted) -> Fed | None:
        replica = hosted.replica
        fed: Fed | None = await self._node.blocking(
            replica.look, read_changes, replica.effects, wanted, self._node.config.limits
        )
        return fed

    async def _wait(self, news: asyncio.Event, seconds: float) -> None:
        if self.waiting >= WAITING_MAX:
            raise Overloaded(f"{WAITING_MAX} calls wait for changes on node {self._node.node_id} already")
        self.waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await news.wait()
        except TimeoutError:
            pass  # what there is now is told
        finally:
            self.waiting -= 1


def _answer(
    fed: Fed | None,
    reached: Position,
    hosted: HostedReplica,
    *,
    known: bool = True,
    released: int = 0,
    near: bool = False,
) -> ChangesAnswer:
    view = hosted.replica.view
    owns = view.fence is None or bool(view.fence.holdings.owned)
    if fed is None:
        return ChangesAnswer(b"", NOTHING, [], [], [], reached, 0, known, released, owns)
    written = [one.document for one in fed.told if one.kind != DELETE]
    gone = [one.document for one in fed.told if one.kind == DELETE]
    batch = DocumentBatch(
        [one.id for one in written],
        [one.version for one in written],
        [one.metadata for one in written],
        b"".join(one.vector for one in written),
        view.at.index,
        named=_named([one.named for one in fed.told if one.kind != DELETE]),
    )
    return ChangesAnswer(
        bytes(KINDS.index(one.kind) for one in fed.told),
        batch,
        [one.id for one in gone],
        [one.version for one in gone],
        [(one.after.entry, one.after.offset) for one in fed.told],
        (reached.entry, reached.offset),
        fed.owned,
        owns=owns,
        distances=[one.distance for one in fed.told if one.kind != DELETE] if near else [],
    )


def _named(given: list[Mapping[str, bytes]]) -> list[Named]:
    """Of documents, as float32."""
    found: list[Named] = []
    for name in dict.fromkeys(name for one in given for name in one):
        rows = [at for at, one in enumerate(given) if name in one]
        found.append(Named(name, rows, b"".join(given[at][name] for at in rows)))
    return found
