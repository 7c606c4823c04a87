"""Where backups lie: files by name, in a directory or in a bucket. Methods block; call them in a thread.

Invariant: a file is there whole or not at all, and durable when `put` has returned. It must not know what files mean.
"""

from __future__ import annotations

import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from needle.base.errors import DiskFull, InvalidArgument, StorageError
from needle.base.file_errors import shortage

PARTIAL = ".partial"
AGAIN_SECONDS: Final = 20.0
"""So long a bucket is asked again; obstore waits 30 s for an answer (AWS_TIMEOUT), so a silent one is asked once."""
LOOK_SECONDS: Final = 0.1
HURRIED_LOOKS: Final = 20
"""Of two seconds: so long a bucket is waited for by who is to end."""
T = TypeVar("T")


class Stat(NamedTuple):
    """size: bytes. modified: seconds since 1970 by the store's clock."""

    size: int
    modified: float


class Store(Protocol):
    """See the module. All raise StorageError."""

    def put(self, name: str, data: bytes) -> None:
        """Make or replace a file."""
        ...

    def get(self, name: str) -> bytes | None:
        """A file's bytes; None if there is none."""
        ...

    def names(self, prefix: str) -> dict[str, Stat]:
        """All files whose names begin so; the prefix ends with a slash. Also what a `put` left that was killed."""
        ...

    def delete(self, name: str) -> None:
        """Fine if it is not there."""
        ...


def open_store(target: str) -> Store:
    """A directory, or s3://bucket/prefix. Raises InvalidArgument for another target."""
    if "://" not in target:
        return DirectoryStore(Path(target))
    if not target.startswith("s3://"):
        raise InvalidArgument(f"target = {target} is not allowed: a directory, or s3://bucket/prefix", field="target")
    return bucket_store(target)


def bucket_store(target: str, again: float = AGAIN_SECONDS) -> ObjectStore:
    """s3://bucket/prefix. again: so many seconds what fails is tried again. Raises InvalidArgument without the library
    for it."""
    try:
        from obstore.store import from_url  # only who has a bucket needs it
    except ImportError:
        raise InvalidArgument(
            f"target = {target} is a bucket, which needs a library: pip install 'needle-vdb[s3]'", field="target"
        ) from None
    with _errors(target):
        # Not the client's options: they would take the place of those that variables say.
        return ObjectStore(from_url(target, retry_config={"retry_timeout": timedelta(seconds=again)}), target)


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error.strerror or error}", path=what) from error


def is_full(error: StorageError) -> bool:
    """Whether it is for want of room, so that it passes when something is deleted."""
    cause = error.__cause__
    return isinstance(cause, OSError) and isinstance(shortage(cause, ""), DiskFull)


def _unless_gone(error: OSError) -> None:
    """A directory that may not be read must not look empty: prune deletes what nothing that it sees names."""
    if not isinstance(error, FileNotFoundError):
        raise error


class DirectoryStore:
    """In a directory, which is made when the first file is."""

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        """durable: False for what is made again after a crash."""
        self._root = root
        self._sync = _sync if durable else _nothing

    def put(self, name: str, data: bytes) -> None:
        path = self._root / name
        partial = path.with_name(f"{path.name}{PARTIAL}-{secrets.token_hex(4)}")
        with _errors(str(path)):
            self._directory(path.parent)
            try:
                with partial.open("wb") as file:
                    file.write(data)
                    file.flush()
                    self._sync(file.fileno())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
            self._sync(path.parent)

    def _directory(self, path: Path) -> None:
        """Make it durably."""
        if not path.is_dir():
            self._directory(path.parent)
            path.mkdir(exist_ok=True)
            self._sync(path.parent)

    def get(self, name: str) -> bytes | None:
        path = self._root / name
        with _errors(str(path)):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def names(self, prefix: str) -> dict[str, Stat]:
        found: dict[str, Stat] = {}
        with _errors(str(self._root)):
            for directory, _, files in os.walk(self._root / prefix, onerror=_unless_gone):
                for path in (Path(directory, file) for file in files):
                    try:
                        there = path.stat()
                    except FileNotFoundError:  # deleted meanwhile
                        continue
                    if stat.S_ISREG(there.st_mode):
                        found[path.relative_to(self._root).as_posix()] = Stat(there.st_size, there.st_mtime)
        return found

    def delete(self, name: str) -> None:
        path = self._root / name
        with _errors(str(path)):
            path.unlink(missing_ok=True)


