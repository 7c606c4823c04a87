"""Files of a bulk load that a disk, or somebody, changed between two steps: they are made again, or end the load."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from needle.base.errors import CorruptSegment
from needle.base.model import CollectionSpec, Metric
from needle.cli.bulk.building import build
from needle.cli.bulk.job import Job, ShardFiles, ShardJob, Work
from needle.cli.bulk.partitioning import ids_name, part_name, partition
from needle.cli.bulk.pieces import pieces_of
from needle.routing.shard_map import initial_map
from needle.routing.strategy import CONSISTENT_HASH

ROWS, WIDTH = 40, 3


@pytest.fixture
def job(tmp_path: Path) -> Job:
    vectors = np.random.default_rng(4).standard_normal((ROWS, WIDTH)).astype(np.float32)
    table = pa.table({"id": [f"d{at}" for at in range(ROWS)], "vector": list(vectors)})
    pq.write_table(table, tmp_path / "source.parquet", row_group_size=ROWS // 2)
    pieces, _ = pieces_of(str(tmp_path / "source.parquet"))
    spec = CollectionSpec(name="books", dimensions=WIDTH, metric=Metric.L2)
    mine = ShardJob(0, 1, 0, 0, 1000)
    return Job("books", spec, initial_map(CONSISTENT_HASH, 1), [mine], pieces, indexes=True, scanned_max=2)


def divided(job: Job, work: Work) -> None:
    for number, piece in enumerate(job.pieces):
        assert partition(job, number, piece, str(work.root)) == {"0": ROWS // 2}


def made(job: Job, work: Work) -> ShardFiles:
    found = build(job, 0, str(work.root))
    assert found is not None
    return found


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [part_name(0), ids_name(0), "result"])
def test_what_a_piece_gave_is_made_again_if_it_was_changed_since(job: Job, tmp_path: Path, name: str) -> None:
    work = Work(str(tmp_path / "work"))
    divided(job, work)
    before = {one.name: one.read_bytes() for one in work.piece(1).iterdir()}
    changed = work.piece(1) / name
    if name == part_name(0):
        flip(changed, 200)
    else:
        changed.write_bytes(changed.read_bytes()[:-8])
    divided(job, work)
    assert {one.name: one.read_bytes() for one in work.piece(1).iterdir()} == before


@pytest.mark.parametrize("damage", ["flip", "shorter", "gone", "without a result"])
def test_no_document_is_another_one_because_a_disk_changed_it(job: Job, tmp_path: Path, damage: str) -> None:
    """The bit is one of a vector: all replicas would have agreed about the wrong document."""
    work = Work(str(tmp_path / "work"))
    divided(job, work)
    part = work.piece(1) / part_name(0)
    if damage == "flip":
        flip(part, len(part.read_bytes()) - 40)
    elif damage == "shorter":
        part.write_bytes(part.read_bytes()[:-1])
    elif damage == "gone":
        part.unlink()
    else:
        (work.piece(1) / "result").unlink()
    with pytest.raises(CorruptSegment, match="Run the command again"):
        build(job, 0, str(work.root))
    divided(job, work)
    assert made(job, work).rows == ROWS


@pytest.mark.parametrize("which", [0, 1])
def test_files_of_a_shard_that_were_changed_are_made_again(job: Job, tmp_path: Path, which: int) -> None:
    """They were sent again and again, and no replica took them."""
    work = Work(str(tmp_path / "work"))
    divided(job, work)
    before = made(job, work)
    path = work.shard(0) / before.names[which]
    whole = path.read_bytes()
    flip(path, len(whole) // 2)
    assert made(job, work) == before and path.read_bytes() == whole
    path.unlink()
    assert made(job, work) == before and path.read_bytes() == whole


def test_no_shard_lacks_documents_because_a_disk_changed_what_was_said_of_a_piece(job: Job, tmp_path: Path) -> None:
    """One bit makes shard 0 of shard 1: what shard 0 gets of the piece was left out, and the load said that it was
    done."""
    shards = [msgspec.structs.replace(job.shards[0], shard=shard) for shard in (0, 1)]
    job = msgspec.structs.replace(job, shards=shards, map=initial_map(CONSISTENT_HASH, 2))
    work = Work(str(tmp_path / "work"))

    def divide() -> list[dict[str, int]]:
        return [partition(job, number, piece, str(work.root)) for number, piece in enumerate(job.pieces)]

    before = divide()
    assert all(len(one) == 2 for one in before)
    path = work.piece(1) / "result"
    flip(path, path.read_bytes().index(b'"0"') + 1)
    with pytest.raises(CorruptSegment, match="Run the command again"):
        build(job, 0, str(work.root))
    assert divide() == before
    files = [build(job, shard, str(work.root)) for shard in (0, 1)]
    assert sum(one.rows for one in files if one is not None) == ROWS


def test_files_of_a_shard_of_which_something_else_is_said_are_made_again(job: Job, tmp_path: Path) -> None:
    """Each further run was refused: the file has another number of rows than the entry says."""
    work = Work(str(tmp_path / "work"))
    divided(job, work)
    before = made(job, work)
    path = work.shard(0) / "result"
    flip(path, path.read_bytes().index(b'"rows":') + 7)
    assert made(job, work) == before
