"""The files of bulk loads that lie on this replica and wait for the log entry that names them (docs/adr/0119).

They are in `bulk/` of the replica's directory, beside its states: a snapshot neither brings nor takes them. Invariants:
- a file has its name only once all of its bytes were compared with the checksum in it, and it is durable;
- while a collection is empty in the state that is applied here, an entry that names its file may still come: so its
  files stay. Once it is not empty no such entry does anything, and once that is checkpointed none is replayed;
- a collection has the rows of LOADS_MAX loads at most, so that what is kept is bounded. None makes place for another
  one: an entry that names it may be in a log already. What a committed entry names is taken in any case.

Blocking, from any thread. It must not know the log, nor where files come from.
"""

from __future__ import annotations

import os
import re
import threading
from typing import Final, NamedTuple

from needle.base.errors import InvalidArgument, Unavailable, invalid
from needle.base.file_errors import os_failure
from needle.shard.bulk.rows_file import checksum_of
from needle.shard.disk import ReplicaDisk, remove_file

DIRECTORY: Final = "bulk"
PART: Final = ".part"
FILES_MAX: Final = 4096
"""Of one collection."""
LOADS_MAX: Final = 3
"""Whose rows wait for one collection: of the load that is made again, for another map or of another source, and of
those that were broken off before."""
_ORDINAL: Final = "(?:0|[1-9][0-9]{0,18})"
"""Bounded, for a file's name is, and so are the digits that int() takes."""
_NAME: Final = re.compile(rf"([1-9][0-9]{{0,18}})-(rows|{_ORDINAL}-{_ORDINAL})-([0-9a-f]{{32}})\.(rows|seg)")


class StagedName(NamedTuple):
    """What a file's name says."""

    collection_id: int
    rows: bool
    checksum: str


def rows_name(collection_id: int, checksum: str) -> str:
    """Of the file of documents."""
    return f"{collection_id}-rows-{checksum}.rows"


def read_name(name: str) -> StagedName:
    """Raises InvalidArgument: it becomes part of a path."""
    match = _NAME.fullmatch(name)
    if match is None or (match[2] == "rows") != (match[4] == "rows"):
        raise invalid("name", name[:80], "a file of rows, or an index file")
    return StagedName(int(match[1]), match[2] == "rows", match[3])


class Awaited(NamedTuple):
    """A file that the next entry needs and that is not here."""

    collection_id: int
    checksum: str
    size: int
    index_file: str = ""
    """Its name, if it is not the one of rows."""

    @property
    def name(self) -> str:
        """Of the file."""
        return self.index_file or rows_name(self.collection_id, self.checksum)


class StagedFiles:
    """Of one replica."""

    def __init__(self, directory: str, disk: ReplicaDisk) -> None:
        self._directory, self._disk = os.path.join(directory, DIRECTORY), disk
        self._lock = threading.Lock()
        self.awaited: Awaited | None = None
        """Set by apply, which cannot go on without it."""
        self.lost = ""
        """The checksum of rows that no replica has any more: only a snapshot brings them."""

    def path(self, name: str) -> str:
        """Where a file of that name is, or would be. Raises InvalidArgument."""
        read_name(name)
        return os.path.join(self._directory, name)

    def names(self) -> list[str]:
        """Of the whole ones."""
        return [name for name in self._all() if _NAME.fullmatch(name)]

    def _all(self) -> list[str]:
        return self._disk.names(self._directory) if self._disk.exists(self._directory) else []

    def has(self, name: str) -> bool:
        """Whether all of it is here."""
        return self._disk.exists(self.path(name))

    def sound(self, name: str) -> bool:
        """The same, and its bytes are still those of its checksum; one that is damaged goes."""
        if not self.has(name):
            return False
        path = self.path(name)
        if checksum_of(path) == read_name(name).checksum:
            return True
        remove_file(path)
        return False

    def here(self, name: str) -> int:
        """How many bytes of it are here; -1: all."""
        if self.has(name):
            return -1
        try:
            return os.path.getsize(self.path(name) + PART)
        except FileNotFoundError:
            return 0

    def put(self, name: str, size: int, offset: int, data: bytes) -> int:
        """Take a part, in order; how many bytes are here, -1 once all of it is. Raises InvalidArgument for a file of
        one load too many; Unavailable where an earlier part is missing, or for a file with another checksum than its
        name's, of which nothing is kept: a power cut may have taken what came before."""
        with self._lock:
            if self.has(name):
                return -1
            there, part = self.here(name), self.path(name) + PART
            decided = self.awaited is not None and self.awaited.name == name
            if not there and not decided:
                self._check_room(name)
            self._disk.make_directory(self._directory)
            if there < offset or offset + len(data) > size:
                raise Unavailable(f"{there} bytes of {name} are here: go on there", here=there)
            try:
                with open(part, "r+b" if there else "wb") as file:
                    file.seek(offset)
                    file.write(data)
                    file.truncate()
            except OSError as error:
                raise os_failure(error, part) from error
            return self._finish(name, part) if offset + len(data) == size else offset + len(data)

    def _check_room(self, name: str) -> None:
        asked, others = read_name(name), {read_name(one.removesuffix(PART)) for one in self._ours()}
        mine = {one for one in others if one.collection_id == asked.collection_id} - {asked}
        if len(mine) >= FILES_MAX:
            raise invalid("name", name, f"one of {FILES_MAX} files of a collection")
        if asked.rows and sum(one.rows for one in mine) >= LOADS_MAX:
            raise InvalidArgument(
                f"{LOADS_MAX} other bulk loads were prepared for this collection, and their files wait: drop the "
                "collection, make it again, and load into that",
                field="collection",
            )

    def _finish(self, name: str, part: str) -> int:
        if checksum_of(part) != read_name(name).checksum:
            remove_file(part)
            raise Unavailable(f"what came of {name} has another checksum than its name: send it again", here=0)
        self._disk.sync(part)
        self._disk.rename(part, self.path(name))
        self._disk.sync(self._directory)
        self._disk.sync(os.path.dirname(self._directory))  # in which this directory may be new
        return -1

    def read(self, name: str, offset: int, length: int) -> bytes | None:
        """Bytes [offset, offset + length) for another replica; None if it is not here."""
        path = self.path(name)
        try:
            with open(path, "rb") as file:
                return os.pread(file.fileno(), length, offset)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise os_failure(error, path) from error

    def give(self, name: str, directory: str) -> None:
        """Have an index file where searches use it, too: here it stays for whoever fetches it, and for this replica, if
        it is killed before the entry is stored. Nothing if it is not here."""
        path, target = self.path(name), os.path.join(directory, name)
        if self._disk.exists(path) and not self._disk.exists(target):
            self._disk.link(path, target)
            self._disk.sync(directory)

    def _ours(self) -> list[str]:
        """Names, also of parts."""
        return [name for name in self._all() if _NAME.fullmatch(name.removesuffix(PART))]

    def collections(self) -> set[int]:
        """Those that files are here of, also parts of some."""
        return {read_name(name.removesuffix(PART)).collection_id for name in self._ours()}

    def forget(self, collection_id: int, given: str = "") -> None:
        """Delete its files. given: the directory into which `give` linked them, if they go there, too: the collection
        was dropped, and whoever deletes its index files may never have heard of these."""
        with self._lock:
            for name in self._ours():
                if read_name(name.removesuffix(PART)).collection_id == collection_id:
                    if given:
                        remove_file(os.path.join(given, name))
                    remove_file(os.path.join(self._directory, name))
