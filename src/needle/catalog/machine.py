"""Group 0's state machine on disk: the topology, the applied index, its term and configuration, in one SQLite row, and
a row for each collection, so that a change is written as one change however many there are.

Durability order: a batch of entries is one synced transaction (synchronous=FULL: the catalog changes rarely), so
everything applied is durable and a checkpoint has nothing to do. Installing a snapshot is one such transaction too:
after a crash the old or the new state is there. Structurally `multiraft.ports.StateMachine`; it must not know Raft.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import xxhash

from needle.base.compared import Compared
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import CorruptDocuments, CorruptSnapshot, NeedleError, StorageError, UnsupportedFormat
from needle.base.sqlite_uri import sqlite_uri
from needle.base.versions import KNOWN, check_version
from needle.catalog.executed import Executed, execute_once
from needle.catalog.file_state import disk_errors, is_of_content, says_read_only
from needle.routing.topology import CollectionInfo, Topology
from needle.routing.topology_changes import SUM_MASK, bytes_sum, differing, rows_sum

FILE_NAME: Final = "catalog.db"
IMAGE_NAME: Final = "catalog.image"
FORMAT_VERSION: Final = 1
BY_ROWS: Final = 2
"""Of a file whose collections are rows of their own. An image is one piece: of FORMAT_VERSION always."""
ROWS_SINCE: Final = 7
"""The cluster's version from which on files are BY_ROWS: before, a node may go back to the release before, which knows
no rows."""
PASSED_MAX: Final = 64
_Rows = tuple[CollectionInfo, ...]
_ROWS_TABLE: Final = "CREATE TABLE collections (id INTEGER PRIMARY KEY, row BLOB NOT NULL)"
_STATE, _SUM = 1, 2
"""Rows: the catalog, and the xxh3-128 of it."""


class Entry(Protocol):
    """A committed entry (multiraft.ports.Applied)."""

    @property
    def index(self) -> int: ...
    @property
    def term(self) -> int: ...
    @property
    def data(self) -> bytes: ...
    @property
    def conf(self) -> bytes | None: ...


class ImageFile(msgspec.Struct, frozen=True, array_like=True):
    """One file of a snapshot: name, size in bytes, xxh3-128 hex. Same shape as multiraft.ports.SnapshotFile."""

    name: str
    size: int
    checksum: str


class _State(msgspec.Struct, frozen=True):
    """What the row and an image hold. rows: the sum over the collections that are rows of their own, and not in the
    topology here."""

    topology: Topology = Topology()
    index: int = 0
    term: int = 0
    conf: bytes = b""
    format: int = FORMAT_VERSION
    executed: Executed = Executed()
    rows: int = 0


class CatalogMachine:
    """One replica of the catalog. Blocking; apply, export and install are ordered by a lock, `topology` is free."""

    def __init__(self, directory: str, *, knows: int = KNOWN) -> None:
        """Open or create. knows: the version of commands and formats up to which this node can read them. Raises
        DiskFailed, StorageError or UnsupportedFormat."""
        self._knows = knows
        self._path = os.path.join(directory, FILE_NAME)
        self._lock = threading.Lock()
        self._broken: NeedleError | None = None
        self.damage: CorruptDocuments | None = None
        """Why the file is not what was written: then nothing can be applied until a snapshot is installed."""
        self._state = _State()
        self._has_rows = False
        """Whether the file has a row for each collection; else all of them are to be written."""
        self._rows = 0
        """The sum over the collections of `_state`."""
        self._passed: deque[Topology] = deque(maxlen=PASSED_MAX)
        self.compared = Compared()
        """Digests of what is stored: after each batch, and as it was opened or installed, at these entries."""
        with disk_errors(self._path):
            os.makedirs(directory, exist_ok=True)
        try:
            self._open()
        except CorruptDocuments as error:
            self.damage = error

    def _open(self) -> None:
        with disk_errors(self._path):
            self._db = sqlite3.connect(sqlite_uri(self._path), uri=True, check_same_thread=False, isolation_level=None)
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute("CREATE TABLE IF NOT EXISTS catalog (id INTEGER PRIMARY KEY, state BLOB NOT NULL)")
                rows = dict(self._db.execute("SELECT id, state FROM catalog"))
                if says_read_only(self._path):
                    raise CorruptDocuments(
                        f"{self._path} is damaged: by its header it must not be written to", path=self._path
                    )
            except sqlite3.OperationalError as error:
                self._db.close()
                if not is_of_content(error):
                    raise
                raise CorruptDocuments(
                    f"{self._path} is damaged: it has another schema ({error})", path=self._path
                ) from error
            except BaseException:
                self._db.close()
                raise
        whole = rows.keys() <= {_STATE, _SUM} and all(isinstance(value, bytes) for value in rows.values())
        if not whole or (_SUM in rows and (_STATE not in rows or _sum(rows[_STATE]) != rows[_SUM])):
            raise CorruptDocuments(f"{self._path} is damaged: the catalog fails its checksum", path=self._path)
        self._has_rows, self._rows, self._state = False, 0, _State()
        if _STATE in rows:
            stored = self._decode(rows[_STATE], self._path)
            state, found = (stored, False) if stored.format == FORMAT_VERSION else self._with_rows(stored)
            self._state, self._rows = state, rows_sum(state.topology.collections)
            self._has_rows = found and stored.rows == self._rows  # another release may encode others
            # As this release writes it, whoever wrote it.
            self.compared.note(state.index, _digest(state, self._rows, _packed(state, self._rows)))

    def _with_rows(self, state: _State) -> tuple[_State, bool]:
        """With the collections in the topology; and whether each is found by its id, which no sum is over: a row that
        is not would stay when its collection is dropped. Raises CorruptDocuments."""
        with disk_errors(self._path):
            try:
                table = self._db.execute("SELECT type, tbl_name, sql FROM sqlite_master WHERE name = 'collections'")
                if table.fetchall() != [("table", "collections", _ROWS_TABLE)]:
                    raise CorruptDocuments(f"{self._path} is damaged: it has another schema", path=self._path)
                found = self._db.execute("SELECT id, row FROM collections").fetchall()
                if bytes_sum(row for _, row in found) != state.rows:
                    raise CorruptDocuments(f"{self._path} is damaged: its collections fail their sum", path=self._path)
                infos = [msgspec.msgpack.decode(row, type=CollectionInfo) for _, row in found]
            except (sqlite3.OperationalError, TypeError, *DECODE_ERRORS) as error:
                if isinstance(error, sqlite3.OperationalError) and not is_of_content(error):
                    self._db.close()
                    raise
                raise CorruptDocuments(
                    f"{self._path} is damaged: it does not hold a catalog ({error})", path=self._path
                ) from error
        collections = tuple(sorted(infos, key=attrgetter("spec.name")))
        topology = msgspec.structs.replace(state.topology, collections=collections)
        by_id = [info.id for info in infos] == [id_ for id_, _ in found]
        return msgspec.structs.replace(state, topology=topology, format=FORMAT_VERSION, rows=0), by_id

    # --- what the rest of the node reads -----------------------------------------------------------------------------
    @property
    def topology(self) -> Topology:
        """As of the last applied entry."""
        return self._state.topology

    def passed(self, version: int) -> Iterator[Topology]:
        """Those that were the newest for the time of one entry, up to a version, oldest first, each once; the last
        PASSED_MAX at most."""
        while self._passed and self._passed[0].version <= version:
            yield self._passed.popleft()

    def digest(self) -> str:
        """Equal at equal applied indexes on every replica: 32 hex digits over the topology and what was executed."""
        state = self._state
        return xxhash.xxh3_128_hexdigest(msgspec.msgpack.encode((state.topology, state.executed)))

    # --- the log -----------------------------------------------------------------------------------------------------
    def applied_index(self) -> int:
        return self._state.index

    def applied_term(self) -> int:
        return self._state.term

    def conf(self) -> bytes:
        """The encoded configuration in force at applied_index."""
        return self._state.conf

    def apply(self, entries: Sequence[Entry]) -> list[Any]:
        """Apply consecutive entries in one transaction. One result each: a WriteResult, a NeedleError instance, or
        None for an entry without a command or applied before. Raises DiskFull with nothing applied: it may be
        repeated."""
        with self._exclusive():
            topology, index, term, conf = msgspec.structs.astuple(self._state)[:4]
            executed = self._state.executed
            results: list[Any] = []
            passed: list[Topology] = []
            for entry in entries:
                result: Any = None
                if entry.index > index:
                    if entry.data:
                        # A command that cannot be read stops the replica: skipping it would make replicas differ.
                        before = topology
                        topology, executed, result = execute_once(topology, executed, entry.index, entry.data)
                        passed += [topology] if topology is not before else []
                    index, term = entry.index, entry.term
                    conf = conf if entry.conf is None else entry.conf
                results.append(result)
            check_version(topology.cluster_version, self._knows)  # what follows may mean what this node cannot read
            self._write(_State(topology, index, term, conf, executed=executed))
            self._passed.extend(passed)
            return results

    def begin_anew(self, topology: Topology, index: int, term: int, conf: bytes) -> None:
        """Have this topology, as of an entry that no log has: of a cluster that is recovered."""
        with self._exclusive():
            self._write(_State(topology, index, term, conf, executed=self._state.executed))

    def checkpoint(self) -> int:
        """Everything applied is durable already; the applied index."""
        return self._state.index

    def export_snapshot(self, directory: str) -> tuple[int, int, bytes, list[ImageFile]]:
        """Write an image into `directory`: (index, term, conf, files)."""
        state = self._state
        data = msgspec.msgpack.encode(state)
        path = os.path.join(directory, IMAGE_NAME)
        with disk_errors(path), open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        files = [ImageFile(IMAGE_NAME, len(data), xxhash.xxh3_128_hexdigest(data))]
        return state.index, state.term, state.conf, files

    def install_snapshot(self, directory: str) -> None:
        """Replace everything by the image in `directory`, atomically; may be repeated. A damaged one is damaged until
        that is done: in between it is empty, and must not be taken for whole."""
        state = self._read_image(directory)
        self._has_rows = False  # whatever is wrong with them
        if self.damage is None:
            with suppress(CorruptDocuments), self._exclusive(installing=True):
                self._write(state)
                return
        with self._lock:  # damaged, maybe so that only a write shows it
            self._db.close()
            for suffix in ("", "-wal", "-shm"):
                Path(self._path + suffix).unlink(missing_ok=True)
            self._open()
        with self._exclusive(installing=True):
            self._write(state)
            self.damage = None

    def check_snapshot(self, directory: str) -> None:
        """Raises CorruptSnapshot if the image in `directory` cannot be installed."""
        self._read_image(directory)

    def _read_image(self, directory: str) -> _State:
        path = os.path.join(directory, IMAGE_NAME)
        with disk_errors(path):
            data = Path(path).read_bytes()
        try:
            return self._decode(data, path, (FORMAT_VERSION,))
        except (UnsupportedFormat, CorruptDocuments) as error:
            raise CorruptSnapshot(f"{error.message}. Nothing was installed; the leader sends it again") from error

    def _decode(self, data: bytes, path: str, formats: Collection[int] = (FORMAT_VERSION, BY_ROWS)) -> _State:
        state = _decode(data, path, formats)
        check_version(state.topology.cluster_version, self._knows)
        return state

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._broken = self._broken or StorageError(f"{self._path} is closed")
            self._db.close()

    def _write(self, state: _State) -> None:
        now = state.topology.collections
        gone, came = differing(self._state.topology.collections, now)
        rows = (self._rows - rows_sum(gone) + rows_sum(came)) & SUM_MASK
        by_rows, packed = state.topology.cluster_version >= ROWS_SINCE, _packed(state, rows)
        data = packed if by_rows else msgspec.msgpack.encode(state)
        with disk_errors(self._path), self._transaction():
            if by_rows:
                self._write_rows(now, gone, came)
            values = (_STATE, data, _SUM, _sum(data))
            self._db.execute("INSERT OR REPLACE INTO catalog VALUES (?, ?), (?, ?)", values)
        self._state, self._rows, self._has_rows = state, rows, by_rows
        self.compared.note(state.index, _digest(state, rows, packed))

    def _write_rows(self, now: _Rows, gone: _Rows, came: _Rows) -> None:
        if not self._has_rows:
            self._db.execute("DROP TABLE IF EXISTS collections")
            self._db.execute(_ROWS_TABLE)
            gone, came = (), now
        self._db.executemany("DELETE FROM collections WHERE id = ?", [(info.id,) for info in gone])
        packed = [(info.id, msgspec.msgpack.encode(info)) for info in came]
        self._db.executemany("INSERT INTO collections VALUES (?, ?)", packed)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _exclusive(self, *, installing: bool = False) -> Iterator[None]:
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if self.damage is not None and not installing:
                raise self.damage
            try:
                yield
            except CorruptDocuments as error:
                self.damage = error
                raise
            except StorageError as error:
                self._broken = error  # what is on disk is not known any more: open it again
                raise


@cache
def form() -> str:
    """Of what digests are made of: releases that write another form of the catalog have other digests of the same one.
    Takes 30 ms the first time."""
    return xxhash.xxh3_64_hexdigest(msgspec.json.encode(msgspec.json.schema(_State), order="deterministic"))


def _packed(state: _State, rows: int) -> bytes:
    """As it is stored beside the rows of its collections, whose sum is `rows`."""
    topology = msgspec.structs.replace(state.topology, collections=())
    return msgspec.msgpack.encode(msgspec.structs.replace(state, topology=topology, format=BY_ROWS, rows=rows))


def _digest(state: _State, rows: int, packed: bytes) -> str:
    """What replicas compare, of a state, the sum over its collections, and both as `_packed`. Releases put a refusal in
    other words, and that makes no difference."""
    answers = state.executed.answers
    if any(answer.message for answer in answers.values()):
        told = {
            nonce: msgspec.structs.replace(answer, message="") if answer.message else answer
            for nonce, answer in answers.items()
        }
        executed = msgspec.structs.replace(state.executed, answers=told)
        packed = _packed(msgspec.structs.replace(state, executed=executed), rows)
    return _sum(packed).hex()


def _sum(data: bytes) -> bytes:
    return xxhash.xxh3_128_digest(data)


def _decode(data: bytes, path: str, formats: Collection[int]) -> _State:
    try:
        state = msgspec.msgpack.decode(data, type=_State)
    except DECODE_ERRORS as error:
        raise CorruptDocuments(f"{path} is damaged: it does not hold a catalog ({error})", path=path) from None
    if state.format not in formats:
        known = " and ".join(map(str, formats))
        raise UnsupportedFormat(f"{path} has format {state.format}; this release reads {known}", path=path)
    return state
