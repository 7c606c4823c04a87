"""What a bulk load is made for, and the files that its workers leave: each step's result gets its name last, so whoever
begins again goes on behind what is whole. Plain values and paths; workers get them as they are."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import xxhash

from needle.base.config import Limits
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import invalid
from needle.base.model import CollectionSpec
from needle.cli.bulk.pieces import Piece
from needle.protocol.upkeep_commands import LoadedFile
from needle.routing.shard_map import ShardMap
from needle.shard.bulk.rows_file import SUM_BYTES
from needle.shard.plan import SEAL_ROWS_MIN

T = TypeVar("T")
MARK: Final = "needle-bulk-load"
"""The file that says which load a directory is for, and that it is for one."""
WRITTEN: Final = f"{MARK}.tmp"
LOCK: Final = f"{MARK}.lock"
"""Held by the command that works in a directory: two of them would delete each other's files."""
PIECES, SHARDS = "pieces", "shards"
RESULT: Final = "result"
"""What was made, as JSON, behind its checksum."""
MAKING: Final = ".tmp"


class ShardJob(msgspec.Struct, frozen=True):
    """What one shard said (bulk_calls.BulkBeginAnswer)."""

    shard: int
    collection_id: int
    generation: int
    owned: int
    rows_max: int


class Job(msgspec.Struct, frozen=True):
    """All that a worker has to know. stored: what the collection is called in shards. indexes: whether index files are
    built here. scanned_max: fewer rows than that get none, as anywhere. sparse: the fields that are sparse vectors."""

    stored: str
    spec: CollectionSpec
    map: ShardMap
    shards: list[ShardJob]
    pieces: list[Piece]
    indexes: bool
    limits: Limits = Limits()
    scanned_max: int = SEAL_ROWS_MIN
    sparse: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Of what the files that are made depend on."""
        said = (self.stored, self.spec, self.map, self.shards, self.pieces, self.indexes, self.scanned_max, self.sparse)
        return _fingerprint(said)

    def division(self) -> str:
        """The same, of what the source's pieces are divided into: also before there is a collection. By other limits
        other documents are refused."""
        spec, bounds = self.spec, (self.limits.id_bytes_max, self.limits.metadata_bytes_max)
        return _fingerprint((spec.dimensions, spec.metric, spec.dtype, self.map, self.pieces, self.sparse, bounds))


def _fingerprint(said: tuple[object, ...]) -> str:
    return hashlib.sha256(msgspec.msgpack.encode(said)).hexdigest()[:32]


class ShardFiles(msgspec.Struct, frozen=True):
    """What was made for a shard. names: of the files in its directory, rows first."""

    shard: int
    rows: int
    size: int
    checksum: str
    indexes: list[LoadedFile]
    names: list[str]


class Work:
    """The directory of one load. It deletes only the parts that it made, where its mark says that it did."""

    def __init__(self, directory: str) -> None:
        self.root = Path(directory)
        self._mark = self.root / MARK

    def begin(self, job: Job) -> bool:
        """Have it be for this job: what is there of another one goes, and of pieces that are divided alike only what
        was made of them. Whether something of this one is there. Raises InvalidArgument for a directory that has other
        files."""
        self.root.mkdir(parents=True, exist_ok=True)
        there = set(os.listdir(self.root))
        if MARK not in there and there - {WRITTEN, LOCK}:
            raise invalid(
                "work", str(self.root), f"an empty directory, or one of a bulk load, with its file {MARK}: what is in "
                "this one is not of a bulk load, and stays",
            )  # fmt: skip
        marked = self._mark.read_text().split() if MARK in there else []
        mark = [job.division(), job.fingerprint()]
        if marked != mark:
            self._delete_parts(*((SHARDS,) if marked[:1] == mark[:1] else (PIECES, SHARDS)))
            (self.root / WRITTEN).write_text(" ".join(mark))
            (self.root / WRITTEN).replace(self._mark)
        for part in (PIECES, SHARDS):
            for left in (self.root / part).glob(f"*{MAKING}"):  # by workers that were killed
                shutil.rmtree(left, ignore_errors=True)
        return marked == mark

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While this process works in it. Raises InvalidArgument while another one does."""
        self.root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock(handle)
            try:
                yield
            finally:
                (self.root / LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # it has files of the load, or of others
                    self.root.rmdir()
        finally:
            os.close(handle)

    def _lock(self, handle: int) -> None:
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(self.root / LOCK)):
                return
        raise invalid(
            "work", str(self.root), "a directory that no other bulk load works in: wait until that one is over, or "
            "name another one by --work",
        )  # fmt: skip

    def piece(self, number: int) -> Path:
        """The directory of what one piece gave."""
        return self.root / PIECES / f"{number:06d}"

    def shard(self, number: int) -> Path:
        """The directory of one shard's files."""
        return self.root / SHARDS / f"{number:04d}"

    def end(self) -> None:
        """It is not needed any more. What others put there stays, and then the directory does."""
        if not self._mark.exists():
            return
        self._delete_parts(PIECES, SHARDS)
        self._mark.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.root.rmdir()

    def _delete_parts(self, *parts: str) -> None:
        for part in parts:
            shutil.rmtree(self.root / part, ignore_errors=True)


def once(directory: Path, kind: type[T], make: Callable[[Path], T], sound: Callable[[Path, T], bool]) -> T:
    """What `make` leaves in a directory, and its result; made already and sound, only the result."""
    before = result_of(directory, kind)
    if before is not None and sound(directory, before):
        return before
    shutil.rmtree(directory, ignore_errors=True)
    # Its own: a worker that was thought lost, and is not, makes the same beside it.
    making = directory.with_name(f"{directory.name}.{os.getpid()}-{secrets.token_hex(4)}{MAKING}")
    making.mkdir(parents=True)
    try:
        result = make(making)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    said = msgspec.json.encode(result)
    (making / RESULT).write_bytes(xxhash.xxh3_128_digest(said) + said)
    for name in os.listdir(making):
        _sync(making / name)
    try:
        making.replace(directory)
    except OSError:
        there = result_of(directory, kind)
        if there != result or not sound(directory, there):
            raise
        shutil.rmtree(making, ignore_errors=True)
    _sync(directory.parent)
    return result


def result_of(directory: Path, kind: type[T]) -> T | None:
    """Of what was made in a directory; None if it was not, or its result is not what was written: of a number of a
    shard that changed, the shard's documents of this piece would be missing, and nobody would say so."""
    try:
        written = (directory / RESULT).read_bytes()
        said = written[SUM_BYTES:]
        return msgspec.json.decode(said, type=kind) if xxhash.xxh3_128_digest(said) == written[:SUM_BYTES] else None
    except (OSError, *DECODE_ERRORS):
        return None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
