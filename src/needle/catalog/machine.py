"""Group 0's state machine on disk: the topology, the applied index, its term and configuration, in one SQLite row.

Durability order: a batch of entries is one synced transaction (synchronous=FULL: the catalog changes rarely), so
everything applied is durable and a checkpoint has nothing to do. Installing a snapshot is one such transaction too:
after a crash the old or the new state is there. Structurally `multiraft.ports.StateMachine`; it must not know Raft.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import xxhash

from needle.base.compared import Compared
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import CorruptDocuments, CorruptSnapshot, NeedleError, StorageError, UnsupportedFormat
from needle.base.file_errors import os_failure, sqlite_failure
from needle.base.sqlite_uri import sqlite_uri
from needle.base.versions import KNOWN, check_version
from needle.catalog.executed import Executed, execute_once
from needle.routing.topology import Topology

FILE_NAME: Final = "catalog.db"
IMAGE_NAME: Final = "catalog.image"
FORMAT_VERSION: Final = 1
PROBE_BYTES: Final = 1 << 20
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
    """What the row and an image hold."""

    topology: Topology = Topology()
    index: int = 0
    term: int = 0
    conf: bytes = b""
    format: int = FORMAT_VERSION
    executed: Executed = Executed()


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
        self.compared = Compared()
        """Digests of what is stored: after each batch, and as it was opened or installed, at these entries."""
        with _disk_errors(self._path):
            os.makedirs(directory, exist_ok=True)
        try:
            self._open()
        except CorruptDocuments as error:
            self.damage = error

    def _open(self) -> None:
        with _disk_errors(self._path):
            self._db = sqlite3.connect(sqlite_uri(self._path), uri=True, check_same_thread=False, isolation_level=None)
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute("CREATE TABLE IF NOT EXISTS catalog (id INTEGER PRIMARY KEY, state BLOB NOT NULL)")
                rows = dict(self._db.execute("SELECT id, state FROM catalog"))
                if _says_read_only(self._path):
                    raise CorruptDocuments(
                        f"{self._path} is damaged: by its header it must not be written to", path=self._path
                    )
            except sqlite3.OperationalError as error:
                self._db.close()
                # Without a code it is Python's own: a text of a damaged page is no UTF-8.
                if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) != sqlite3.SQLITE_ERROR:
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
        self._state = self._decode(rows[_STATE], self._path) if _STATE in rows else _State()
        if _STATE in rows:  # as this release writes it, whoever wrote it
            self.compared.note(self._state.index, _digest(self._state, msgspec.msgpack.encode(self._state)))

    # --- what the rest of the node reads -----------------------------------------------------------------------------
    @property
    def topology(self) -> Topology:
        """As of the last applied entry."""
        return self._state.topology

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
            for entry in entries:
                result: Any = None
                if entry.index > index:
                    if entry.data:
                        # A command that cannot be read stops the replica: skipping it would make replicas differ.
                        topology, executed, result = execute_once(topology, executed, entry.index, entry.data)
                    index, term = entry.index, entry.term
                    conf = conf if entry.conf is None else entry.conf
                results.append(result)
            check_version(topology.cluster_version, self._knows)  # what follows may mean what this node cannot read
            self._write(_State(topology, index, term, conf, executed=executed))
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
        with _disk_errors(path), open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        files = [ImageFile(IMAGE_NAME, len(data), xxhash.xxh3_128_hexdigest(data))]
        return state.index, state.term, state.conf, files

    def install_snapshot(self, directory: str) -> None:
        """Replace everything by the image in `directory`, atomically; may be repeated. A damaged one is damaged until
        that is done: in between it is empty, and must not be taken for whole."""
        state = self._read_image(directory)
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
        with _disk_errors(path):
            data = Path(path).read_bytes()
        try:
            return self._decode(data, path)
        except (UnsupportedFormat, CorruptDocuments) as error:
            raise CorruptSnapshot(f"{error.message}. Nothing was installed; the leader sends it again") from error

    def _decode(self, data: bytes, path: str) -> _State:
        state = _decode(data, path)
        check_version(state.topology.cluster_version, self._knows)
        return state

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._broken = self._broken or StorageError(f"{self._path} is closed")
            self._db.close()

    def _write(self, state: _State) -> None:
        with _disk_errors(self._path):
            data = msgspec.msgpack.encode(state)
            found = _sum(data)
            self._db.execute("INSERT OR REPLACE INTO catalog VALUES (?, ?), (?, ?)", (_STATE, data, _SUM, found))
        self._state = state
        self.compared.note(state.index, _digest(state, data))

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


def _says_read_only(path: str) -> bool:
    """Whether the header has a write version that SQLite does not know: it reads such a file, and writes nothing."""
    with open(path, "rb") as file:
        header = file.read(20)
    return len(header) == 20 and header[18] not in (1, 2)


def _digest(state: _State, data: bytes) -> str:
    """What replicas compare, of a state and its bytes. Releases put a refusal in other words, and that makes no
    difference."""
    answers = state.executed.answers
    if any(answer.message for answer in answers.values()):
        told = {
            nonce: msgspec.structs.replace(answer, message="") if answer.message else answer
            for nonce, answer in answers.items()
        }
        executed = msgspec.structs.replace(state.executed, answers=told)
        data = msgspec.msgpack.encode(msgspec.structs.replace(state, executed=executed))
    return _sum(data).hex()


def _sum(data: bytes) -> bytes:
    return xxhash.xxh3_128_digest(data)


def _decode(data: bytes, path: str) -> _State:
    try:
        state = msgspec.msgpack.decode(data, type=_State)
    except DECODE_ERRORS as error:
        raise CorruptDocuments(f"{path} is damaged: it does not hold a catalog ({error})", path=path) from None
    if state.format != FORMAT_VERSION:
        raise UnsupportedFormat(f"{path} has format {state.format}; this release reads {FORMAT_VERSION}", path=path)
    return state


@contextmanager
def _disk_errors(path: str) -> Iterator[None]:
    """SQLite's and the system's errors as ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise sqlite_failure(error, path, _refusal(path)) from error
    except UnicodeDecodeError as error:  # SQLite's message quotes a damaged schema, which is no text any more
        raise CorruptDocuments(f"{path} is damaged: it has another schema ({error})", path=path) from error
    except OSError as error:
        raise os_failure(error, path) from error


def _refusal(path: str) -> int:
    """Why the system refuses to write beside this file, 0 if it does not: Python's sqlite3 does not say it."""
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(path)) as file:
            file.write(bytes(PROBE_BYTES))
    except OSError as error:
        return error.errno or 0
    return 0
