"""What a power cut may take from a machine's files: contents and names that nobody has synced yet.

Durability order: a file's content is safe after `sync` of the file, its name after `sync` of the directory it is in; a
name that was replaced may come back with its old content. A crash of the process alone takes nothing, and nothing
becomes safe by it. SQLite's files are sqlite_crash.py's. It must not know what the files mean.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

UNFINISHED = (".part", ".tmp")
"""Names of files that are written without being handed through the replica's disk: index files, built or fetched. Such
a file is whole under its final name only if it was synced before the rename, at the size that it has."""


class Unsynced:
    """Of one machine, by path relative to its data directory. broken: an index file that a power cut has damaged or
    taken although it had its final name: the product syncs it before, and its directory after."""

    def __init__(self, data_dir: str, rng: random.Random) -> None:
        self._data_dir = data_dir
        self._rng = rng
        self._contents: dict[str, int] = {}
        self._names: dict[str, bytes | None] = {}
        self._whole: dict[str, int] = {}
        self._excused: set[str] = set()
        self._finished: set[str] = set()
        self._moved: dict[str, str] = {}
        """Directories that were renamed, by their new names."""
        self.wal_bytes: dict[str, int] = {}
        """Of each of SQLite's write-ahead logs: how many bytes its last checkpoint has synced and left there."""
        self.lost = 0
        self.broken = ""

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self._data_dir)

    # --- what the node does -------------------------------------------------------------------------------------------
    def wrote(self, path: str) -> None:
        """The file's content is not synced."""
        self._contents[self._relative(path)] = os.stat(path).st_ino

    def linked(self, source: str, target: str) -> None:
        """`target` is another name of the same content."""
        inode = self._contents.get(self._relative(source))
        if inode is not None:
            self._contents[self._relative(target)] = inode

    def before_name(self, path: str) -> None:
        """A file is about to be made under this name, unless there is one."""
        if not os.path.exists(path):
            self._names[self._relative(path)] = None

    def before_rename(self, target: str) -> None:
        """This name is about to become another file's."""
        old = Path(target).read_bytes() if os.path.isfile(target) else None
        self._names.setdefault(self._relative(target), old)

    def renamed(self, source: str, target: str) -> None:
        """The content has moved with its name."""
        if os.path.isdir(target):
            self._moved_tree(self._relative(source), self._relative(target))
            return
        if source.endswith(UNFINISHED):
            self._finished.add(self._relative(target))
        if source.endswith(UNFINISHED) and self._whole.pop(self._relative(source), -1) != os.path.getsize(target):
            self._contents.pop(self._relative(target), None)
            self._contents[self._relative(target)] = os.stat(target).st_ino
            self._names.pop(self._relative(source), None)
            return
        inode = self._contents.pop(self._relative(source), None)
        self._contents.pop(self._relative(target), None)
        self._names.pop(self._relative(source), None)
        if inode is not None:
            self._contents[self._relative(target)] = inode

    def _moved_tree(self, source: str, target: str) -> None:
        self._names.pop(target, None)
        self._contents = _renamed(self._contents, source, target)
        self._names = _renamed(self._names, source, target)
        self._whole = _renamed(self._whole, source, target)
        self.wal_bytes = _renamed(self.wal_bytes, source, target)
        self._moved[target] = source

    def synced(self, path: str) -> None:
        """A file's content, or the names in a directory, are safe."""
        if os.path.isdir(path):
            where = self._relative(path)
            self._names = {name: old for name, old in self._names.items() if (os.path.dirname(name) or ".") != where}
            self._moved = {name: old for name, old in self._moved.items() if (os.path.dirname(name) or ".") != where}
        elif os.path.exists(path):
            inode = os.stat(path).st_ino
            self._contents = {name: found for name, found in self._contents.items() if found != inode}
            if path.endswith(UNFINISHED):
                self._whole[self._relative(path)] = os.path.getsize(path)

    def checkpointed(self, path: str) -> None:
        """The product syncs a database after each checkpoint; SQLite has synced the write-ahead log before it."""
        wal = path if path.endswith("-wal") else path + "-wal"
        if os.path.isfile(wal):
            self.wal_bytes[self._relative(wal)] = os.path.getsize(wal)

    def synced_tree(self, path: str) -> None:
        """Everything below a directory is safe, and its name."""
        for folder, _, names in os.walk(path):
            for name in names:
                self.synced(os.path.join(folder, name))
            self.synced(folder)

    def failed(self, path: str) -> None:
        """A sync of a file, or of a directory, failed, and the node was told so: it knows what it may lose."""
        where = self._relative(path)
        self._excused.update(name for name in self._contents if name == where)
        self._excused.update(name for name in self._names if (os.path.dirname(name) or ".") == where)

    def removed(self, path: str) -> None:
        """A file or a tree is gone."""
        gone = self._relative(path)
        for known in (self._contents, self._names, self._whole, self.wal_bytes):
            for name in [name for name in known if name == gone or name.startswith(gone + os.sep)]:
                del known[name]

    # --- the power cut ------------------------------------------------------------------------------------------------
    def power_cut(self, directory: str) -> None:
        """Take from `directory`, a copy of the data directory, what was not synced; some of it, at random."""
        for name, old in self._names.items():
            path = os.path.join(directory, name)
            if os.path.isfile(path) and self._rng.random() < 0.5:
                self._lose(name)
                if old is None:
                    os.unlink(path)
                else:
                    Path(path).write_bytes(old)
        for path in [*(os.path.join(directory, name) for name in self._contents), *_unfinished(directory)]:
            if os.path.isfile(path) and self._rng.random() < 0.7:
                self._lose(os.path.relpath(path, directory))
                self._tear(path)
        for new, was in self._moved.items():
            back = os.path.join(directory, was)
            if os.path.isdir(os.path.join(directory, new)) and not os.path.exists(back) and self._rng.random() < 0.5:
                os.rename(os.path.join(directory, new), back)
                self.lost += 1
        self._moved.clear()
        for known in (self._contents, self._names, self._whole, self.wal_bytes):
            known.clear()
        self._excused.clear()
        self._finished.clear()

    def _lose(self, name: str) -> None:
        self.lost += 1
        if name in self._finished and name not in self._excused:
            self.broken = name

    def _tear(self, path: str) -> None:
        """Its end is missing, or reads as zeros."""
        size = os.path.getsize(path)
        keep = self._rng.randint(0, size)
        os.truncate(path, keep)
        if self._rng.random() < 0.5:
            os.truncate(path, size)


def _renamed(known: dict[str, T], source: str, target: str) -> dict[str, T]:
    """What is known of files, after their directory got another name."""
    inside = source + os.sep
    return {target + name[len(source) :] if name.startswith(inside) else name: one for name, one in known.items()}


def _unfinished(directory: str) -> Iterator[str]:
    for folder, _, names in sorted(os.walk(directory)):
        yield from (os.path.join(folder, name) for name in sorted(names) if name.endswith(UNFINISHED))
