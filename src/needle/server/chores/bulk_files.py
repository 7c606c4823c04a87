"""The files of bulk loads on one replica: fetches what the next entry needs and this replica lacks, and deletes what no
entry can need any more (docs/adr/0119).

A file that no replica has any more was applied and stored by those that had it: then this replica's state counts as
damaged, and it is had from another one as a whole. It must not know how loads are made.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from needle.base.errors import DiskFull, NeedleError, TooManyFiles
from needle.base.ids import NodeId
from needle.base.parts import Payload
from needle.protocol import calls
from needle.protocol.bulk_calls import BULK_BYTES, PUT_BYTES_MAX, BulkBytesAnswer, BulkBytesCall
from needle.server.chores.context import ChoreContext, others_of
from needle.shard.bulk.staged import Awaited

log = logging.getLogger("needle.server")

LOOK_SECONDS: Final = 0.5
TIDY_SECONDS: Final = 30.0
KEEP_SECONDS: Final = 600.0
"""So long a file stays behind its entry, for replicas that have not got it yet."""
GONE_SECONDS: Final = 10.0
UNREACHED_SECONDS: Final = 60.0
"""The same, while a peer that may have the file does not answer: a snapshot costs more than to wait for its restart."""
UNKNOWN_SECONDS: Final = 3600.0
"""So long files stay of a collection whose making is not applied here: this replica may be behind, or whoever sent
them meant another cluster."""
CHUNK_SECONDS: Final = 10.0


class BulkFiles:
    """Of one replica."""

    def __init__(self, at: ChoreContext, call: Callable[[NodeId, str, bytes, float], Awaitable[Payload]]) -> None:
        """call: asks another node."""
        self._at, self._call = at, call
        self._gone: Awaited | None = None
        """What was last awaited and did not come, and since when."""
        self._gone_since = 0.0
        self._used: dict[int, float] = {}
        """Collections that hold documents, though files are here: since when that was seen."""
        self._unknown: dict[int, float] = {}
        """The same, of ids that nothing applied here has given a collection yet."""
        self._tidied = float("-inf")

    async def run(self) -> None:
        """Until cancelled."""
        while not self._at.host.stopped:
            await self._at.beats.next(LOOK_SECONDS, self._rests)
            if (awaited := self._at.replica.staged.awaited) is not None:
                await self._get(awaited)
            now = self._at.clock.monotonic()
            if now - self._tidied >= TIDY_SECONDS:
                self._tidied = now
                await self._tidy(now)

    def _rests(self) -> bool:
        is_tidy = self._at.clock.monotonic() - self._tidied < TIDY_SECONDS
        return is_tidy and self._at.replica.staged.awaited is None

    async def _get(self, awaited: Awaited) -> None:
        if self._is_over(awaited.collection_id):  # a snapshot came instead
            self._at.replica.staged.awaited = None
            return
        over = unreached = False
        for peer in others_of(self._at.host.status(self._at.group)):
            try:
                said = await self._fetch(awaited, peer)
            except (DiskFull, TooManyFiles) as error:  # of this node, when the peer has given of it
                log.debug("%s: %s of a bulk load cannot be kept: %s", self._at.name, awaited.name, error)
                self._gone = None
                return
            except NeedleError as error:
                log.debug("%s: %s of a bulk load is not had from %s: %s", self._at.name, awaited.name, peer, error)
                unreached = True
                continue
            if said.there:
                self._gone = None
                return
            over = over or said.over
        now = self._at.clock.monotonic()
        if self._gone != awaited:
            self._gone, self._gone_since = awaited, now
        if over and now - self._gone_since >= (UNREACHED_SECONDS if unreached else GONE_SECONDS):
            self._at.replica.staged.lost = awaited.checksum

    async def _fetch(self, awaited: Awaited, peer: NodeId) -> BulkBytesAnswer:
        """All of the file; what the peer said last."""
        staged, name = self._at.replica.staged, awaited.name
        at = await self._at.pool.run(staged.here, name)
        while True:
            if at >= awaited.size:  # killed before it was compared
                at = max(0, awaited.size - PUT_BYTES_MAX)
            length = min(PUT_BYTES_MAX, awaited.size - at) if at >= 0 else 1
            body = calls.encode(BulkBytesCall(self._at.group, name, max(at, 0), max(length, 1)))
            said = calls.decode(await self._call(peer, BULK_BYTES, body, CHUNK_SECONDS), BulkBytesAnswer)
            if not said.there or at < 0 or not said.data:
                return said
            at = await self._at.pool.run(staged.put, name, awaited.size, at, said.data)
            if at < 0:
                return said

    def _is_over(self, collection_id: int) -> bool:
        held = self._at.replica.held
        vectors = held.vectors_of(collection_id)
        return held.was_dropped(collection_id) or (vectors is not None and vectors.next_ordinal > 0)

    async def _tidy(self, now: float) -> None:
        staged, held = self._at.replica.staged, self._at.replica.held
        here = await self._at.pool.run(staged.collections)
        self._used = {one: self._used.get(one, now) for one in here if self._is_over(one)}
        self._unknown = {one: self._unknown.get(one, now) for one in here if not held.was_made(one)}
        for collection_id in [one for one, since in self._unknown.items() if now - since >= UNKNOWN_SECONDS]:
            await self._at.pool.run(staged.forget, collection_id)
        for collection_id, since in self._used.items():
            dropped = held.was_dropped(collection_id)
            if dropped or now - since >= KEEP_SECONDS:
                # Behind this, no start applies again what needs the file.
                await self._at.pool.run(self._at.replica.checkpoint)
                await self._at.pool.run(staged.forget, collection_id, held.segment_directory if dropped else "")
