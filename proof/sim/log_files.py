"""The files under a simulated machine's Raft log: what a power cut leaves of contents and of names, each by itself.

Durability order: bytes are safe after `flush` of their file, names after `sync_names`; neither makes the other safe.
Of what is not safe a power cut takes any part: whole writes, the end of one, single renames. A crash of the process
takes nothing, and makes nothing safe. It must not know what the bytes mean.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from needle.multiraft.log.wal_files import LogFiles
from proof.sim.process import Process

PLACES = ("log-files.write", "log-files.flush", "log-files.rename", "log-files.sync", "log-files.create")
"""Where a node may die inside a commit: before each of these."""


class _File(msgspec.Struct, eq=False):
    live: bytearray
    durable: bytearray
    unsynced: list[tuple[int, bytes]]


class FileSystem:
    """One directory, across the incarnations of its machine's node."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.names: dict[str, _File] = {}
        self._durable: dict[str, _File] = {}
        self._changes: list[tuple[str, str, _File | None]] = []  # (name that goes, name that comes, its file)

    def change(self, old: str, new: str, file: _File | None) -> None:
        """A rename, a creation (old is "") or a removal (new is "")."""
        _rename(self.names, old, new, file)
        self._changes.append((old, new, file))

    def sync_names(self) -> None:
        """The names are safe."""
        self._durable = dict(self.names)
        self._changes.clear()

    def power_cut(self) -> None:
        """Take some of what is not safe."""
        for old, new, file in self._changes:
            if self.rng.random() < 0.5:
                _rename(self._durable, old, new, file)
        self._changes.clear()
        for file in {id(file): file for file in (*self.names.values(), *self._durable.values())}.values():
            for offset, data in file.unsynced:
                draw = self.rng.random()
                kept = data if draw < 0.4 else data[: int(self.rng.random() * len(data))] if draw < 0.7 else b""
                _write(file.durable, offset, kept)
            file.unsynced.clear()
            file.live = bytearray(file.durable)
        self.names = dict(self._durable)

    def rot(self) -> str:
        """Flip one bit of one segment; its name and the bit, "" if there is none to damage."""
        names = sorted(name for name in self.names if name.endswith(".wal") and any(self.names[name].live))
        if not names:
            return ""
        name = names[int(self.rng.random() * len(names))]
        file = self.names[name]
        used = len(file.live.rstrip(b"\0"))
        bit = int(self.rng.random() * used * 8)
        for content in (file.live, file.durable):
            if bit // 8 < len(content):
                content[bit // 8] ^= 1 << bit % 8
        return f"bit {bit} of {name}"


def _rename(names: dict[str, _File], old: str, new: str, file: _File | None) -> None:
    if not old or names.get(old) is file:
        names.pop(old, None)
        if new and file is not None:
            names[new] = file


def _write(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


class SimLogFiles(LogFiles):
    """The port of one incarnation. reached: called with one of PLACES before each step."""

    def __init__(self, system: FileSystem, process: Process, reached: Callable[[str], None]) -> None:
        super().__init__("log")
        self._system = system
        self._process = process
        self._reached = reached
        self._handles: list[_File] = []

    def _step(self, place: str) -> None:
        self._process.fence()
        self._reached(place)

    def claim(self) -> None:
        """A machine runs at most one process."""

    def release(self) -> None:
        """Nothing is locked."""

    def names(self) -> list[str]:
        return sorted(self._system.names)

    def rename(self, old: str, new: str) -> None:
        self._step("log-files.rename")
        self._system.change(old, new, self._system.names[old])

    def remove(self, name: str) -> None:
        self._step("log-files.rename")
        self._system.change(name, "", self._system.names[name])

    def sync_names(self) -> None:
        self._step("log-files.sync")
        self._system.sync_names()

    def open(self, name: str) -> int:
        file = self._system.names.get(name)
        if file is None:
            self._step("log-files.create")
            file = _File(bytearray(), bytearray(), [])
            self._system.change("", name, file)
        self._handles.append(file)
        return len(self._handles) - 1

    def close(self, handle: int) -> None:
        """Nothing is held open."""

    def size(self, handle: int) -> int:
        return len(self._handles[handle].live)

    def read(self, handle: int, length: int, offset: int) -> bytes:
        return bytes(self._handles[handle].live[offset : offset + length])

    def write(self, handle: int, data: bytes, offset: int) -> None:
        self._step("log-files.write")
        file = self._handles[handle]
        _write(file.live, offset, data)
        file.unsynced.append((offset, data))

    def allocate(self, handle: int, size: int, *, zeros: bool) -> None:
        self.write(handle, bytes(size), 0)

    def flush(self, handle: int) -> None:
        self._step("log-files.flush")
        file = self._handles[handle]
        for offset, data in file.unsynced:
            _write(file.durable, offset, data)
        file.unsynced.clear()
