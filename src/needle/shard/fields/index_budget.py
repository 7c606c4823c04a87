"""How much memory the field indexes of a replica may take, and which of them have work to do.

Invariant: `used` is the sum of what every index has reported; nothing grows beyond the limit without being told no.
Every method may be called from any thread, and none of them waits for work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Protocol

from needle.shard.fields.allow_lists import AllowLists

IDLE_USES: Final = 1000
"""A field that this many filtered searches did not ask for may lose its index to another one."""
RECENT_MAX: Final = 256
LISTS_SHARE: Final = 16
"""Allow-lists may take one part in so many of what the indexes may take, beside them."""
FieldName = tuple[int, tuple[str, ...], bool | str]
"""Of which collection, the path, and what of it is indexed (filter_match.Key)."""


@dataclass(frozen=True)
class IndexRows:
    """few: so many documents are read rather than an index made for them. kept: when so many have come to an index, it
    is saved again. settled: the same, once no more come: a restart reads the rest of the documents again."""

    few: int = 32
    kept: int = 4096
    settled: int = 64


USUAL_ROWS: Final = IndexRows()


class Holder(Protocol):
    """What holds memory: one field of one collection."""

    nbytes: int
    """As last reported; the budget's own."""
    used_at: int
    declared: bool
    """Whether it is kept rather than others."""

    def give_back(self) -> None:
        """Drop the index; it will be built again when it is asked for."""
        ...


class Worker(Protocol):
    """The field indexes of one collection."""

    def work(self) -> bool:
        """Do one bounded piece of work; False if nothing is left."""
        ...


class IndexBudget:
    """Shared by all collections of a replica."""

    def __init__(self, bytes_max: int, rows: IndexRows = USUAL_ROWS) -> None:
        self.bytes_max = bytes_max
        self.rows = rows
        self.lists = AllowLists(bytes_max // LISTS_SHARE)
        self.changes = 0
        """Grows with whatever may be worth saving, or deleting."""
        self.used = 0
        self.uses = 0
        self.evicted = 0
        self._holders: dict[Holder, None] = {}
        self._lock = threading.Lock()
        self._waiting: dict[Worker, None] = {}
        self._recent: dict[FieldName, int] = {}

    def use(self, holders: list[Holder]) -> None:
        """A search asks for these."""
        with self._lock:
            self.uses += 1
            for holder in holders:
                holder.used_at = self.uses

    def note(self, names: list[FieldName]) -> None:
        """A search used these indexes: other replicas should have them too, in case they lead one day."""
        with self._lock:
            for name in names:
                self._recent.pop(name, None)
                self._recent[name] = self.uses
            while len(self._recent) > RECENT_MAX:
                del self._recent[next(iter(self._recent))]

    def recent(self) -> list[FieldName]:
        """What was noted during the last IDLE_USES searches."""
        with self._lock:
            return [name for name, at in self._recent.items() if at >= self.uses - IDLE_USES]

    def hold(self, holder: Holder, nbytes: int, publish: Callable[[], None]) -> bool:
        """Let a holder have `nbytes` instead of what it has, and publish what takes them; False: there is no room."""
        with self._lock:
            more = nbytes - holder.nbytes
            if more > 0 and self.used + more > self.bytes_max:
                self._make_room(holder, more)
            if more > 0 and self.used + more > self.bytes_max:
                return False
            self.used += more
            holder.nbytes = nbytes
            self.changes += 1
            self._holders[holder] = None
            publish()
            return True

    def room(self, leaving_out: Collection[Holder] = ()) -> int:
        """Bytes that declared holders leave, but for some of them."""
        with self._lock:
            others = [one for one in self._holders if one.declared and one not in leaving_out]
            return self.bytes_max - sum(one.nbytes for one in others)

    def worth_trying(self, refused_at: int, nbytes: int, *, declared: bool = False) -> bool:
        """Whether who was refused `nbytes` at that use may ask again: there is room, or others have become idle."""
        if declared:
            return nbytes <= self.room()
        idle = self.uses - refused_at > IDLE_USES and nbytes <= self.bytes_max
        return idle or self.used + nbytes <= self.bytes_max

    def release(self, holder: Holder) -> None:
        """It is no more."""
        with self._lock:
            self._release(holder)

    def _release(self, holder: Holder) -> None:
        if self._holders.pop(holder, 0) is None:  # it was there
            self.used -= holder.nbytes
            holder.nbytes = 0
            holder.give_back()

    def _make_room(self, wanting: Holder, more: int) -> None:
        """Take from who was not asked for in a long time, longest first, if that is enough; for who is declared, from
        all who are not."""
        before = self.uses + 1 if wanting.declared else self.uses - IDLE_USES
        others = [one for one in self._holders if one is not wanting and not one.declared]
        idle = [one for one in others if one.used_at < before]
        if self.used + more - sum(one.nbytes for one in idle) > self.bytes_max:
            return
        for one in sorted(idle, key=lambda one: one.used_at):
            if self.used + more <= self.bytes_max:
                return
            self._release(one)
            self.evicted += 1

    def shrink(self) -> None:
        """Memory is short: forget what filters allowed, and the indexes that would make room for others."""
        self.lists.clear()
        with self._lock:
            for one in [one for one in self._holders if not one.declared and one.used_at < self.uses - IDLE_USES]:
                self._release(one)
                self.evicted += 1

    # --- work for later ----------------------------------------------------------------------------------------------
    @property
    def waits(self) -> bool:
        """Whether `work` has something to do."""
        return bool(self._waiting)

    def ask(self, worker: Worker) -> None:
        """There is work for it."""
        if worker not in self._waiting:
            with self._lock:
                self._waiting[worker] = None

    def forget(self, worker: Worker) -> None:
        """There is none any more: its collection is gone."""
        with self._lock:
            self.changes += 1
            self._waiting.pop(worker, None)

    def work(self) -> None:
        """One bounded piece of the work of one collection; the others' turns come before its next one. Blocking."""
        with self._lock:
            worker = next(iter(self._waiting), None)
            if worker is None:
                return
            del self._waiting[worker]
        if worker.work():
            self.ask(worker)
