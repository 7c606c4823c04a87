"""The replica's log: what the storage holds, followed by what is not durable yet (etcd's raftLog and unstable).

Invariant: indices below `offset` are durable and equal to the storage's; `entries` start at `offset` and are not
known to be durable. A pending snapshot replaces everything before `offset`. The commit index is not kept here, but
no truncation at or below it is allowed. It knows neither roles nor messages.
"""

from __future__ import annotations

from typing import Protocol

from needle.base.errors import Internal
from needle.raft.messages import Entry, EntryKind, SnapshotMeta


class LogStorage(Protocol):
    """The durable part of the log."""

    def first_index(self) -> int:
        """The first available entry, 1 when nothing was compacted; first_index() - 1 is the snapshot point."""
        ...

    def last_index(self) -> int:
        """first_index() - 1 when empty."""
        ...

    def term(self, index: int) -> int:
        """Valid for first_index() - 1 .. last_index(); otherwise raises KeyError."""
        ...

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """The first entries of [low, high), at least one if low < high, cut off before the sum of data passes
        bytes_max, or earlier where they are read from a disk."""
        ...

    def in_memory_from(self) -> int:
        """Entries from here on are read without a disk."""
        ...

    def has_conf_change(self, low: int, high: int) -> bool:
        """Whether [low, high) holds a configuration change. Reads no disk."""
        ...