class Before:
    """A store, and behind it another one from which is read what this one lacks."""

    def __init__(self, store: Store, behind: Store) -> None:
        self._store, self._behind = store, behind
        self.put, self.names, self.delete = store.put, store.names, store.delete

    def get(self, name: str) -> bytes | None:
        found = self._store.get(name)
        return self._behind.get(name) if found is None else found


def _sync(what: Path | int) -> None:
    """A directory, or an open file."""
    if isinstance(what, int):
        os.fsync(what)
        return
    handle = os.open(what, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _nothing(_: Path | int) -> None:
    return None


def hurry(store: Store) -> None:
    """Who uses it is to end: what a bucket is asked from now on, and is being asked, is waited for two seconds. From
    any thread, or a handler of a signal."""
    if isinstance(store, ObjectStore):
        store.hurry()


class ObjectStore:
    """What obstore has: S3, and its memory store in tests. It is told the endpoint and keys by its usual variables.

    Each call runs in a thread of its own, which is left behind if nobody waits for it any more: obstore hears of no
    signal before the bucket has answered."""

    def __init__(self, store: Any, target: str) -> None:
        self._store = store
        self._target = target
        self._hurried = threading.Event()
        self.hurry = self._hurried.set

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            why = str(error).partition("\n\nDebug source")[0]  # behind that are the library's own structures
            raise StorageError(f"{self._target}: {name}: {why}", path=self._target) from error

    def _told(self, name: str, call: Callable[[], T]) -> T:
        """What the bucket answers. Raises StorageError."""
        answer: Future[T] = Future()

        def ask() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:  # noqa: BLE001 - a boundary between threads: it is raised by whoever asked
                answer.set_exception(error)

        with self._errors(name):
            threading.Thread(target=ask, name="needle-bucket", daemon=True).start()
            looks = 0
            while looks < HURRIED_LOOKS:
                try:
                    return answer.result(LOOK_SECONDS)
                except NotYet:
                    if answer.done():  # it is the bucket that said so
                        return answer.result()
                looks += self._hurried.is_set()
        raise StorageError(f"{self._target}: {name}: it has not answered yet, and this is to end", path=self._target)

    def put(self, name: str, data: bytes) -> None:
        self._told(name, lambda: self._store.put(name, data))

    def get(self, name: str) -> bytes | None:
        def get() -> bytes | None:
            try:
                return bytes(self._store.get(name).bytes())
            except FileNotFoundError:
                return None

        return self._told(name, get)

    def stat(self, name: str) -> Stat | None:
        """Of a file; None if there is none."""

        def stat() -> Stat | None:
            try:
                told = self._store.head(name)
            except FileNotFoundError:
                return None
            return Stat(told["size"], told["last_modified"].timestamp())

        return self._told(name, stat)

    def part(self, name: str, start: int, length: int) -> bytes:
        """Some bytes of a file."""
        return self._told(name, lambda: bytes(self._store.get_range(name, start=start, length=length)))

    def names(self, prefix: str) -> dict[str, Stat]:
        return self._told(
            prefix,
            lambda: {
                one["path"]: Stat(one["size"], one["last_modified"].timestamp())
                for some in self._store.list(prefix)
                for one in some
            },
        )

    def delete(self, name: str) -> None:
        def delete() -> None:
            try:
                self._store.delete(name)
            except FileNotFoundError:
                return

        self._told(name, delete)
