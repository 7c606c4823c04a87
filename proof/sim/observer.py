"""Looks into every running replica after each of its steps, and into what it sends, and feeds the checkers.

Invariant: observing changes nothing: no effect on the run, no draw from its randomness. It must not know the workload.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from needle.base.errors import CorruptDocuments, ReplicaDamaged
from needle.base.ids import CATALOG_GROUP, GroupId
from needle.multiraft.codec import decode_frame
from needle.multiraft.log.group_log import GroupLog
from needle.multiraft.log.log_records import (
    HARD,
    IDENTITY_KEY,
    PEER_PREFIX,
    START,
    Identity,
    Life,
    StartRecord,
    decode_record,
    entries_end,
    entry_key,
    parse_key,
    record_key,
)
from needle.multiraft.ports import Applied
from needle.raft.messages import Entry, HardState, MessageType
from proof.checkers import durability, lives, log_matching, matches
from proof.checkers.committed import Committed, CommittedEntry
from proof.checkers.digests import Digests, rows_of
from proof.checkers.elections import Elections
from proof.checkers.lives import SpokenLives
from proof.checkers.monotone import Monotone, Position
from proof.checkers.violation import Violation
from proof.sim.disk import Image, LogDisk
from proof.sim.machines import SimMachine
from proof.sim.trace import Trace

_APPEND_RESP = int(MessageType.APPEND_RESP)
_VOTE = int(MessageType.VOTE)
_VOTE_RESP = int(MessageType.VOTE_RESP)


CONF = b"conf:"
"""Before an encoded configuration, in a CommittedEntry."""

Read = Callable[[GroupId, float], Awaitable[int]]
Look = Callable[[GroupId], int | None]
Begin = Callable[[GroupId, float], asyncio.Future[int]]


class Replicating(Protocol):
    """A group of a running node, as needle.multiraft.group.Group has it."""

    raft: Any
    log: Any
    machine: Any


class DurableLog:
    """A group's log as a power cut now would leave it."""

    def __init__(self, disk: LogDisk, group: GroupId) -> None:
        self._image: Image = disk.durable
        self._group = group

    def start(self) -> int:
        """Index before the first entry."""
        key = record_key(self._group, START)
        record = decode_record(key, self._image.values.get(key, b""), StartRecord)
        return record.index if record is not None else 0

    def last(self) -> int:
        """Index of the last entry."""
        keys = self._image.keys(entry_key(self._group, 0), entries_end(self._group))
        return max(self.start(), parse_key(keys[-1])[2] if keys else 0)

    def holds(self, index: int) -> bool:
        """Whether entry `index` is there, or was compacted away."""
        return entry_key(self._group, index) in self._image.values or index <= self.start()

    def hard_state(self) -> HardState:
        """Term and vote."""
        key = record_key(self._group, HARD)
        return decode_record(key, self._image.values.get(key, b""), HardState) or HardState()


