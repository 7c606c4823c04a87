"""A replica's image as files: export, verify, install.

An image is `documents.db` (a copy of the SQLite file at one applied index), the segment files that exist
here, and `image.json`, which names the others with size and xxh3-128. A missing segment file is no error: the replica
that installs the image fetches or rebuilds it.

On disk a replica is `<directory>/CURRENT`, which names one `state-<n>` directory beside it. Installing stages a new
state directory, syncs it, swaps it in by renaming CURRENT, and syncs that: after a crash either the old or the new
state is there, and installing again works. It must not know Raft or what the tables mean.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import CorruptDocuments, CorruptSnapshot
from needle.base.file_errors import SHORTAGES
from needle.shard.disk import ReplicaDisk
from needle.shard.documents.sqlite_file import FILE_NAME

IMAGE_NAME: Final = "image.json"
CURRENT: Final = "CURRENT"
SEGMENTS: Final = "segments"
DAMAGED: Final = "DAMAGED"
"""In a state directory: its data was found damaged, and why. It is never opened again."""
_STATE: Final = "state-"

INSTALL_STEPS: Final = ("install-verified", "install-staged", "install-synced", "install-swapped")
"""Failpoints of an installation, in order."""


class ImageFile(msgspec.Struct, frozen=True, array_like=True):
    """One file of an image: name, size in bytes, xxh3-128 hex. Same shape as multiraft.ports.SnapshotFile."""

    name: str
    size: int
    checksum: str


class Image(msgspec.Struct, frozen=True):
    """What image.json holds."""

    format: int
    index: int
    term: int
    files: list[ImageFile]


def write_image(directory: str, index: int, term: int, segments: Sequence[str], disk: ReplicaDisk) -> list[ImageFile]:
    """Finish an image whose documents.db is in `directory`: link the segment files, write image.json. All its files."""
    names = [FILE_NAME]
    for path in segments:
        name = os.path.basename(path)
        disk.link(path, os.path.join(directory, name))
        names.append(name)
    files = [ImageFile(name, *disk.fingerprint(os.path.join(directory, name))) for name in names]
    disk.write(os.path.join(directory, IMAGE_NAME), msgspec.json.encode(Image(1, index, term, files)))
    return [*files, ImageFile(IMAGE_NAME, *disk.fingerprint(os.path.join(directory, IMAGE_NAME)))]


def verify_image(directory: str, disk: ReplicaDisk) -> Image:
    """The image in `directory`, every byte checked. Raises CorruptSnapshot saying which file and what to do."""
    remedy = "Nothing was installed; the leader sends it again"
    path = os.path.join(directory, IMAGE_NAME)
    if not disk.exists(path):
        raise CorruptSnapshot(f"{directory} holds no {IMAGE_NAME}. {remedy}", path=path)
    try:
        image = msgspec.json.decode(disk.read(path), type=Image)
    except DECODE_ERRORS as error:
        raise CorruptSnapshot(f"{path} is damaged ({error}). {remedy}", path=path) from None
    for file in image.files:
        here = os.path.join(directory, file.name)
        if os.path.basename(file.name) != file.name:
            raise CorruptSnapshot(f"{path} names a file outside of its directory: {file.name!r}. {remedy}", path=path)
        if not disk.exists(here):
            raise CorruptSnapshot(f"{here} is missing. {remedy}", path=here)
        size, checksum = disk.fingerprint(here)
        if (size, checksum) != (file.size, file.checksum):
            raise CorruptSnapshot(
                f"{here} is damaged: {size} bytes with checksum {checksum}, not {file.size} with {file.checksum}. "
                f"{remedy}",
                path=here,
            )
    if FILE_NAME not in {file.name for file in image.files}:
        raise CorruptSnapshot(f"{path} names no {FILE_NAME}. {remedy}", path=path)
    return image


def current_state(directory: str, disk: ReplicaDisk) -> str:
    """The state directory in use, made if the replica is new. Deletes what an interrupted installation left. Raises
    CorruptDocuments where it is not known which one is in use: the data may be in any of them."""
    disk.make_directory(directory)
    path = os.path.join(directory, CURRENT)
    if disk.exists(path):
        disk.sync(directory)  # whoever put it there may have died, or lacked a file handle, before it was durable
        name = disk.read(path).decode("ascii", "replace").strip()
        if not name.startswith(_STATE) or not disk.exists(os.path.join(directory, name)):
            raise CorruptDocuments(f"{path} is damaged: it names {name!r}, which is not there", path=path)
        for other in disk.names(directory):
            if other.startswith(_STATE) and other != name:
                disk.remove_tree(os.path.join(directory, other))
    else:
        for other in disk.names(directory):  # CURRENT is durable before there are documents
            if other.startswith(_STATE) and disk.exists(os.path.join(directory, other, FILE_NAME)):
                raise CorruptDocuments(f"{path} is missing, and {other} beside it has documents", path=path)
        name = f"{_STATE}1"
        _make_state(os.path.join(directory, name), disk)
        _point(directory, name, disk)
        disk.sync(directory)
    return os.path.join(directory, name)


def remove_older(state: str, disk: ReplicaDisk) -> None:
    """Delete the state directories that were in use before this one."""
    directory, name = os.path.split(state)
    for other in disk.names(directory):
        if _number(other) < _number(name):
            disk.remove_tree(os.path.join(directory, other))


def _number(name: str) -> int:
    """Of a state directory; for other names higher than any."""
    number = name.removeprefix(_STATE)
    return int(number) if name.startswith(_STATE) and number.isdecimal() else 1 << 62


def _next_state(directory: str, disk: ReplicaDisk) -> str:
    """A name for the state after the current one; what an attempt that failed may have left has the same."""
    numbers = [number for name in disk.names(directory) if (number := _number(name)) < 1 << 62]
    path = os.path.join(directory, CURRENT)
    current = _number(disk.read(path).decode("ascii", "replace").strip()) if disk.exists(path) else 0
    return f"{_STATE}{(current if current in numbers else max(numbers, default=0)) + 1}"


def _make_state(path: str, disk: ReplicaDisk) -> None:
    disk.remove_tree(path)
    disk.make_directory(os.path.join(path, SEGMENTS))


def _point(directory: str, name: str, disk: ReplicaDisk) -> None:
    disk.sync(directory)
    disk.write(os.path.join(directory, CURRENT + ".new"), name.encode())
    disk.rename(os.path.join(directory, CURRENT + ".new"), os.path.join(directory, CURRENT))


def install_image(directory: str, image_directory: str, disk: ReplicaDisk, failpoint: Callable[[str], None]) -> str:
    """Make the image the replica's state, atomically; returns the new state directory. Durable after a sync of
    `directory`, which is left to the caller: before that a crash may bring the old state back.

    The old state directory stays until `remove_older`, as the caller may still have it open. Raises DiskFull or
    TooManyFiles with nothing changed, so that it may be repeated.
    """
    image = verify_image(image_directory, disk)
    failpoint("install-verified")
    name = _next_state(directory, disk)
    target = os.path.join(directory, name)
    try:
        _make_state(target, disk)
        for file in image.files:
            source = os.path.join(image_directory, file.name)
            if file.name == FILE_NAME:  # it will be written to: the image must stay as it is
                disk.copy(source, os.path.join(target, FILE_NAME))
            else:
                disk.link(source, os.path.join(target, SEGMENTS, file.name))
        failpoint("install-staged")
        for file_name in disk.files(target):
            disk.sync(os.path.join(target, file_name))
        disk.sync(os.path.join(target, SEGMENTS))
        disk.sync(target)
        failpoint("install-synced")
        _point(directory, name, disk)
    except SHORTAGES:
        with suppress(*SHORTAGES):  # the next attempt, or the next start, does it
            disk.remove_tree(target)  # half a state must not take the room that is left
        raise
    return target
