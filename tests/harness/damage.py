"""What may happen to a stopped node's files: bits that flip, tails that are torn, files that are gone.

Only formats that docs/data-on-disk.md and wal_records.py describe are known here.
"""

from __future__ import annotations

import random
import shutil
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from needle.multiraft.log.wal_records import (
    RECORD_MAGIC,
    SEGMENT_HEADER,
    decode_head,
    decode_segment_header,
    encode_record,
    record_size,
)
from needle.shard.documents.sqlite_file import connect
from needle.shard.segments.builder import TEMPORARY


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def flip_bits(path: Path, offset: int) -> None:
    """Flip two bits that are some bytes apart: more than the log can put right by itself."""
    flip_bit(path, offset)
    flip_bit(path, offset + 2, bit=5)


def cut(path: Path, size: int) -> None:
    """Keep the first `size` bytes."""
    with path.open("r+b") as file:
        file.truncate(size)


def log_segment(data_dir: Path) -> Path:
    """The newest segment of the Raft log."""
    return max((data_dir / "log").glob("*.wal"))


def find_in_log(data_dir: Path, text: bytes) -> tuple[Path, int]:
    """Where `text` stands last in the newest log segment that has it."""
    for path in sorted((data_dir / "log").glob("*.wal"), reverse=True):
        at = path.read_bytes().rfind(text)
        if at >= 0:
            return path, at
    raise AssertionError(f"{text!r} is not in the log of {data_dir}")


def record_before(path: Path, offset: int) -> int:
    """Where the header of the record around `offset` stands."""
    return path.read_bytes().rfind(RECORD_MAGIC, 0, offset)


def records(path: Path) -> tuple[int, list[tuple[int, int]]]:
    """A segment's salt, and (offset, sequence number) of its records."""
    data = path.read_bytes()
    salt = decode_segment_header(data, int(path.stem))
    assert salt is not None, f"{path} is no log segment"
    found, at = [], SEGMENT_HEADER.size
    while (head := decode_head(data, at, salt)) is not None:
        found.append((at, head.sequence))
        at += record_size(head.length)
    return salt, [*found, (at, 0)]


def tear_tail(data_dir: Path) -> None:
    """Leave the first half of a commit that never returned behind the last one, as a power loss does."""
    path = log_segment(data_dir)
    salt, found = records(path)
    torn = encode_record(found[-2][1] + 1, bytes(range(256)) * 20, salt)
    with path.open("r+b") as file:
        file.seek(found[-1][0])
        file.write(torn[: len(torn) // 2])


def lose_last_commit(data_dir: Path) -> None:
    """Take away a commit that had returned: what a disk that lies about fsync does."""
    path = log_segment(data_dir)
    _, found = records(path)
    (start, _), (end, _) = found[-2:]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(end - start))


def documents(data_dir: Path) -> Path:
    """The SQLite file of shard 0's replica."""
    (found,) = (data_dir / "shards" / "0").glob("state-*/documents.db")
    return found


def committed_documents(data_dir: Path) -> int:
    """How many documents the file of a node that may be running holds: what would survive its death. A running node
    keeps the file to itself, so a copy is read."""
    path = documents(data_dir)
    with TemporaryDirectory() as directory:
        for part in (path, path.with_name(path.name + "-wal")):
            if part.exists():
                shutil.copy(part, directory)
        with closing(connect(str(Path(directory) / path.name))) as connection:
            return int(connection.execute("SELECT count(*) FROM ids").fetchone()[0])


def cut_documents_wal(data_dir: Path, rng: random.Random, *, at: int | None = None) -> tuple[int, int]:
    """Cut SQLite's write-ahead log at a random byte, as a power loss may; (bytes before, bytes kept)."""
    wal = documents(data_dir).with_name("documents.db-wal")
    before = wal.stat().st_size
    kept = rng.randrange(before) if at is None else at
    cut(wal, kept)
    documents(data_dir).with_name("documents.db-shm").unlink(missing_ok=True)
    return before, kept


def segment_files(data_dir: Path) -> list[Path]:
    """The replica's index files, in use; not those that are still being built or fetched."""
    found = (data_dir / "shards" / "0").glob("state-*/segments/*-*.*")
    return sorted(path for path in found if path.suffix != TEMPORARY)
