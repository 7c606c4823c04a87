"""A power loss of one replica's directory (SQLite keeps a prefix of its write-ahead log)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def cut_power(directory: str, close: Callable[[], None], surviving: Callable[[int], int]) -> None:
    """Simulate a power loss of the replica in `directory`.

    close: closes the replica (SQLite would then write its WAL back, which a power loss does not). surviving: given the
    size of a WAL, how many of its bytes reach the disk. Legal for any answer from 0 to the size, because a checkpoint
    leaves an empty WAL behind.
    """
    paths = [str(path) for path in sorted(Path(directory).rglob("*.db")) + sorted(Path(directory).rglob("*.db-wal"))]
    images = [(path, Path(path).read_bytes()) for path in paths]
    close()
    for path, image in images:
        Path(path + "-shm").unlink(missing_ok=True)
        Path(path).write_bytes(image[: surviving(len(image))] if path.endswith("-wal") else image)
