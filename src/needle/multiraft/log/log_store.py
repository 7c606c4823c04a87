"""The durable Raft logs of all groups of a node in one ordered key-value store.

Durability order: `write` puts everything of one loop turn, for all groups, into one transaction and one sync; nothing
that depends on it (votes, acknowledgements, the leader's own count) may happen before it returns.
Invariant: after `write` returns, a crash loses none of it; before, all or nothing of it is there. On opening every
record is read and its checksum verified. It must not know Raft's rules, nor which store is below.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from needle.base.errors import CorruptLog, UnsupportedFormat
from needle.base.ids import GroupId, NodeId, group_name
from needle.multiraft.failpoints import Failpoint, no_failpoint
from needle.multiraft.log.group_log import Damage, GroupLog, LogWrite
from needle.multiraft.log.log_records import (
    BOOTSTRAP,
    ENTRY,
    FORMAT_VERSION,
    HARD,
    IDENTITY_KEY,
    LOST,
    META_KEY,
    PEER_PREFIX,
    PENDING,
    REPAIR,
    START,
    BootstrapRecord,
    Identity,
    Life,
    LostRecord,
    MetaRecord,
    PendingInstall,
    RepairRecord,
    StartRecord,
    corrupt,
    decode_entry,
    decode_record,
    encode_entry,
    encode_record,
    entry_key,
    parse_key,
    record_key,
)
from needle.multiraft.log.log_sizes import LogSizes
from needle.multiraft.ports import KeyValueStore, KeyValueTxn
from needle.raft.messages import Entry, EntryKind, HardState
from needle.raft.plausible import TERM_ON_DISK_MAX

_log = logging.getLogger("needle.multiraft")
SCAN_BYTES = 4 << 20
GARBAGE_PER_WRITE = 512
REMEDY = "Remedy: remove the node from the cluster, delete its data directory and add it again under a new node id"


class LivesWrite(msgspec.Struct, frozen=True, kw_only=True):
    """What a transaction says of nodes instead of groups (lives.py). identity: this node's own. again: that which the
    store has is written once more, to see whether the disk answers."""

    peers: Mapping[NodeId, Life] = {}
    identity: Identity | None = None
    again: bool = False

    @property
    def entries(self) -> Sequence[Entry]:
        """None: as LogWrite has them."""
        return ()


class LogStore:
    """All group logs of a node. Raises UnsupportedFormat if the store belongs to another node, cluster or format,
    and CorruptLog if the record that says so is corrupt. Corrupt entries are kept as `GroupLog.damage`."""

    def __init__(
        self,
        store: KeyValueStore,
        *,
        node_id: NodeId,
        cluster_id: str,
        draw: Callable[[], int],
        cache_bytes_max: int = 4 << 20,
        failpoint: Failpoint = no_failpoint,
    ) -> None:
        """draw: 63 random bits, different each time."""
        self._store = store
        self._cache_bytes_max = cache_bytes_max
        self._failpoint = failpoint
        self._logs: dict[GroupId, GroupLog] = {}
        self._garbage: dict[GroupId, GroupLog] = {}
        self.commits = 0
        self._check_meta(MetaRecord(FORMAT_VERSION, node_id, cluster_id))
        self._scan()
        self.peers = self._load_peers()
        """The last life of each other node that this one knows of."""
        self.identity = self._start(draw)
        """Which directory this is, and its starts; the present one is durable."""

    def _check_meta(self, mine: MetaRecord) -> None:
        value = self._store.get(META_KEY)
        if value is None:
            if self._store.scan(b"", b"\xff", 1):
                raise CorruptLog("the record that names this Raft log's node is missing, but the log is not empty")
            self._store.commit(lambda txn: txn.put(META_KEY, encode_record(META_KEY, mine)), True)
            return
        found = decode_record(META_KEY, value, MetaRecord)
        if found is None:
            raise CorruptLog("the record that names this Raft log's node fails its checksum")
        for what in ("format_version", "cluster_id", "node_id"):
            there, here = getattr(found, what), getattr(mine, what)
            if there != here:
                raise UnsupportedFormat(f"this Raft log was written with {what} {there!r}; this node has {here!r}")

    def _start(self, draw: Callable[[], int]) -> Identity:
        value = self._store.get(IDENTITY_KEY)
        if value is None:
            identity = Identity(draw(), ((1, draw()),))
        else:
            found = decode_record(IDENTITY_KEY, value, Identity)
            if found is None:
                raise CorruptLog(f"the record that tells this data directory from another one is damaged. {REMEDY}")
            identity = found.started(draw())
        self._store.commit(lambda txn: txn.put(IDENTITY_KEY, encode_record(IDENTITY_KEY, identity)), True)
        return identity

    def _load_peers(self) -> dict[NodeId, Life]:
        found: dict[NodeId, Life] = {}
        for key, value in self._store.scan(PEER_PREFIX, META_KEY, 1 << 30):
            life = decode_record(key, value, Life)
            if life is None:
                _log.warning("what was known of node %r is damaged, and forgotten", key[1:])
            else:
                found[key[1:].decode()] = life
        return found

    def groups(self) -> list[GroupId]:
        """Every group with records, sorted."""
        return sorted(group for group, log in self._logs.items() if log.hard_state is not None or log.damage)

    def group(self, group: GroupId) -> GroupLog:
        """The log of a group; an empty one if it is new."""
        log = self._logs.get(group)
        if log is None:
            log = self._logs[group] = GroupLog(self._store, group, self._cache_bytes_max)
        return log

    def standing(self, group: GroupId) -> tuple[int, int] | None:
        """Term and last index of a group's log that is not open; with damage, the term in which its repair begins. None
        if there is none."""
        log = self._logs.get(group)
        if log is None or log.hard_state is None:
            return None
        return (log.hard_state.term + 1, 0) if log.damage is not None else (log.hard_state.term, log.last_index())

    # --- writing ----------------------------------------------------------------------------------------------------
    def write(self, writes: Sequence[LogWrite | LivesWrite]) -> None:
        """Make the writes durable in one transaction. Blocking, from any thread; call `note` afterwards on the event
        loop. Raises DiskFailed: then nothing may be acknowledged, ever again."""
        self._failpoint("log.before_commit")
        waiting = list(self._garbage.values())  # a copy: `note` of a group that is opened meanwhile may change it
        garbage = [(log, log.garbage_from, log.first_index()) for log in waiting]

        def fill(txn: KeyValueTxn) -> None:
            for write in writes:
                if isinstance(write, LivesWrite):
                    _fill_lives(txn, msgspec.structs.replace(write, identity=self.identity) if write.again else write)
                else:
                    _fill(txn, write)
            for log, low, high in garbage:
                high = min(high, low + GARBAGE_PER_WRITE)
                txn.delete_range(entry_key(log.group, low), entry_key(log.group, high))
            self._failpoint("log.inside_commit")

        self._store.commit(fill, True)
        self.commits += 1
        for log, low, high in garbage:
            log.garbage_from = min(high, low + GARBAGE_PER_WRITE)
        self._failpoint("log.after_commit")

    def note(self, writes: Iterable[LogWrite | LivesWrite]) -> None:
        """The writes are durable: show them in the group logs."""
        for write in writes:
            if isinstance(write, LivesWrite):
                self.peers = {**self.peers, **write.peers}
                self.identity = write.identity or self.identity
                continue
            write.log.note(write)
            if write.reset is not None:
                write.log.garbage_from = write.log.first_index()
            if write.compact or write.reset:
                self._garbage[write.log.group] = write.log
        for group in [group for group, log in self._garbage.items() if log.garbage_from >= log.first_index()]:
            del self._garbage[group]

    def bytes_used(self) -> int:
        """Bytes that all logs take on the disk."""
        return self._store.bytes_used()

    def close(self) -> None:
        """Close the store below."""
        self._store.close()

    # --- opening ----------------------------------------------------------------------------------------------------
    def _scan(self) -> None:
        found: dict[GroupId, _Scan] = {}
        start, end = b"g", b"h"
        while pairs := self._store.scan(start, end, SCAN_BYTES):
            for key, value in pairs:
                group, kind, index = parse_key(key)
                scan = found.setdefault(group, _Scan(self.group(group)))
                if kind == ENTRY:
                    scan.entry(key, value, index)
                else:
                    scan.record(key, value, kind)
            start = pairs[-1][0] + b"\x00"
        for scan in found.values():
            scan.finish()
            if scan.log.garbage_from and scan.log.garbage_from < scan.log.first_index():
                self._garbage[scan.log.group] = scan.log


def _fill_lives(txn: KeyValueTxn, write: LivesWrite) -> None:
    for node, life in write.peers.items():
        key = PEER_PREFIX + node.encode()
        txn.put(key, encode_record(key, life))
    if write.identity is not None:
        txn.put(IDENTITY_KEY, encode_record(IDENTITY_KEY, write.identity))


def _fill(txn: KeyValueTxn, write: LogWrite) -> None:
    log, group = write.log, write.log.group
    start = write.reset or write.compact
    if write.reset is not None:
        txn.delete_range(entry_key(group, 0), log.range_end())
    if start is not None:
        key = record_key(group, START)
        txn.put(key, encode_record(key, start))
    if write.truncate_from:
        txn.delete_range(entry_key(group, write.truncate_from), log.range_end())
    if write.entries:
        first = write.entries[0].index
        if write.reset is None and first <= log.last_index():
            txn.delete_range(entry_key(group, first), log.range_end())
        for entry in write.entries:
            key = entry_key(group, entry.index)
            txn.put(key, encode_entry(key, entry))
    for kind, record in (
        (HARD, write.hard_state),
        (BOOTSTRAP, write.bootstrap),
        (PENDING, write.pending),
        (REPAIR, write.repair),
        (LOST, write.lost),
    ):
        key = record_key(group, kind)
        if record is False:
            txn.delete(key)
        elif record is not None and record is not True:
            txn.put(key, encode_record(key, record))


class _Scan:
    """What opening learns about one group, record by record in key order: c, e..., h, l, p, r, s."""

    def __init__(self, log: GroupLog) -> None:
        self.log = log
        self._bad: list[CorruptLog] = []
        self._bad_indexes: list[int] = []
        self._good: list[tuple[int, int]] = []  # runs [first, last] of intact entries
        self._sizes: list[LogSizes] = []  # of each run
        self._conf_changes: list[int] = []
        self._last_seen = 0
        self._records: dict[bytes, bool] = {}

    def entry(self, key: bytes, value: bytes, index: int) -> None:
        self._last_seen = index
        try:
            entry = decode_entry(key, value, self.log.group, index)
        except CorruptLog as error:
            self._bad.append(error)
            self._bad_indexes.append(index)
            return
        if self._good and self._good[-1][1] == index - 1:
            self._good[-1] = (self._good[-1][0], index)
        else:
            self._good.append((index, index))
            self._sizes.append(LogSizes(index - 1))
        self._sizes[-1].append((len(entry.data),))
        if entry.kind == EntryKind.CONF_CHANGE:
            self._conf_changes.append(index)

    def record(self, key: bytes, value: bytes, kind: bytes) -> None:
        log = self.log
        found: object
        if kind == HARD:
            found = log.hard_state = decode_record(key, value, HardState)
        elif kind == BOOTSTRAP:
            if (found := decode_record(key, value, BootstrapRecord)) is not None:
                log.founded(found)
        elif kind == PENDING:
            found = log.pending = decode_record(key, value, PendingInstall)
        elif kind == REPAIR:
            found = log.repair = decode_record(key, value, RepairRecord)
        elif kind == LOST:
            found = log.lost = decode_record(key, value, LostRecord)
        else:
            found = start = decode_record(key, value, StartRecord)
            log.start = start or log.start
        self._records[kind] = found is not None

    def finish(self) -> None:
        """Decide what is intact. Raises CorruptLog for a record without which the node must not speak."""
        log = self.log
        if not self._records.get(HARD, False):
            what = "fails its checksum" if HARD in self._records else "is missing"
            error = corrupt(log.group, HARD, 0, what)
            raise CorruptLog(
                f"{error.message}: its term and vote are unknown, so this node could vote twice. {REMEDY}",
                **error.details,
            )
        if log.hard_state is not None and log.hard_state.term > TERM_ON_DISK_MAX:
            raise CorruptLog(
                f"Raft log of {group_name(log.group)}: its term {log.hard_state.term} is too high for another "
                "election, and none that elections came to. Remedy: stop every node of the cluster, run `needle repair "
                "term` on each data directory, start them again",
                group=log.group,
                term=log.hard_state.term,
            )
        for kind in (BOOTSTRAP, LOST, PENDING, REPAIR):
            if not self._records.get(kind, True):
                error = corrupt(log.group, kind, 0)
                raise CorruptLog(f"{error.message}. {REMEDY}", **error.details)
        start_lost = not self._records.get(START, True)
        self._finish_entries(start_lost)

    def _finish_entries(self, start_lost: bool) -> None:
        log, start = self.log, self.log.start.index
        if self._good or self._bad_indexes:
            log.garbage_from = min([run[0] for run in self._good[:1]] + self._bad_indexes[:1])
        else:
            log.garbage_from = start + 1
        runs = [(max(first, start + 1), last) for first, last in self._good if last > start]
        bad = [index for index in self._bad_indexes if index > start]
        expected = start + 1
        for first, last in runs:
            if first > expected:
                bad.extend((expected, first - 1))
            expected = last + 1
        if start_lost:
            bad.extend((1, max(1, self._last_seen)))
            self._bad.insert(0, corrupt(log.group, START, 0))
        sizes = [found for (_, last), found in zip(self._good, self._sizes, strict=True) if last > start]
        if runs and runs[0][0] == start + 1 and not start_lost:
            log.shown(runs[0][1], sizes[0], self._conf_changes)
        else:
            log.shown(start)
        promised = log.hard_state.commit if log.hard_state is not None else 0
        if not bad and promised > log.last_index():
            bad.extend((log.last_index() + 1, promised))
        if bad:
            first_bad, last_bad = min(bad), max(bad)
            reason = self._bad[0].message if self._bad else corrupt(log.group, ENTRY, first_bad, "is missing").message
            in_tail = not any(run[0] > first_bad for run in runs) and not start_lost
            log.damage = Damage(first_bad, last_bad, self._last_seen, in_tail, reason)
