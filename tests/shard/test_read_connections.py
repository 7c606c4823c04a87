"""Connections that read a replica's file: what is closed when."""

from __future__ import annotations

import threading
from pathlib import Path

import apsw
import pytest

from needle.shard.documents.read_connections import ReadConnections


def test_a_connection_that_a_thread_reads_by_is_closed_once_it_has_read(tmp_path: Path) -> None:
    """A shard is given up while cancelled background work still reads in its thread: the node must not end by that."""
    path = str(tmp_path / "documents.db")
    apsw.Connection(path).execute("CREATE TABLE one (value)")
    connections = ReadConnections(path, lambda error: None)
    reading, goes_on = threading.Event(), threading.Event()
    used: list[apsw.Connection] = []
    found: list[object] = []

    def wait() -> int:
        reading.set()
        goes_on.wait(30)
        return 7

    def read() -> None:
        with connections.one() as connection:
            used.append(connection)
            connection.create_scalar_function("wait", wait, 0)
            found.extend(connection.execute("SELECT wait()").fetchall())

    thread = threading.Thread(target=read)
    thread.start()
    assert reading.wait(30)
    try:
        connections.close()
    finally:
        goes_on.set()
        thread.join(30)
    assert found == [(7,)]
    with pytest.raises(apsw.ConnectionClosedError):
        used[0].execute("SELECT 1")
