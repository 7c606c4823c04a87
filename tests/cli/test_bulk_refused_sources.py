"""The source of a bulk load: what is refused of it, as one line, before or while its pieces are read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from needle.base.errors import InvalidArgument, Unavailable
from needle.cli.bulk.engines import LocalEngine
from needle.cli.bulk.pieces import batches_of, pieces_of


def write(path: Path, vectors: Any, rows: int = 4, **options: Any) -> str:
    pq.write_table(pa.table({"id": [f"d{at}" for at in range(rows)], "vector": vectors}), path, **options)
    return str(path)


@pytest.mark.parametrize("vectors", [pa.array([None, [1.0, 2.0], None, None]), [1.0, 2.0, 3.0, 4.0], list("abcd")])
def test_a_first_vector_that_is_none_is_refused_before_a_collection_is_made(tmp_path: Path, vectors: Any) -> None:
    place = write(tmp_path / "a.parquet", vectors)
    with pytest.raises(InvalidArgument, match="row 0: vector"):
        pieces_of(place)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    place = write(tmp_path / "a.parquet", [[float(at), 1.0] for at in range(2000)], 2000, compression="zstd")
    [piece], _ = pieces_of(place)
    data = bytearray(Path(place).read_bytes())
    data[100:3000] = bytes(2900)
    Path(place).write_bytes(data)
    os.utime(place, ns=(int(piece.changed), int(piece.changed)))
    with pytest.raises(InvalidArgument, match=r"a\.parquet, row group number 0: cannot be read"):
        list(batches_of(piece))


def test_a_file_that_is_another_one_than_when_the_load_began_is_refused(tmp_path: Path) -> None:
    place = write(tmp_path / "a.parquet", [[float(at), 1.0] for at in range(4)])
    [piece], width = pieces_of(place)
    assert width == 2
    rows = batches_of(piece)
    next(rows)
    write(tmp_path / "a.parquet", [[float(at), 2.0] for at in range(5)], 5)
    with pytest.raises(InvalidArgument, match="was changed since"):
        list(rows)
    with pytest.raises(InvalidArgument, match="was changed since"):
        next(batches_of(piece))


def ended() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_told_as_an_error_that_may_pass() -> None:
    engine = LocalEngine(1)
    try:
        with pytest.raises(Unavailable, match="a worker process ended"):
            list(engine.map(ended, [()]))
        with pytest.raises(Unavailable, match="a worker process ended"):  # seen while calls are still handed out
            list(engine.map(ended, [()]))
    finally:
        engine.close()


def test_workers_end_with_the_command_that_is_killed() -> None:
    """They stayed for good, and went on in the directory of the command that was run again."""
    code = (
        "import os, signal\nfrom needle.cli.bulk.engines import LocalEngine\nengine = LocalEngine(1)\n"
        "print(*engine.map(os.getpid, [()]), flush=True)\nlist(engine.map(signal.pause, [()]))"
    )
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert running.stdout is not None
    worker = int(running.stdout.readline())
    running.kill()
    try:
        running.communicate(timeout=30)  # the worker has the same pipe
    except subprocess.TimeoutExpired:
        os.kill(worker, signal.SIGKILL)
        raise
