"""What is done to segment files other than building and searching them: chunks for peers, downloads, and deleting
what nobody needs.

Blocking: the keeper calls these in a thread. They do not know the manifest; what to keep is an argument.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence

from needle.base.errors import CorruptSegment, DiskFailed, InvalidArgument, NeedleError, StorageError, Unavailable
from needle.base.file_errors import shortage
from needle.base.model import CollectionSpec
from needle.base.runtime import Pool
from needle.shard.disk import ReplicaDisk, disk_errors, remove_file
from needle.shard.plan import PublishedSegment
from needle.shard.segments import page_cache
from needle.shard.segments.builder import TEMPORARY, give_back
from needle.shard.segments.format import verify_file
from needle.shard.segments.sealed import SealedSegment

CHUNK_BYTES = 1 << 20
"""The most that is read and sent at once."""
FILE_NAME = re.compile(r"(\d+)-(\d+)-(\d+)-[0-9a-f]{32}\.(seg|own)\Z")
TEMPORARY_NAME = re.compile(r"(\d+)-(\d+)-(\d+)[-.0-9a-z]*" + re.escape(TEMPORARY) + r"\Z")


def write_chunk(path: str, offset: int, chunk: bytes) -> None:
    """Part of a download; the first one, at offset 0, begins a new file."""
    try:
        with open(path, "r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(chunk)
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: str, error: OSError) -> NeedleError:
    return shortage(error, path) or StorageError(f"segment file {path} cannot be written: {error.strerror}")


def finish_download(
    part: str, path: str, segment: PublishedSegment, spec: CollectionSpec, disk: ReplicaDisk
) -> SealedSegment:
    """Verify a download, make it durable and open it. The temporary name is checked first, so that a damaged file
    never gets the final name."""
    held = verify_file(part).segment
    if held != segment:
        raise CorruptSegment(f"{os.path.basename(path)} holds {held}, expected {segment}")
    try:
        disk.sync(part)
        with open(part, "rb") as file:
            page_cache.drop(file.fileno())
        disk.rename(part, path)
        disk.sync(os.path.dirname(path))
    except OSError as error:
        raise _not_written(path, error) from error
    give_back(segment.size)
    return SealedSegment(path, segment, spec)


def delete(path: str) -> None:
    """Delete a file that may be gone already."""
    remove_file(path)


def delete_all(paths: Sequence[str]) -> int:
    """Delete files that may be gone already; how many were there."""
    there = [path for path in paths if os.path.exists(path)]
    for path in there:
        remove_file(path)
    return len(there)


def segment_files(directory: str, was_dropped: Callable[[int], bool]) -> dict[int, set[str]]:
    """The names of the files in a directory, by collection id. What a crash left behind goes: temporary files, and all
    of collections that were dropped. Called before anything is built or fetched there."""
    found: dict[int, set[str]] = {}
    with disk_errors(directory):
        names = sorted(os.listdir(directory))
    for name in names:
        match, temporary = FILE_NAME.match(name), TEMPORARY_NAME.match(name)
        if temporary or (match and was_dropped(int(match[1]))):
            remove_file(os.path.join(directory, name))
        elif match:
            found.setdefault(int(match[1]), set()).add(name)
    return found


class SegmentFiles:
    """Which segment files a directory holds, so that nobody has to list those of all collections to sweep one's."""

    def __init__(self) -> None:
        self.directory = ""
        self._names: dict[int, set[str]] = {}

    async def follow(self, current: Callable[[], str], was_dropped: Callable[[int], bool], pool: Pool) -> bool:
        """Know the files of the directory that counts now; whether it is another one than before. current: which that
        is: a snapshot brings another one at any moment, also while the former is listed, and that is then deleted."""
        before = self.directory
        while (directory := current()) != self.directory:
            try:
                names = await pool.run(segment_files, directory, was_dropped)
            except DiskFailed:
                if directory == current():
                    raise
            else:
                self.directory, self._names = directory, names
        return self.directory != before

    def added(self, path: str) -> None:
        """A file was built or fetched."""
        name = os.path.basename(path)
        if match := FILE_NAME.match(name):
            self._names.setdefault(int(match[1]), set()).add(name)

    def unneeded(self, collection_id: int, keep: Collection[str]) -> list[str]:
        """Paths of a collection's files but for the names in `keep`: they are to be deleted now."""
        names = self._names.pop(collection_id, set())
        if kept := {name for name in names if name in keep}:
            self._names[collection_id] = kept
        return [os.path.join(self.directory, name) for name in sorted(names - kept)]


def read_chunk(directory_of: Callable[[int], str | None], name: str, offset: int, length: int) -> bytes:
    """Bytes [offset, offset + length) of a segment file. directory_of: where a collection's files are.

    Raises InvalidArgument (not a segment's name, or a bad range), Unavailable (not here, which is no damage: replicas
    that have just come ask each other) or CorruptSegment (cannot be read).
    """
    match = FILE_NAME.match(name)
    if match is None or offset < 0 or not 0 < length <= CHUNK_BYTES:
        raise InvalidArgument(f"segment chunk {name!r} [{offset}, +{length}] is not allowed", field="name")
    directory = directory_of(int(match[1]))
    if directory is None:
        raise Unavailable(f"segment file {name} is not here: no such collection")
    try:
        with open(os.path.join(directory, name), "rb") as file:
            return os.pread(file.fileno(), length, offset)
    except FileNotFoundError:
        raise Unavailable(f"segment file {name} is not here") from None
    except OSError as error:
        raise shortage(error, name) or CorruptSegment(f"segment file {name}: {error.strerror}") from error
