"""Bits that flip in SQLite's write-ahead log while a replica runs are found before they get into the main file."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.damage import flip_bit
from needle.base.errors import CorruptDocuments, ReplicaDamaged
from needle.protocol.commands import CreateCollection
from needle.shard.documents.wal_check import AT_ONCE, FRAME_BYTES, HEADER_BYTES
from needle.shard.state_machine import Replica
from shard.replica_util import Log, open_replica, put, spec


def written(directory: Path, documents: int = 100) -> tuple[Replica, Log, Path]:
    """A replica with that many documents in its main file and as many in the write-ahead log."""
    replica, log = open_replica(directory), Log()
    replica.apply(log.add(CreateCollection(spec())))
    more(replica, log, documents)
    replica.checkpoint()
    more(replica, log, documents)
    (path,) = directory.glob("state-*/documents.db-wal")
    return replica, log, path


def more(replica: Replica, log: Log, documents: int) -> None:
    first = len(log.entries)
    ids = [f"{first}-{n}" for n in range(documents)]
    replica.apply(log.add(put(ids, [[1, n, 2] for n in range(documents)], [{"pad": "x" * 900}] * documents)))
    replica.save()


@pytest.mark.parametrize("at", [0, 5, 8, 17, 24, 2000, FRAME_BYTES - 1])
def test_a_flipped_bit_anywhere_in_a_frame_is_found_before_it_is_moved(tmp_path: Path, at: int) -> None:
    replica, _, path = written(tmp_path)
    frames = (path.stat().st_size - HEADER_BYTES) // FRAME_BYTES
    main = path.with_name("documents.db")
    before = main.read_bytes()
    flip_bit(path, HEADER_BYTES + frames // 2 * FRAME_BYTES + at, 3)
    with pytest.raises(CorruptDocuments, match=r"-wal is damaged"):
        replica.checkpoint()
    assert replica.damage is not None
    with pytest.raises(ReplicaDamaged):
        replica.get("c", ["1-1"], False)
    replica.close()
    assert main.read_bytes() == before, "a page that was not compared was moved, also by the last one to close"


def test_a_log_that_is_cut_short_is_found(tmp_path: Path) -> None:
    replica, _, path = written(tmp_path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - FRAME_BYTES)
    with pytest.raises(CorruptDocuments):
        replica.checkpoint()
    replica.close()


def test_a_flipped_bit_in_a_frame_that_a_reader_held_back_is_found_by_the_checkpoint_that_can_move_it(
    tmp_path: Path,
) -> None:
    replica, log, path = written(tmp_path)
    with replica._store.reading() as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM documents").fetchall()
        more(replica, log, 50)
        before, frames = replica._store.writer._wal.compared, (path.stat().st_size - HEADER_BYTES) // FRAME_BYTES
        replica.checkpoint()  # it compares all, once, and moves only what the reader sees
        assert replica._store.writer._wal.compared - before == frames
        flip_bit(path, path.read_bytes().rfind(b"xxxxxxxx"), 1)
        reader.execute("ROLLBACK")
    with pytest.raises(CorruptDocuments, match=r"-wal is damaged"):
        replica.checkpoint()
    replica.close()


def test_what_is_compared_follows_what_was_written_since_the_last_checkpoint(tmp_path: Path) -> None:
    replica, log, path = written(tmp_path, 1500)
    check = replica._store.writer._wal
    before = check.compared
    frames = (path.stat().st_size - HEADER_BYTES) // FRAME_BYTES
    assert frames > AT_ONCE
    replica.checkpoint()
    assert check.compared - before == frames
    for _ in range(3):
        before = check.compared
        more(replica, log, 3)
        replica.checkpoint()
        assert 0 < check.compared - before < frames // 4
    index = replica.applied_index()
    replica.close()
    again = open_replica(tmp_path)
    assert again.applied_index() == index
    assert again.count("c") == 1500 * 2 + 9
    again.checkpoint()
    again.close()
