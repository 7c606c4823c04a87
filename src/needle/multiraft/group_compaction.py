"""When the log of one group is cut, and where: by entries, by bytes, when no write comes, and when the disk's bound is
near.

Durability order: the state machine makes durable what it has applied, then the log's start moves behind it, in one
transaction. Invariant: no entry is dropped that the state machine might lose with the power. What else is kept says
retention.py. It must not know the group's proposals and readers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import msgspec

from needle.base.errors import NeedleError
from needle.base.file_errors import SHORTAGES
from needle.base.ids import group_name
from needle.multiraft.archives import Archives
from needle.multiraft.group_snapshots import SnapshotTraffic
from needle.multiraft.log.group_log import LogWrite
from needle.multiraft.log.log_records import StartRecord
from needle.multiraft.rebuild import Rebuild
from needle.multiraft.replica import Replica
from needle.multiraft.retention import IDLE_TAIL_BYTES, Member, keep_after, tail_after
from needle.multiraft.surroundings import Surroundings
from needle.raft.state import Role

_log = logging.getLogger("needle.multiraft")


class Compaction:
    """See the module. running: the log is being cut. archives: what whoever archives the log told."""

    def __init__(self, group: Replica, host: Surroundings, snapshots: SnapshotTraffic, rebuild: Rebuild) -> None:
        """snapshots: keeps the log behind what it has exported. rebuild: is told of damage that a checkpoint finds."""
        self.running = False
        self.archives = Archives(host.clock.monotonic())
        self._group = group
        self._host = host
        self._snapshots = snapshots
        self._rebuild = rebuild
        self._checkpoint = 0  # what was applied when the state machine was last made durable
        self._seen = (0, 0.0)  # what was applied when `settle` last looked, and since when nothing was

    # --- when ---------------------------------------------------------------------------------------------------------
    def consider(self) -> None:
        """Something was applied: cut the log if it is time to."""
        log, applied, threshold = self._group.log, self._group.raft.applied, self._host.config.snapshot_threshold
        due = applied - log.first_index() >= threshold and applied - self._checkpoint >= threshold - threshold // 4
        bounds, total = self._host.bounds, log.sizes.total
        pressed = self._host.bytes_used() >= bounds.pressed
        if not due and (pressed or total >= bounds.compact):
            done = log.sizes.after(self._checkpoint) - log.sizes.after(applied)
            due = done >= (total // 4 if pressed else bounds.compact // 4 * 3)
        if due:
            self._begin(0 if pressed else bounds.tail)

    def relieve(self) -> None:
        """The node's log nears its bound: keep no more than must be."""
        if self._group.raft.applied > self._group.log.start.index:
            self._begin(0)

    def settle(self, now: float) -> None:
        """Called now and then: if nothing was applied for a while, a large log need not stay."""
        applied = self._group.raft.applied
        if applied != self._seen[0]:
            self._seen = (applied, now)
        elif now - self._seen[1] >= self._host.config.compact_idle and self._group.log.sizes.total > IDLE_TAIL_BYTES:
            self._seen = (applied, now)
            if self._target(applied, IDLE_TAIL_BYTES) > self._group.log.start.index:
                self._begin(IDLE_TAIL_BYTES)

    def _begin(self, tail_bytes: int) -> None:
        if not self.running and self._group.log.pending is None and self._group.machine.damage is None:
            self.running = True
            self._host.spawn(self._compact(tail_bytes))

    # --- where --------------------------------------------------------------------------------------------------------
    def _target(self, durable: int, tail_bytes: int) -> int:
        """The last entry to drop."""
        host, group = self._host, self._group
        sizes = group.log.sizes
        entries = host.config.snapshot_threshold // 4 if tail_bytes else 0
        target = min(durable, tail_after(group.raft.applied, entries, tail_bytes, sizes))
        if host.bytes_used() >= host.bounds.pressed:
            return target
        return min(target, keep_after(self._members(), sizes, host.bounds), self._snapshots.floor)

    def _members(self) -> Iterator[Member]:
        """Who may need this log: archives, of which replicas that follow are told, too, for they may lead next; and a
        leader's members."""
        host, raft = self._host, self._group.raft
        now, within = host.clock.monotonic(), 2 * host.config.election_timeout
        begins = self._group.log.sizes.start
        for archive in self.archives.members(now):  # what is cut here, or was never an entry, others may have for it
            yield msgspec.structs.replace(archive, match=max(archive.match, begins))
        if raft.role is not Role.LEADER:
            return
        exported = host.shelf.current(self._group.id)
        for node, progress in raft.progress().items():
            if node != host.node_id:
                found = progress.snapshot.index if progress.snapshot is not None else -1
                if found < 0 and exported is not None:
                    found = exported.meta.index
                active = progress.recent_active and now - progress.contact <= within
                yield Member(progress.match, found, active)

    async def _compact(self, tail_bytes: int) -> None:
        """Drop the log's beginning, but nothing that the state machine might still lose with the power."""
        host, group, log = self._host, self._group, self._group.log
        async with group.image_lock:
            host.failpoint("compact.before_checkpoint")
            before = group.raft.applied
            try:
                durable = await host.apply_pool.run(group.machine.checkpoint)
            except SHORTAGES as error:
                if host.is_news(group.id, "cut", error.code):
                    _log.error("%s: the log is not cut now: %s", group_name(group.id), error)
                self.running = False  # what is applied next, or `settle`, tries again
                return
            except NeedleError:
                if group.machine.damage is None:
                    raise
                self.running = False
                self._rebuild.look()
                return
            host.failpoint("compact.after_checkpoint")
            self._checkpoint = max(before, durable)
        target = self._target(durable, tail_bytes)
        if log.first_index() <= target <= log.last_index() and log.pending is None:
            start = StartRecord(target, log.term(target))
            await host.durable(LogWrite(log=log, compact=start))
            host.failpoint("compact.after_commit")
            while tail_bytes <= IDLE_TAIL_BYTES and log.garbage_from < log.first_index() and not host.stopped:
                await host.durable(LogWrite(log=log))  # nobody else may write: its keys go with these
        self.running = False