class Observer:
    """All continuous checkers of one run."""

    def __init__(
        self,
        machines: dict[str, SimMachine],
        trace: Trace,
        replicas: Callable[[], dict[GroupId, dict[str, Replicating]]],
    ) -> None:
        """replicas: every running replica, by group and node."""
        self._machines = machines
        self._replicas = replicas
        self._trace = trace
        self._last: dict[tuple[str, int, GroupId], tuple[Any, ...]] = {}
        self._open: dict[tuple[str, GroupId], Replicating] = {}
        self.elections = Elections()
        self.monotone = Monotone()
        self.committed = Committed()
        self.digests = Digests()
        self.stored = Digests()
        self.snapshots_installed = 0
        self.repaired = 0
        """Replicas that found their data damaged, and had it again from another one."""
        self.rotten: set[str] = set()
        self.replaced: set[str] = set()
        """Nodes whose disks were replaced by empty or older ones."""
        self.emptied: set[str] = set()
        """Those whose disks were empty."""
        self.lives = SpokenLives()
        self.broken: Violation | None = None

    # --- after each step ----------------------------------------------------------------------------------------------
    def look(self, name: str, incarnation: int, group: GroupId, replica: Replicating) -> None:
        """Raises Violation."""
        raft, state = replica.raft, replica.raft._s  # the fields, not the properties: this runs after every step
        entries = state.log
        last_index = entries.offset + len(entries.entries) - 1
        now = (state.term, state.role, state.commit, state.applied, last_index, replica.log.start.index)
        key = (name, incarnation, group)
        before = self._last.get(key)
        if before == now:
            return
        self._last[key] = now
        if self._open.get((name, group)) is not replica:
            self._opened(name, incarnation, group)
            self._open[(name, group)] = replica
        term, role, commit, applied, last, start = now
        first = start + 1
        leads = role.name == "LEADER"
        snapshot_pending = last < first - 1
        if not snapshot_pending:
            self.monotone.observe(
                group, name, incarnation, Position(term, min(first - 1, commit), applied, commit, last)
            )
        if before is not None and last < before[4]:  # cut off: not what a leader counts on
            self.compare_matches(group, self._replicas().get(group, {}))
        if leads and name in self.replaced:
            lives.leads(name, group)
        if leads and self.elections.leads(group, name, term):
            self._trace.tell(f"{name} leads group {group} in term {term} (last entry {last}, commit {commit})")
            self.committed.elected(group, name, first, lambda index: _term(raft, index), term)
        elif before is not None and (before[0], before[1]) != (term, role):
            self._trace.note(f"{name} is {role.name} of group {group} in term {term}")

    def booted(self, name: str) -> None:
        """A node starts on what its disk holds."""
        disk = self._machines[name].log_disk
        for group in _groups_on(disk):
            self.monotone.booted(group, name, DurableLog(disk, group).hard_state().term)

    def _opened(self, name: str, incarnation: int, group: GroupId) -> None:
        """A running node opens a replica, perhaps again: it begins with what its disk holds and has not rotted."""
        self.monotone.closed(group, name, incarnation)
        self.monotone.booted(group, name, DurableLog(self._machines[name].log_disk, group).hard_state().term)

    def compare_logs(self, groups: dict[GroupId, dict[str, Replicating]]) -> None:
        """Log matching, and leaders' knowledge of it, over all running replicas. Raises Violation."""
        for group, replicas in groups.items():
            self.compare_matches(group, replicas)
            logs = {}
            for name, replica in replicas.items():
                logs[name] = {e.index: (e.term, zlib.crc32(e.data, e.kind)) for e in _all_entries(replica.log)}
            log_matching.check(group, logs)

    def compare_matches(self, group: GroupId, replicas: dict[str, Replicating]) -> None:
        """What leaders take their followers' logs to hold is there. Raises Violation."""
        matches.check(group, {name: replica.raft._s for name, replica in replicas.items()}, self.rotten)

    def compare_digests(self, groups: dict[GroupId, dict[str, Replicating]]) -> None:
        """Equal applied index, equal documents. Raises Violation."""
        for group, replicas in groups.items():
            for name, replica in replicas.items():
                self.digests.observe(group, name, replica.machine.applied_index(), replica.machine.digest())

    def compare_stored(self, groups: dict[GroupId, dict[str, Replicating]]) -> list[str]:
        """The same by the rows themselves, all of which are read: a bit that flipped on a disk shows here. The nodes
        that report damage instead. Raises Violation."""
        damaged = []
        for group, replicas in groups.items():
            for name, replica in replicas.items():
                try:
                    if replica.machine.damage is not None:
                        damaged.append(name)
                    elif group != CATALOG_GROUP:  # that one is in memory
                        self.digests.observe(group, name, *replica.machine.inner.stored_digest())
                        self.stored.observe(
                            group, name, replica.machine.applied_index(), rows_of(replica.machine.inner)
                        )
                except (CorruptDocuments, ReplicaDamaged):
                    damaged.append(name)
        return damaged

    # --- what the state machines do -----------------------------------------------------------------------------------
    def opened(self, group: GroupId, name: str, incarnation: int, applied: int, digest: str) -> None:
        """A state machine was opened at `applied`, with the documents of `digest`."""
        self.committed.opened(group, name, incarnation, applied)
        self._hold(group, name, applied, digest)

    def installed(self, group: GroupId, name: str, incarnation: int, applied: int, *, was_damaged: bool) -> None:
        """A snapshot replaced the state."""
        self.snapshots_installed += 1
        if was_damaged:
            self.repaired += 1
            self._trace.tell(f"{name} had found its data of group {group} damaged")
        self._trace.tell(f"{name} installed a snapshot of group {group} at {applied}")
        self.committed.opened(group, name, incarnation, applied)

    def _hold(self, group: GroupId, name: str, applied: int, digest: str) -> None:
        """A violation is kept in `broken`: raised here, the product would take it for its own."""
        try:
            self.digests.observe(group, name, applied, digest)
        except Violation as violation:
            self.broken = self.broken or violation

    def applied(
        self, group: GroupId, name: str, incarnation: int, batch: list[tuple[Applied, Any]], at: int, digest: str
    ) -> None:
        """A batch was applied: now the state is at index `at`, with the documents of `digest`."""
        self._hold(group, name, at, digest)
        try:
            for entry, result in batch:
                data = entry.data if entry.conf is None else CONF + entry.conf
                shown = CommittedEntry(entry.term, data, repr(result))
                self.committed.apply(group, name, incarnation, entry.index, shown, result)
        except Violation as violation:
            self.broken = self.broken or violation

    # --- what is said -------------------------------------------------------------------------------------------------
    def sent(self, name: str, body: bytes) -> None:
        """A frame of Raft messages leaves a node. Raises Violation."""
        disk = self._machines[name].log_disk
        for group, message in decode_frame(body).messages:
            if message.reject:
                continue
            if message.type == _APPEND_RESP:
                durability.append_ack(group, name, message.index, DurableLog(disk, group).last())
                self._said(name, message.to)
            elif message.type in (_VOTE, _VOTE_RESP):
                vote = name if message.type == _VOTE else message.to
                state = DurableLog(disk, group).hard_state()
                durability.vote_granted(group, name, message.term, vote, (state.term, state.vote))
                self.elections.voted(group, name, message.term, vote)
                self._said(name, message.to)

    def _said(self, name: str, to: str) -> None:
        if name not in self.replaced:
            return
        key, values = PEER_PREFIX + name.encode(), self._machines[to].log_disk.durable.values
        own = self._machines[name].log_disk.durable.values.get(IDENTITY_KEY, b"")
        remembered = decode_record(key, values.get(key, b""), Life)
        self.lives.said(self._trace.now(), name, to, decode_record(IDENTITY_KEY, own, Identity), remembered)

    def watched_read(self, name: str, read: Read) -> Read:
        """`read_leased` of a host, with a check: the index it confirms covers whatever any replica had applied when it
        was asked for. That is stricter than what clients can see, and does not depend on their luck."""

        async def checked(group: GroupId, timeout: float) -> int:
            before = self.committed.last(group)
            index = await read(group, timeout)
            self._confirmed(f"a leased read of {name}", group, before, index)
            return index

        return checked

    def watched_lease(self, name: str, look: Look) -> Look:
        """The same of `leased_index`."""

        def checked(group: GroupId) -> int | None:
            before, index = self.committed.last(group), look(group)
            if index is not None:
                self._confirmed(f"a leased search of {name}", group, before, index)
            return index

        return checked

    def watched_round(self, name: str, begin: Begin) -> Begin:
        """The same of `begin_read`, by which all strong reads begin."""

        def checked(group: GroupId, timeout: float) -> asyncio.Future[int]:
            before = self.committed.last(group)
            future = begin(group, timeout)

            def done(_: asyncio.Future[int]) -> None:
                if not future.cancelled() and future.exception() is None:
                    self._confirmed(f"a strong read of {name}", group, before, future.result())

            future.add_done_callback(done)
            return future

        return checked

    def _confirmed(self, what: str, group: GroupId, before: int, index: int) -> None:
        if index < before:
            self.broken = self.broken or Violation(
                "read freshness", f"{what} confirmed {index} of group {group}; {before} was applied before"
            )

    def write_acknowledged(self, group: GroupId, index: int, voter_sets: list[list[str]]) -> None:
        """A client was told that its write is done: a majority of one of the sets holds it. Raises Violation."""

        def holds(node: str) -> int:
            disk = self._machines[node].log_disk
            return index if node in self.rotten or DurableLog(disk, group).holds(index) else 0

        durability.write_acknowledged(group, index, voter_sets, holds)
        if index not in self.committed.log(group):
            raise Violation("acknowledged means applied", f"write {index} of group {group} was applied by nobody")


