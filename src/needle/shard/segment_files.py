"""What is done to segment files besides building and searching them: chunks for peers, downloads, and deleting
what nobody needs.

Blocking: the keeper calls these in a thread. They do not know the manifest; what to keep is an argument.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from needle.base.errors import CorruptSegment, InvalidArgument, StorageError
from needle.base.model import CollectionSpec
from needle.shard import page_cache
from needle.shard.disk import ReplicaDisk
from needle.shard.sealed_segment import SealedSegment, verify_file
from needle.shard.segment_builder import TEMPORARY, give_back
from needle.shard.segment_plan import PublishedSegment

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
        raise StorageError(f"segment file {path} cannot be written: {error.strerror}") from error


def finish_download(
    part: str, path: str, segment: PublishedSegment, spec: CollectionSpec, disk: ReplicaDisk
) -> SealedSegment:
    """Verify a download, make it durable and open it. The temporary name is checked first, so that a damaged file
    never gets the final name."""
    held, _ = verify_file(part)
    if held != segment:
        raise CorruptSegment(f"{os.path.basename(path)} holds {held}, expected {segment}")
    try:
        disk.sync(part)
        with open(part, "rb") as file:
            page_cache.drop(file.fileno())
        disk.rename(part, path)
        disk.sync(os.path.dirname(path))
    except OSError as error:
        raise StorageError(f"segment file {path} cannot be written: {error.strerror}") from error
    give_back(segment.size)
    return SealedSegment(path, segment, spec)


def delete(path: str) -> None:
    """Delete a file that may be gone already."""
    if os.path.exists(path):
        os.unlink(path)


def delete_temporary(directory: str, collection_id: int) -> None:
    """What a crash left behind; called before anything is built or fetched."""
    for name in sorted(os.listdir(directory)):
        match = TEMPORARY_NAME.match(name)
        if match and int(match[1]) == collection_id:
            os.unlink(os.path.join(directory, name))


def sweep(directory: str, collection_id: int, keep: set[str]) -> int:
    """Delete a collection's segment files but for the names in `keep`; how many were deleted."""
    deleted = 0
    for name in sorted(os.listdir(directory)):
        match = FILE_NAME.match(name)
        if match and int(match[1]) == collection_id and name not in keep:
            os.unlink(os.path.join(directory, name))
            deleted += 1
    return deleted


def read_chunk(directories: Mapping[int, str], name: str, offset: int, length: int) -> bytes:
    """Bytes [offset, offset + length) of a segment file. directories: by collection id.

    Raises InvalidArgument (not a segment's name, or a bad range) or CorruptSegment (not here).
    """
    match = FILE_NAME.match(name)
    if match is None or offset < 0 or not 0 < length <= CHUNK_BYTES:
        raise InvalidArgument(f"segment chunk {name!r} [{offset}, +{length}] is not allowed", field="name")
    directory = directories.get(int(match[1]))
    if directory is None:
        raise CorruptSegment(f"segment file {name} is not here: no such collection")
    try:
        with open(os.path.join(directory, name), "rb") as file:
            return os.pread(file.fileno(), length, offset)
    except OSError as error:
        raise CorruptSegment(f"segment file {name} is not here: {error.strerror}") from error
