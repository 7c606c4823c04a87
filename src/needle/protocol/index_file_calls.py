"""What a backup and a restore ask of a shard's leader about index files (docs/adr/0093).

| method | takes | answers |
|---|---|---|
| index_files | IndexFilesCall | IndexFilesAnswer |
| index_bytes | IndexBytesCall | the bytes |
| index_hashes | IndexHashesCall | the hashes, 8 bytes each, little-endian |
| index_hold | IndexHoldCall | b"" |
| index_put | IndexPutCall | b"" |
| index_adopt | IndexAdoptCall | IndexAdoptAnswer |

A collection is called as it is in the shard. Invariant: nothing of this changes what documents there are; a file is
only taken if each vector that it is to serve is in it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from needle.base.ids import GroupId

INDEX_FILES: Final = "index_files"
INDEX_BYTES: Final = "index_bytes"
INDEX_HASHES: Final = "index_hashes"
INDEX_HOLD: Final = "index_hold"
INDEX_PUT: Final = "index_put"
INDEX_ADOPT: Final = "index_adopt"
ADOPTED_SINCE: Final = 5
"""Since this version of the cluster: nodes of a release before would take a node of which no document is left for
another one's."""
BYTES_MAX: Final = 1 << 20
"""Of a file, in one call."""
HASHES_MAX: Final = 8192
HOLD_SECONDS_MAX: Final = 60.0
"""Nobody keeps a leader from building for longer without asking again."""


class IndexFilesCall(msgspec.Struct, frozen=True, array_like=True):
    """The published index files of a collection that are here."""

    group: GroupId
    collection: str


class IndexFileInfo(msgspec.Struct, frozen=True, array_like=True):
    """size: bytes. checksum: of the file as docs/segments.md says. nodes: how many vectors it has. rows: how many
    documents that are there now have theirs in it."""

    checksum: str
    size: int
    nodes: int
    rows: int


class IndexFilesAnswer(msgspec.Struct, frozen=True, array_like=True):
    """In the order of their ordinals."""

    files: list[IndexFileInfo]


class IndexBytesCall(msgspec.Struct, frozen=True, array_like=True):
    """Bytes [offset, offset + length) of one; there may come fewer."""

    group: GroupId
    collection: str
    checksum: str
    offset: int
    length: int


class IndexHashesCall(msgspec.Struct, frozen=True, array_like=True):
    """Of the vectors of nodes from `first` on, HASHES_MAX at most; none behind the last one."""

    group: GroupId
    collection: str
    checksum: str
    first: int


class IndexHoldCall(msgspec.Struct, frozen=True, array_like=True):
    """Build nothing in the collection for so many seconds: files will come. 0: go on."""

    group: GroupId
    collection: str
    seconds: float


class IndexPutCall(msgspec.Struct, frozen=True, array_like=True):
    """A part of a file that is to be adopted, of `size` bytes in all. Parts come in order; offset 0 begins again."""

    group: GroupId
    collection: str
    checksum: str
    size: int
    offset: int
    data: bytes


class IndexAdoptCall(msgspec.Struct, frozen=True, array_like=True):
    """Serve all vectors that no file serves by the one that was put here."""

    group: GroupId
    collection: str
    checksum: str
    timeout: float = 60.0


class IndexAdoptAnswer(msgspec.Struct, frozen=True, array_like=True):
    """rows: how many documents the file serves; 0 if there was none that needed it."""

    rows: int