class RaftLog:
    """See the module. `handed` is the first index not yet handed to the host for writing."""

    __slots__ = ("entries", "handed", "offset", "snapshot", "storage")

    def __init__(self, storage: LogStorage) -> None:
        self.storage = storage
        self.snapshot: SnapshotMeta | None = None
        self.entries: list[Entry] = []
        self.offset = storage.last_index() + 1
        self.handed = self.offset

    # --- reading ------------------------------------------------------------------------------------------------
    @property
    def durable_index(self) -> int:
        """The last index known to be on disk; while a snapshot waits to be installed, nothing of it is."""
        return 0 if self.snapshot is not None else self.offset - 1

    def first_index(self) -> int:
        return self.storage.first_index() if self.snapshot is None else self.snapshot.index + 1

    def last_index(self) -> int:
        return self.offset + len(self.entries) - 1

    def last_term(self) -> int:
        return self.entries[-1].term if self.entries else self.term(self.offset - 1) or 0

    def term(self, index: int) -> int | None:
        """The term of the entry at `index`; None if it is compacted away or beyond the end."""
        if index >= self.offset:
            at = index - self.offset
            return self.entries[at].term if at < len(self.entries) else None
        if self.snapshot is not None:
            return self.snapshot.term if index == self.snapshot.index else None
        if index < self.storage.first_index() - 1:
            return None
        return self.storage.term(index)

    def matches(self, index: int, term: int) -> bool:
        return self.term(index) == term

    def is_up_to_date(self, index: int, term: int) -> bool:
        """Whether a log that ends in (index, term) is at least as complete as this one (paper, 5.4.1)."""
        own = self.last_term()
        return term > own or (term == own and index >= self.last_index())

    def slice(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """The first entries of [low, high), at least one if low < high, up to bytes_max of data, fewer where they are
        read from a disk. low >= first_index()."""
        found: list[Entry] = []
        if low < self.offset:
            stop = min(high, self.offset)
            found = self.storage.entries(low, stop, bytes_max)
            if low + len(found) < stop or high <= self.offset:
                return found
            bytes_max -= sum([len(e.data) for e in found])
            low = self.offset
        tail = self.entries[low - self.offset : high - self.offset]
        size = 0
        for count, entry in enumerate(tail):
            size += len(entry.data)
            if size > bytes_max and (count or found):
                tail = tail[:count]
                break
        return found + tail if found else tail

    def is_in_memory(self, index: int) -> bool:
        """Whether the entry at `index` is read without a disk."""
        return index >= self.offset or index >= self.storage.in_memory_from()

    def has_conf_change(self, low: int, high: int) -> bool:
        """Whether [low, high) holds a configuration change; found without reading the entries again."""
        if low < self.offset and self.storage.has_conf_change(low, min(high, self.offset)):
            return True
        waiting = self.entries[max(0, low - self.offset) : max(0, high - self.offset)]
        return any(e.kind == EntryKind.CONF_CHANGE for e in waiting)

    def find_conflict_by_term(self, index: int, term: int) -> tuple[int, int]:
        """The last (index, term) at or before `index` whose term is at most `term`: where two logs may still agree.

        The term is 0 when that point is compacted away. Terms never fall along a log, so it is searched by halves: each
        look may be a read of the disk, and `index` and `term` are a peer's words.
        """
        low, high = self.first_index() - 1, min(index, self.last_index())
        if high < low or self._known_term(low) > term:
            return max(0, min(high, low - 1)), 0
        own = self._known_term(high)
        while own > term:  # low is at most `term`, high is not
            middle = (low + high) // 2
            if self._known_term(middle) > term:
                high = middle
            else:
                low = middle
            if high - low == 1:
                high, own = low, self._known_term(low)
        return high, own

    def _known_term(self, index: int) -> int:
        """Of an entry from first_index() - 1 to last_index()."""
        own = self.term(index)
        assert own is not None
        return own

    # --- writing ------------------------------------------------------------------------------------------------
    def append(self, entry: Entry) -> None:
        """Add the leader's own next entry."""
        self.entries.append(entry)

    def extend(self, previous: int, entries: tuple[Entry, ...], commit: int) -> None:
        """Take over a leader's entries, which follow `previous` (already matching); truncate at a conflict only.

        Raises Internal if the conflict is at or below `commit`: that would undo a committed entry.
        """
        if previous != self.last_index():
            for position, entry in enumerate(entries):
                if not self.matches(entry.index, entry.term):
                    entries = entries[position:]
                    break
            else:
                return
        if not entries:
            return
        first = entries[0].index
        if first <= commit:
            raise Internal(f"entry {first} conflicts with the log below its commit index {commit}")
        if first == self.last_index() + 1:
            self.entries.extend(entries)
        elif first >= self.offset:
            del self.entries[first - self.offset :]
            self.entries.extend(entries)
        else:
            self.offset = first
            self.entries = list(entries)
        self.handed = min(self.handed, first)

    def restore(self, snapshot: SnapshotMeta) -> None:
        """Forget everything: the log starts behind `snapshot`, once that is installed."""
        self.snapshot = snapshot
        self.entries = []
        self.offset = self.handed = snapshot.index + 1

    # --- writing to disk ----------------------------------------------------------------------------------------
    def unwritten(self) -> tuple[Entry, ...]:
        """The entries that no Ready has carried yet."""
        return tuple(self.entries[self.handed - self.offset :])

    def has_unwritten(self) -> bool:
        return self.handed <= self.last_index()

    def mark_handed(self) -> None:
        self.handed = self.last_index() + 1

    def snapshot_installed(self, snapshot: SnapshotMeta) -> bool:
        """The host has installed `snapshot`. False if a newer one replaced it meanwhile."""
        if self.snapshot is None or self.snapshot is not snapshot:
            return False
        self.snapshot = None
        return True

    def stable_to(self, written: tuple[Entry, ...]) -> None:
        """`written` is on disk, and nothing else was written since it was handed out.

        Entries that a newer leader replaced meanwhile do not count (the ABA race): by log matching it is enough to
        look for the last written entry whose (index, term) the log still holds.
        """
        for entry in reversed(written):
            if entry.index >= self.offset and self.matches(entry.index, entry.term):
                del self.entries[: entry.index + 1 - self.offset]
                self.offset = entry.index + 1
                # What was rewritten with the same term while the write ran is on disk already.
                self.handed = max(self.handed, self.offset)
                return
            if entry.index < self.offset:
                return
