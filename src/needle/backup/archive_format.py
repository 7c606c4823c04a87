"""What an archive of the logs of a cluster's shards is made of (docs/adr/0076), below `archive/FOUNDING/` of a target:

- `SHARD/FIRST-LAST.log`: entries of a shard's log, with digests that its leader had at some indexes;
- `SHARD/INDEX.base`: a shard's whole state at an index, its files as pieces, from which the log goes on;
- `SHARD/INDEX.indexes`: the index files that the shard had when it was archived up to that index (docs/adr/0111);
- `AT.catalog`: which shards, collections and aliases there were at an instant;
- `target`: what this target is called where several are archived to at a time;
- `head`: up to which index, and which clock of its leader, each shard is archived.

Invariants: an entry of an index is the same in every file that has it; a changed bit of any file is noticed when it is
read. Pure.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from needle.backup.format import IndexFile, PieceRef
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import CorruptBackup, UnsupportedFormat
from needle.protocol.archive_calls import LoggedEntry
from needle.routing.topology import Topology

FORMAT: Final = 1
ARCHIVES: Final = "archive/"
HEAD: Final = "head"
TARGET: Final = "target"
LOG, BASE, CATALOG, INDEXES = ".log", ".base", ".catalog", ".indexes"
FORMERS_MAX: Final = 32
"""So many records of the catalog are named by each that follows, and by the head."""
T = TypeVar("T", bound=msgspec.Struct)


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """Entries of a shard's log, of consecutive indexes. points: (index, digest) as the shard's leader had it there."""

    format: int = FORMAT
    entries: list[LoggedEntry]
    points: list[tuple[int, str]]


class BaseFile(msgspec.Struct, frozen=True):
    """size: bytes. pieces: what it is made of, in order."""

    name: str
    size: int
    pieces: list[PieceRef]


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """A shard's state at an index. at: the clock when it was copied (microseconds since 1970, of the shard's leader).
    files: none for the state before the first entry. term: of the entry at that index, 0 if it is not known. behind:
    entries behind this one, up to the state, were never archived, for the log had been cut; the state's own index if
    none lack, -1 of releases that did not say. begins: what was before was pruned: nothing of it is missing."""

    format: int = FORMAT
    index: int
    at: int
    files: list[BaseFile]
    term: int = 0
    behind: int = -1
    begins: bool = False

    @property
    def since(self) -> int:
        """All of it was proposed before this clock."""
        return self.at if self.files else 0

    def pieces(self) -> list[PieceRef]:
        """Of all its files."""
        return [piece for file in self.files for piece in file.pieces]


class IndexSet(msgspec.Struct, frozen=True, kw_only=True):
    """A shard's index files, of collections and named vectors by their names in the shard. at: the archiver's clock
    when they were asked for. They need not be of the index that the file is called by: which documents one serves say
    their vectors."""

    format: int = FORMAT
    at: int
    collections: dict[str, list[IndexFile]]

    def files(self) -> list[IndexFile]:
        """Of all collections."""
        return [file for files in self.collections.values() for file in files]

    def pieces(self) -> list[PieceRef]:
        """Of all files."""
        return [piece for file in self.files() for piece in file.refs()]


class Catalog(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster at an instant; without keys. after: until then it was as the record before says. former: the instant
    of that record, 0 if there is none, -1 of releases that did not say. formers: of the last ones, ascending.
    begins: what was before was pruned, so that nothing of it is missing."""

    format: int = FORMAT
    at: int
    after: int
    topology: Topology
    former: int = -1
    formers: list[int] = []
    begins: bool = False

    @property
    def named(self) -> list[int]:
        """The instants of records before it."""
        return self.formers or ([self.former] if self.former > 0 else [])


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """shards: up to which index each is archived, and a clock of its leader before which nothing else was
    acknowledged. at: the archiver's clock before the catalog was asked for what is archived of it: which shards there
    were up to then is known. catalog: the instant of the newest record of the catalog, 0 of releases that did not
    say. records: of the last ones, ascending."""

    format: int = FORMAT
    shards: dict[int, tuple[int, int]]
    at: int
    catalog: int = 0
    records: list[int] = []

    @property
    def named(self) -> list[int]:
        """The instants of records that there are."""
        return self.records or ([self.catalog] if self.catalog else [])


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a target is called by nodes that keep their logs for it."""

    format: int = FORMAT
    name: str


class Span(NamedTuple):
    """A file of entries: their first and last index."""

    first: int
    last: int
    name: str


class _Version(msgspec.Struct):
    format: int


def told_of(topology: Topology) -> object:
    """What of a topology has to be archived when it changes."""
    shards = [(info.shard, info.retired) for info in topology.shards]
    return topology.collections, topology.aliases, topology.dropped, shards


def directory(founding: int, shard: int | None = None) -> str:
    """Of a cluster's archive, or of a shard's in it."""
    whole = f"{ARCHIVES}{founding:x}/"
    return whole if shard is None else f"{whole}{shard}/"


def chunk_name(founding: int, shard: int, first: int, last: int) -> str:
    """Of entries."""
    return f"{directory(founding, shard)}{first:016x}-{last:016x}{LOG}"


def base_name(founding: int, shard: int, index: int) -> str:
    """Of a state."""
    return f"{directory(founding, shard)}{index:016x}{BASE}"


def indexes_name(founding: int, shard: int, index: int) -> str:
    """Of a set of index files."""
    return f"{directory(founding, shard)}{index:016x}{INDEXES}"


def catalog_name(founding: int, at: int) -> str:
    """Of what the catalog said."""
    return f"{directory(founding)}{at:016x}{CATALOG}"


def encode(value: msgspec.Struct) -> bytes:
    """A line with the SHA-256 of the rest, which is MessagePack."""
    body = msgspec.msgpack.encode(value)
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def decode(name: str, data: bytes | None, kind: type[T]) -> T:
    """The file `name`. Raises CorruptBackup if it is missing or damaged, UnsupportedFormat if it is of a later
    release."""
    if data is None:
        raise CorruptBackup(f"{name} is missing", file=name)
    told, _, body = data.partition(b"\n")
    if told != hashlib.sha256(body).hexdigest().encode():
        raise CorruptBackup(f"{name} is damaged: its checksum differs", file=name)
    try:
        version = msgspec.msgpack.decode(body, type=_Version).format
        if version != FORMAT:
            raise UnsupportedFormat(
                f"{name} has format {version}, and this release reads {FORMAT}: use the release that wrote the "
                "archive, or a later one",
                file=name,
            )
        found: Any = msgspec.msgpack.decode(body, type=kind)
    except DECODE_ERRORS as error:
        raise CorruptBackup(f"{name} is damaged: {error}", file=name) from None
    made: T = found
    return made
