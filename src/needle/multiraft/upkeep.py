"""What a host looks after between its turns: its logs' bound, groups that rest, exported snapshots nobody fetches.

Invariant: nothing is given up that a peer still uses, unless the bound of the logs is near. It must not know turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from needle.base.ids import GroupId
from needle.base.runtime import Clock
from needle.multiraft.group import Group
from needle.multiraft.log.log_store import LogStore
from needle.multiraft.retention import Bounds
from needle.multiraft.snapshots.sender import SnapshotShelf


class Upkeep:
    """See the module. groups: the open ones."""

    def __init__(
        self, groups: Mapping[GroupId, Group], store: LogStore, shelf: SnapshotShelf, bounds: Bounds, clock: Clock
    ) -> None:
        self._groups = groups
        self._store = store
        self._shelf = shelf
        self._bounds = bounds
        self._clock = clock
        self._relieved_at = 0

    def relieve(self) -> None:
        """From half of the bound on, each time the log has grown: cut what can be cut, of all groups."""
        used = self._store.bytes_used()
        if used >= self._bounds.pressed and used != self._relieved_at:
            groups = list(self._groups.values())
            share = sum(group.log.sizes.total for group in groups) // (2 * len(groups) or 1)
            for group in groups:
                if group.log.sizes.total >= share:
                    group.compaction.relieve()
        self._relieved_at = used

    async def sweep(self, every: float) -> None:
        """Remove exported snapshots that no peer fetches any more, and the logs of groups that rest. every: seconds."""
        while True:
            await asyncio.sleep(every)
            now = self._clock.monotonic()
            if self._store.bytes_used() >= self._bounds.pressed:
                self._relieved_at = 0
                self.relieve()
            for group in list(self._groups.values()):
                group.compaction.settle(now)
                if not group.snapshots.wanted(now):
                    await self._shelf.drop(group.id)
