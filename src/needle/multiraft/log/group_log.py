"""One group's durable log as the Raft core sees it: a view of the store with the tail kept in memory.

Invariant: it shows only what a finished commit made durable; `note` is called, on the event loop, after that commit.
Implements `needle.raft.log.LogStorage` structurally. It must not write.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from needle.base.ids import GroupId
from needle.multiraft.log.log_records import (
    ENTRY,
    BootstrapRecord,
    LostRecord,
    PendingInstall,
    RepairRecord,
    StartRecord,
    corrupt,
    decode_entry,
    entries_end,
    entry_key,
    parse_key,
)
from needle.multiraft.log.log_sizes import ENTRY_OVERHEAD, LogSizes
from needle.multiraft.ports import KeyValueStore
from needle.raft.messages import ConfState, Entry, EntryKind, HardState

_CONF_CHANGE = int(EntryKind.CONF_CHANGE)
READ_ENTRIES_MAX = 1024
READ_BYTES_MAX = 2 << 20
"""What is read of the disk at once, on the event loop: each entry takes 2 us, each MiB another 1 ms."""


class Damage(msgspec.Struct, frozen=True):
    """What the scan found wrong with a group's entries. first_bad, last_bad: the lowest and highest index that is
    corrupt or missing; last_seen: the highest index of any key. in_tail: nothing intact follows the first bad one
    (a torn write, perhaps); otherwise the middle is corrupt (bits rotted)."""

    first_bad: int
    last_bad: int
    last_seen: int
    in_tail: bool
    reason: str


class LogWrite(msgspec.Struct, kw_only=True):
    """One group's part of a transaction. Done in this order: reset, compact, entries, the rest.

    reset: drop all entries, the log starts after (index, term). compact: the same start, but entries after it stay.
    truncate_from: drop entries from this index on. entries: replace the suffix from entries[0].index on.
    pending, repair and lost: `None` leaves, `False` clears.
    """

    log: GroupLog
    reset: StartRecord | None = None
    compact: StartRecord | None = None
    truncate_from: int = 0
    entries: Sequence[Entry] = ()
    hard_state: HardState | None = None
    bootstrap: ConfState | BootstrapRecord | None = None
    pending: PendingInstall | bool | None = None
    repair: RepairRecord | bool | None = None
    lost: LostRecord | bool | None = None


class GroupLog:
    """The durable log of one group. Indexes as in LogStorage; `garbage_from` is the lowest index whose key may still
    be in the store although the log starts later."""

    def __init__(self, store: KeyValueStore, group: GroupId, cache_bytes_max: int) -> None:
        self._store = store
        self._cache_bytes_max = cache_bytes_max
        self._cache: list[Entry] = []
        self._cache_bytes = 0
        self._last = 0
        self.sizes = LogSizes()
        self._conf_changes: list[int] = []  # the indexes of all there are, in order
        self.group = group
        self.start = StartRecord(0, 0)
        self.garbage_from = 0
        self.hard_state: HardState | None = None
        self.bootstrap: ConfState | None = None
        self.given_up = False
        self.pending: PendingInstall | None = None
        self.repair: RepairRecord | None = None
        self.lost: LostRecord | None = None
        self.damage: Damage | None = None

    def first_index(self) -> int:
        """The first entry there is; 1 when nothing was compacted."""
        return self.start.index + 1

    def last_index(self) -> int:
        """The last entry there is; first_index() - 1 when empty."""
        return self._last

    def term(self, index: int) -> int:
        """The term of an entry from first_index() - 1 to last_index(). Raises KeyError outside, CorruptLog."""
        offset = index - self._last + len(self._cache) - 1
        if 0 <= offset < len(self._cache):
            return self._cache[offset].term
        if index == self.start.index:
            return self.start.term
        if not self.start.index < index <= self._last:
            raise KeyError(index)
        return self._read(index, index + 1, 1)[0].term

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """The first entries of [low, high) up to bytes_max, but at least one; of what is read from the disk, at most
        READ_ENTRIES_MAX and READ_BYTES_MAX. Raises KeyError outside the log, CorruptLog."""
        if low >= high:
            return []
        if low <= self.start.index or high > self._last + 1:
            raise KeyError((low, high))
        cached_from = self.in_memory_from()
        if low < cached_from:
            return self._read(low, min(high, cached_from, low + READ_ENTRIES_MAX), min(bytes_max, READ_BYTES_MAX))
        found = self._cache[low - cached_from : high - cached_from]
        size = 0
        for count, entry in enumerate(found):
            size += len(entry.data)
            if size > bytes_max and count:
                return found[:count]
        return found

    def in_memory_from(self) -> int:
        """The first entry that is read without a disk; last_index() + 1 if none is."""
        return self._last - len(self._cache) + 1

    def has_conf_change(self, low: int, high: int) -> bool:
        """Whether [low, high) holds a configuration change. Reads no disk."""
        at = bisect_left(self._conf_changes, low)
        return at < len(self._conf_changes) and self._conf_changes[at] < high

    def _read(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        end = entry_key(self.group, high)
        found: list[Entry] = []
        for key, value in self._store.scan(entry_key(self.group, low), end, max(1, bytes_max)):
            index = parse_key(key)[2]
            if index != low + len(found):
                break
            found.append(decode_entry(key, value, self.group, index))
        if not found:
            raise corrupt(self.group, ENTRY, low, "is missing")
        return found

    def note(self, write: LogWrite) -> None:
        """The write is durable: show it."""
        if write.reset is not None:
            self._set_start(write.reset)
            self._replace([], write.reset.index)
            self.sizes = LogSizes(write.reset.index)
            self._conf_changes.clear()
        if write.compact is not None:
            self._set_start(write.compact)
        if write.truncate_from:
            self._cut(write.truncate_from)
        if write.entries:
            self._append(write.entries)
        self.hard_state = write.hard_state or self.hard_state
        if write.bootstrap is not None:
            self.founded(write.bootstrap)
        if isinstance(write.pending, PendingInstall):
            self.pending = write.pending
        elif write.pending is False:
            self.pending = None
        if isinstance(write.repair, RepairRecord):
            self.repair = write.repair
        elif write.repair is False:
            self.repair = None
        if isinstance(write.lost, LostRecord):
            self.lost = write.lost
        elif write.lost is False:
            self.lost = None

    def founded(self, record: ConfState | BootstrapRecord) -> None:
        """What the log says of how the group began on this node."""
        self.given_up = isinstance(record, BootstrapRecord) and record.given_up
        self.bootstrap = record.conf if isinstance(record, BootstrapRecord) else record

    def _set_start(self, start: StartRecord) -> None:
        self.start = start
        self.sizes.drop(start.index)
        del self._conf_changes[: bisect_left(self._conf_changes, start.index + 1)]
        if self._last < start.index:
            self._replace([], start.index)
        keep = self._last - start.index
        if keep < len(self._cache):
            self._replace(self._cache[len(self._cache) - keep :] if keep else [], self._last)

    def _replace(self, cache: list[Entry], last: int) -> None:
        self._cache, self._last = cache, last
        self._cache_bytes = sum(len(entry.data) + ENTRY_OVERHEAD for entry in cache)

    def _cut(self, first: int) -> None:
        if first <= self._last:
            self.sizes.cut(first)
            del self._conf_changes[bisect_left(self._conf_changes, first) :]
            cached_from = self.in_memory_from()
            self._replace(self._cache[: max(0, first - cached_from)], first - 1)

    def _append(self, entries: Sequence[Entry]) -> None:
        self._cut(entries[0].index)
        self._cache.extend(entries)
        self._last = entries[-1].index
        lengths = [len(entry.data) for entry in entries]
        self.sizes.append(lengths)
        self._conf_changes.extend([entry.index for entry in entries if entry.kind == _CONF_CHANGE])
        self._cache_bytes += sum(lengths) + ENTRY_OVERHEAD * len(entries)
        if self._cache_bytes > self._cache_bytes_max:
            self._trim()

    def _trim(self) -> None:
        """Let go of the oldest half: each entry is let go once, so trimming costs a constant per entry."""
        drop = 0
        while self._cache_bytes > self._cache_bytes_max // 2 and drop < len(self._cache) - 1:
            self._cache_bytes -= len(self._cache[drop].data) + ENTRY_OVERHEAD
            drop += 1
        del self._cache[:drop]

    def shown(self, last: int, sizes: LogSizes | None = None, conf_changes: Sequence[int] = ()) -> None:
        """The scan on open found intact entries up to `last`, of these sizes. conf_changes: the indexes of those that
        change the configuration, in order; those of them that are outside the log are left out."""
        self._last = last
        self.sizes = sizes or LogSizes(last)
        self._conf_changes = [index for index in conf_changes if self.start.index < index <= last]
        self.sizes.drop(self.start.index)

    def range_end(self) -> bytes:
        """The first key after all of this group's entries."""
        return entries_end(self.group)
