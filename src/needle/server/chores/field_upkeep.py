"""Looks after the field indexes of one replica: makes what searches found lacking, has those that the catalog declares
and that the leader's searches use, and saves them for the next start.

Piece by piece, on a background thread. Nothing waits for it: an index that is not there or not saved is only work. So
it saves nothing while the disk has little room, and tries again some time after it could not. It must not know what an
index is.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeVar

from needle.base.errors import NeedleError, StorageError
from needle.base.file_errors import SHORTAGES
from needle.base.ids import NodeId
from needle.base.parts import Payload
from needle.base.text import TextField
from needle.protocol import calls
from needle.protocol.calls import GroupCall
from needle.routing.topology import CollectionInfo
from needle.routing.topology_changes import differing
from needle.server.chores.context import ChoreContext
from needle.server.machine.space import Space
from needle.shard.fields.index_budget import RECENT_MAX, FieldName

log = logging.getLogger("needle.server")

FILTERED_FIELDS: Final = "shard.filtered_fields"
LOOK_SECONDS: Final = 0.1
LEARN_SECONDS: Final = 3.0
WORK_SECONDS: Final = 1.0
"""After so long of making indexes the rest gets its turn: beside writes, searches always find something lacking."""
SETTLED_SECONDS: Final = 10.0
"""After so long without a change, also what is little is saved."""
SAVE_SECONDS: Final = 1.0
"""So often it is looked at most whether one is worth saving: that looks at every collection."""
AGAIN_SECONDS: Final = 60.0
"""After so long it is tried again to save, where that failed."""

T = TypeVar("T")


class FieldUpkeep:
    """Of one replica."""

    def __init__(
        self, at: ChoreContext, call: Callable[[NodeId, str, bytes, float], Awaitable[Payload]], space: Space
    ) -> None:
        """call: asks another node."""
        self._at = at
        self._call = call
        self._space = space
        self._declared: dict[str, tuple[str, ...]] = {}
        self._texts: dict[str, TextField] = {}
        self._sparse: dict[str, tuple[str, ...]] = {}
        self._rows: tuple[CollectionInfo, ...] = ()
        """The catalog's collections of which these are."""
        self._seen = self._saved = self._settled = -1
        """Of IndexBudget.changes: at the last look; when all was saved but what is little; when that was, too."""
        self._changed_at = 0.0
        self._save_from = float("-inf")
        self._asked_at = 0.0

    async def run(self) -> None:
        """Until the node stops."""
        self._asked_at = self._at.clock.monotonic()
        while not self._at.host.stopped:
            indexes, until = self._at.replica.field_indexes, self._at.clock.monotonic() + WORK_SECONDS
            while indexes.waits and not self._at.host.stopped and self._at.clock.monotonic() < until:
                await self._at.pool.run(indexes.work)
            await self._save()
            if self._at.clock.monotonic() - self._asked_at >= LEARN_SECONDS:
                await self._declare()
                await self._learn()
                self._asked_at = self._at.clock.monotonic()
            if not indexes.waits:
                await self._at.beats.next(LOOK_SECONDS, self._rests)

    def _rests(self) -> bool:
        now = self._at.clock.monotonic()
        busy = self._at.replica.field_indexes.waits or now - self._asked_at >= LEARN_SECONDS
        return not busy and not self._is_to_save(now)

    def _is_to_save(self, now: float) -> bool:
        """Whether there may be something worth it. While nothing changes, this is a comparison of numbers."""
        changes = self._at.replica.field_indexes.changes
        if changes != self._seen:
            self._seen, self._changed_at = changes, now
        known = self._settled if now - self._changed_at >= SETTLED_SECONDS else self._saved
        return changes != known and now >= self._save_from and not self._space.disk.low

    async def _save(self) -> None:
        """Save what is worth it."""
        now, indexes = self._at.clock.monotonic(), self._at.replica.field_indexes
        if not self._is_to_save(now):
            return
        changes, settled = indexes.changes, now - self._changed_at >= SETTLED_SECONDS
        self._save_from = now + SAVE_SECONDS
        rows_min = indexes.rows.settled if settled else indexes.rows.kept
        try:
            while not self._at.host.stopped and await self._at.pool.run(self._at.replica.held.save_fields, rows_min):
                pass
        except (StorageError, *SHORTAGES) as error:
            self._save_from = now + AGAIN_SECONDS
            log.warning("%s: field indexes are not saved for now: %s", self._at.name, error)
            return
        self._saved = changes
        if settled:
            self._settled = changes

    async def _declare(self) -> None:
        """Keep the indexes that the catalog declares, of fields, of the words of texts and of sparse vectors, and have
        them take in what was written since."""
        before = self._declared or self._texts or self._sparse
        if (now := self._at.topology().collections) is not self._rows:
            self._follow(now)
        if self._declared or self._texts or self._sparse or before:
            wanted = self._declared, self._texts, self._sparse
            await self._at.pool.run(self._at.replica.held.declare_fields, *wanted)

    def _follow(self, now: tuple[CollectionInfo, ...]) -> None:
        """The catalog's collections are these: look at those that are others."""
        gone, came = differing(self._rows, now)
        self._rows, others = now, {info.stored_name for info in gone}
        self._declared = _with(self._declared, others, {info.stored_name: info.fields for info in came if info.fields})
        texts = {info.stored_name: info.spec.text for info in came if info.spec.text is not None}
        self._texts = _with(self._texts, others, texts)
        self._sparse = _with(self._sparse, others, {info.stored_name: info.sparse for info in came if info.sparse})

    async def _learn(self) -> None:
        """On a follower: have the indexes that the leader's searches use, in case this node leads one day."""
        leader = self._at.host.leader(self._at.group)
        if leader is None or self._at.leads:
            return
        body = calls.encode(GroupCall(self._at.group, LEARN_SECONDS))
        try:
            answer = await self._call(leader, FILTERED_FIELDS, body, LEARN_SECONDS)
            fields = calls.decode(answer, list[FieldName])
        except NeedleError as error:
            log.debug("the leader of %s does not say which fields are filtered on: %s", self._at.name, error)
        else:
            self._at.replica.held.prepare_fields(fields[:RECENT_MAX])


def _with(known: dict[str, T], gone: Collection[str], came: dict[str, T]) -> dict[str, T]:
    left = {name: one for name, one in known.items() if name not in gone} if known and gone else known
    return {**left, **came} if came else left