def _all_entries(log: GroupLog) -> Iterator[Entry]:
    """A log gives a bounded part of what is on its disk at once."""
    low, end = log.first_index(), log.last_index() + 1
    while low < end:
        page = log.entries(low, end, 1 << 40)
        yield from page
        low += len(page)


def _groups_on(disk: LogDisk) -> list[GroupId]:
    """The groups that have a HardState on a disk."""
    keys = (key for key in disk.durable.order if key.startswith(b"g") and key.endswith(HARD))
    return [group for group, kind, _ in map(parse_key, keys) if kind == HARD]


def _term(raft: Any, index: int) -> int | None:
    term: int | None = raft._s.log.term(index)
    return term


class ObservedMachine:
    """A state machine that shows the observer what it does; fits multiraft's StateMachine."""

    def __init__(self, inner: Any, observer: Observer, group: GroupId, name: str, incarnation: int) -> None:
        self.inner = inner
        self._observer = observer
        self._where = (group, name, incarnation)
        observer.opened(*self._where, inner.applied_index(), inner.digest())

    def apply(self, entries: Sequence[Applied]) -> list[Any]:
        before = self.inner.applied_index()
        results: list[Any] = self.inner.apply(entries)
        fresh = [(entry, result) for entry, result in zip(entries, results, strict=False) if entry.index > before]
        self._observer.applied(*self._where, fresh, self.inner.applied_index(), self.inner.digest())
        return results

    def install_snapshot(self, directory: str) -> None:
        was_damaged = self.inner.damage is not None
        self.inner.install_snapshot(directory)
        self._observer.installed(*self._where, self.inner.applied_index(), was_damaged=was_damaged)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Counts(msgspec.Struct):
    """What a run did, for the summary."""

    virtual_seconds: float = 0.0
    operations: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    unknown: int = 0
    elections: int = 0
    snapshots: int = 0
    repaired: int = 0
    entries: int = 0
    restarts: int = 0
    messages: int = 0
    steps: int = 0
    searches: int = 0
    moves: int = 0
