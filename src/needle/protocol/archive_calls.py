"""What an archive of the log asks of a shard's leader, and what backups tell any node (docs/adr/0076).

| method | takes | answers |
|---|---|---|
| log | LogCall | LogAnswer |
| image | ImageCall | ImageAnswer |
| image_chunk | ImageChunkCall | the bytes |
| backed_up | BackedUpCall | b"" |
"""

from __future__ import annotations

from typing import Final

import msgspec

from needle.base.ids import GroupId

LOG: Final = "log"
IMAGE: Final = "image"
IMAGE_CHUNK: Final = "image_chunk"
BACKED_UP: Final = "backed_up"

BEGUN_SECONDS: Final = 3600.0
"""So long an archive is one that began: for as long nodes keep their logs for one that they only expect."""


class LoggedEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An entry of a log. data: b"" where it has no command."""

    index: int
    term: int
    data: bytes


class LogCall(msgspec.Struct, frozen=True, array_like=True):
    """The committed entries behind the index `after`, about bytes_max of them at most. kept, until: up to where the
    archive has the log durably, and by which clock of a leader that was all there was (microseconds since 1970).
    target: where the archive is, by a name of its own: each has a place, so that none loses its hold on the log by what
    another one has. follower: a replica that does not lead answers, too, of what it has applied: a leader that came
    by a snapshot lacks what is behind it. begun: the archive of this shard began there within the last hour: it is not
    the one that a node expects which was started before (multiraft/archives.py)."""

    group: GroupId
    after: int
    kept: int
    until: int
    bytes_max: int
    timeout: float = 10.0
    target: str = ""
    follower: bool = False
    begun: bool = False


class LogAnswer(msgspec.Struct, frozen=True, array_like=True):
    """upto: everything that was acknowledged before the clock of the leader was `until` has this index or a lower one.
    entries: None if the log does not go back to `after`. digest: of all documents at the index digest_at. term: of the
    entry `after`, 0 if the log does not say. refused: which of the entries are bulk loads that this replica knows to
    have changed nothing."""

    upto: int
    until: int
    entries: list[LoggedEntry] | None
    digest_at: int
    digest: str
    term: int = 0
    refused: list[int] = []


class ImageCall(msgspec.Struct, frozen=True, array_like=True):
    """A copy of the shard's state at the index `after` or later, from which its log goes on."""

    group: GroupId
    after: int
    timeout: float = 60.0


class ImageFile(msgspec.Struct, frozen=True, array_like=True):
    """size: bytes. checksum: xxh3-128, hex."""

    name: str
    size: int
    checksum: str


class ImageAnswer(msgspec.Struct, frozen=True, array_like=True):
    """snapshot: what it is called. at: the leader's clock when it was there: it holds nothing that was proposed
    later."""

    snapshot: str
    index: int
    term: int
    at: int
    files: list[ImageFile]


class ImageChunkCall(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of one of its files; there may come fewer."""

    group: GroupId
    snapshot: str
    name: str
    offset: int
    length: int


class BackedUpCall(msgspec.Struct, frozen=True, array_like=True):
    """As catalog_commands.NoteBackup, by the clock of whoever made the backup: a node takes nothing that is later than
    its own."""

    backup: int = 0
    archive: int = 0
    timeout: float = 10.0
