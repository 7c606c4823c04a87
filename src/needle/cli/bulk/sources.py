"""Where the Parquet files of a bulk load lie: here, or in a bucket, which is reached as for backups (backup/store.py).

A file is named by what anybody can open again, also on another machine. It must not know Parquet.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, Final, NamedTuple

from needle.backup.store import ObjectStore, bucket_store
from needle.base.errors import InvalidArgument
from needle.cli.inputs import refuse

BUCKET: Final = "s3://"
ENDING: Final = ".parquet"
AHEAD: Final = 1 << 20
"""Of an object is read so much at least."""


class Found(NamedTuple):
    """A file of a source. changed: when, by which another file of the same name is known."""

    path: str
    size: int
    changed: str


def files_of(source: str) -> list[Found]:
    """All of a source, in order. Raises InvalidArgument for one that has none, StorageError for one that cannot be
    read."""
    found = _objects(source) if source.startswith(BUCKET) else _here(Path(source).absolute())
    if not found:
        raise InvalidArgument(f"{source}: no Parquet file, and no directory of {ENDING} files", field="SOURCE")
    return sorted(found)


def _here(place: Path) -> list[Found]:
    try:
        paths = [place] if place.is_file() else [one for one in place.rglob(f"*{ENDING}") if one.is_file()]
        return [Found(str(one), (said := one.stat()).st_size, str(said.st_mtime_ns)) for one in paths]
    except OSError as error:
        raise refuse(str(place), f"cannot be read: {error}") from None


def _objects(source: str) -> list[Found]:
    source = source.rstrip("/")
    if source.endswith(ENDING):
        store, name = _object(source)
        if (said := store.stat(name)) is not None:
            return [Found(source, said.size, str(said.modified))]
    names = bucket_store(source).names("")
    return [
        Found(f"{source}/{one}", said.size, str(said.modified)) for one, said in names.items() if one.endswith(ENDING)
    ]


def _object(path: str) -> tuple[ObjectStore, str]:
    """The store that a file is in, and its name there."""
    place, _, name = path.rpartition("/")
    return bucket_store(place), name


def opened(path: str) -> Any:
    """A file of a source, to be read. Raises OSError, StorageError."""
    if not path.startswith(BUCKET):
        return open(path, "rb")
    store, name = _object(path)
    said = store.stat(name)
    if said is None:
        raise FileNotFoundError(f"{path} is not there any more")
    return io.BufferedReader(ObjectFile(store, name, said.size), AHEAD)


class ObjectFile(io.RawIOBase):
    """An object of a bucket as a file: a request for each read."""

    def __init__(self, store: ObjectStore, name: str, size: int) -> None:
        self._store, self._name, self._size, self._at = store, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        data = self._store.part(self._name, self._at, length)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
