"""Applies what a target's archives have again, and compares with the digests that the shards' leaders had.

Each shard is followed from its first state to its last entry; the states that were copied on the way must be what the
entries before lead to. Where a file is damaged or missing it begins again at the next state. So every entry that has a
recorded digest behind it was compared, and every state. Blocking; memory: of one shard's documents without their
vectors, and a file of entries. It must not know clusters. Needs the whole package, not only the client's.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from needle.backup.archive_format import Base
from needle.backup.archive_reading import archived_shards, bases_of, clusters, read_base, undisturbed
from needle.backup.replaying import Replay
from needle.backup.store import Store
from needle.base.errors import CorruptBackup, DiskFailed, InvalidArgument, NeedleError
from needle.base.file_errors import SHORTAGES

Told = Callable[[str], None]


class ComparedShard(msgspec.Struct, frozen=True, kw_only=True):
    """What was compared of one shard of an archive. cluster: its founding, in hex. entries: that were applied. states:
    that were begun with, or compared with what the entries before lead to. digests: of its leader, at so many indexes.
    proven: the last one of them, 0 for none; what is archived behind it has no digest yet. last: the last index that
    was reached."""

    cluster: str
    shard: int
    entries: int
    states: int
    digests: int
    proven: int
    last: int


def compare_archives(
    store: Store, scratch: Path, told: Told = lambda _: None
) -> Iterator[tuple[ComparedShard, list[str]]]:
    """Each shard of all archives, and a line for whatever differs or cannot be read. scratch: an empty directory. told:
    of what is done. Raises InvalidArgument without the whole package, DiskFull, DiskFailed of the directory."""
    for founding in clusters(store):
        for shard in archived_shards(store, founding):
            call = partial(_compared, store, founding, shard, scratch / f"{founding:x}-{shard}", told)
            yield undisturbed(store, founding, call, lambda said: said[1])


def _compared(store: Store, founding: int, shard: int, directory: Path, told: Told) -> tuple[ComparedShard, list[str]]:
    one = _Comparing(store, founding, shard, directory, told)
    return one.run(), one.problems


class _Comparing:
    """One shard's."""

    def __init__(self, store: Store, founding: int, shard: int, directory: Path, told: Told) -> None:
        self._store, self._founding, self._shard = store, founding, shard
        self._directory, self._told = directory, told
        self._made = self._entries = self._states = self._digests = self._proven = self._last = 0
        self._chain: Replay | None = None
        self.problems: list[str] = []

    def run(self) -> ComparedShard:
        try:
            for index, name in bases_of(self._store, self._founding, self._shard):
                whole = self._tried(self._follow, index)
                if not self._tried(self._state, index, name, whole) and not whole:
                    self._end()  # what is damaged leads no further
            self._tried(self._follow, None)
        finally:
            self._end()
            shutil.rmtree(self._directory, ignore_errors=True)
        return ComparedShard(
            cluster=f"{self._founding:x}",
            shard=self._shard,
            entries=self._entries,
            states=self._states,
            digests=self._digests,
            proven=self._proven,
            last=self._last,
        )

    def _tried(self, step: Callable[..., None], *arguments: object) -> bool:
        """Whether the archive let a step go well; what it is to blame for is noted."""
        try:
            step(*arguments)
        except (DiskFailed, InvalidArgument, *SHORTAGES):
            raise
        except NeedleError as error:
            self.problems.append(error.message)
            return False
        return True

    def _follow(self, index: int | None) -> None:
        """Apply entries up to an index, or all; up to a bulk load, which is no damage."""
        if self._chain is not None:
            upto = "its end" if index is None else str(index)
            self._told(f"shard {self._shard}: applying its log, {self._chain.replica.applied_index()} to {upto}")
            try:
                self._chain.follow(index)
            except CorruptBackup:
                if not self._chain.at_load:
                    raise

    def _state(self, index: int, name: str, whole: bool) -> None:
        """Compare it with what the entries before lead to, if they lead there. Begin with it if they do not, or if
        behind it the archive is not whole."""
        base, chain = read_base(self._store, name), self._chain
        begun = self._begun(base)
        self._states += 1
        if chain is not None and chain.replica.applied_index() == index:
            found, here = begun.replica.digest(), chain.replica.digest()
            if found != here:
                self.problems.append(
                    f"shard {self._shard}: its state at index {index} has digest {found}, and the entries before it "
                    f"lead to {here}"
                )
            if whole:
                self._close(begun)
                return
        self._end()
        self._chain = begun

    def _begun(self, base: Base) -> Replay:
        self._made += 1
        directory = self._directory / str(self._made)
        directory.mkdir(parents=True)
        replay = Replay(self._store, self._founding, self._shard, directory)
        try:
            replay.begin(base)
        except BaseException:
            self._close(replay)
            raise
        return replay

    def _end(self) -> None:
        """Let go of the chain, and count what it compared."""
        chain, self._chain = self._chain, None
        if chain is not None:
            self._entries += chain.entries
            self._digests += chain.digests
            self._proven = max(self._proven, chain.proven)
            self._last = max(self._last, chain.last)
            self._close(chain)

    @staticmethod
    def _close(replay: Replay) -> None:
        replay.close()
        shutil.rmtree(replay.directory, ignore_errors=True)
