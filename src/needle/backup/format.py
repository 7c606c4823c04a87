"""What a backup is made of: pieces of documents named by their SHA-256, and a manifest that names them (docs/adr/0066).

Invariants: equal documents give equal pieces, wherever the scan's pages ended, so that a later backup finds them again;
a changed bit of any file is noticed when it is read. Pure.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
import xxhash

from needle.base.decoding import DECODE_ERRORS
from needle.base.dtypes import DType
from needle.base.errors import CorruptBackup, UnsupportedFormat
from needle.base.model import CollectionSpec, VectorSpec
from needle.protocol.calls import DocumentBatch
from needle.protocol.named import Named

FORMAT: Final = 1
NAMED_FORMAT: Final = 2
"""Of a backup that has named vectors: an earlier release would leave them out."""
BITS_FORMAT: Final = 3
"""Of one that has vectors of bits: an earlier release knows neither their type nor their metric, and would take the
manifest for damaged."""
PIECE_BYTES: Final = 64 << 10
"""Pieces have about so many bytes: a changed document ships so many, and each piece is a file and an fsync."""
PIECE_BYTES_MAX: Final = 4 << 20
ROW_BYTES: Final = 128
"""What a document is taken to have beside its vector, to say how many are a piece."""
MANIFESTS: Final = "backups/"
PIECES: Final = "pieces/"
SUFFIX: Final = ".manifest"
_HEAD: Final = struct.Struct("<IIIQ")
_NAMED: Final = struct.Struct("<II")


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """Documents in the order of their ids, as columns. vectors: rows of float32 bytes. expires, named: as in
    DocumentBatch; where there is none the file has no place for it, as those of earlier releases."""

    ids: list[str]
    metadata: list[bytes]
    vectors: bytes
    expires: list[int] = []
    named: list[Named] = []


class PieceRef(msgspec.Struct, frozen=True, array_like=True):
    """A piece by its SHA-256, with its size in bytes and its documents."""

    sha256: str
    size: int
    documents: int

    @property
    def name(self) -> str:
        """Its file."""
        return f"{PIECES}{self.sha256[:2]}/{self.sha256}"


class IndexFile(msgspec.Struct, frozen=True, kw_only=True):
    """An index file of a shard, by its own checksum (docs/segments.md). nodes: vectors that it has. parts: what it is
    made of, in order. hashes: 8 bytes for each of its vectors, by which its documents are found (vector_hashes.py)."""

    shard: int
    checksum: str
    size: int
    nodes: int
    parts: list[PieceRef]
    hashes: list[PieceRef]

    def refs(self) -> list[PieceRef]:
        """All that has to be there."""
        return [*self.parts, *self.hashes]


class Longest(msgspec.Struct, frozen=True, kw_only=True):
    """The largest that documents have, in bytes. document: metadata and all vectors, as float32."""

    id: int = 0
    metadata: int = 0
    document: int = 0


class CollectionBackup(msgspec.Struct, frozen=True, kw_only=True):
    """A collection. fields: declared indexes. documents: how many, of which `expiring` expire some day. digest: of its
    contents (Contents). cuts: each shard and the index of its log at which the documents are. indexes: index files, in
    the order of shards and of the ordinals that they serve; a restore is right without them (docs/adr/0093). vectors:
    what its named vectors are like. sparse: the fields that are sparse vectors, of which an earlier release restores
    the fields alone. longest: which limits a cluster needs; None: made by a release that did not say it. named_indexes:
    index files of named vectors, as `indexes`, by name; an earlier release passes over them. repeats: documents that
    have the id of another one, under another shard key; None: that is not known."""

    spec: CollectionSpec
    fields: tuple[str, ...]
    documents: int
    expiring: int
    digest: str
    cuts: list[tuple[int, int]]
    pieces: list[PieceRef]
    indexes: list[IndexFile] = []
    vectors: dict[str, VectorSpec] = {}
    sparse: tuple[str, ...] = ()
    longest: Longest | None = None
    named_indexes: dict[str, list[IndexFile]] = {}
    repeats: int | None = None

    def index_files(self) -> list[IndexFile]:
        """Of all its vectors."""
        return [*self.indexes, *(file for files in self.named_indexes.values() for file in files)]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A backup. began: it holds all that was acknowledged before; RFC 3339, as is `ended`. release: of what made it.
    cluster: the founding of its topology, in hex. settings: how the cluster was made, to be read by people."""

    id: str
    format: int
    began: str
    ended: str
    release: str
    cluster: str
    settings: Any
    collections: list[CollectionBackup]
    aliases: dict[str, str]

    @property
    def documents(self) -> int:
        """Of all collections."""
        return sum(one.documents for one in self.collections)

    def pieces(self) -> Iterator[PieceRef]:
        """Of all collections."""
        for one in self.collections:
            yield from one.pieces

    def refs(self) -> Iterator[PieceRef]:
        """All that has to be there: pieces, and parts of index files."""
        yield from self.pieces()
        for one in self.collections:
            for file in one.index_files():
                yield from file.refs()


def format_of(collections: list[CollectionBackup]) -> int:
    """The least that says all of it."""
    types = {one.spec.dtype for one in collections}.union(
        *({of.dtype for of in one.vectors.values()} for one in collections)
    )
    if DType.BIT in types:
        return BITS_FORMAT
    return NAMED_FORMAT if any(one.vectors for one in collections) else FORMAT


class _Version(msgspec.Struct):
    format: int


def manifest_name(backup: str) -> str:
    """The file of a backup's manifest."""
    return f"{MANIFESTS}{backup}{SUFFIX}"


def encode_manifest(manifest: Manifest) -> bytes:
    """A line with the SHA-256 of the rest, which is JSON."""
    body = msgspec.json.encode(manifest)
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def decode_manifest(name: str, data: bytes) -> Manifest:
    """Raises CorruptBackup, or UnsupportedFormat for one of a later release."""
    told, _, body = data.partition(b"\n")
    if told != hashlib.sha256(body).hexdigest().encode():
        raise CorruptBackup(f"{name} is damaged: its checksum differs", file=name)
    try:
        version = msgspec.json.decode(body, type=_Version).format
        if version not in (FORMAT, NAMED_FORMAT, BITS_FORMAT):
            raise UnsupportedFormat(
                f"{name} has format {version}, and this release reads up to {BITS_FORMAT}: use the release that made "
                "the backup, or a later one",
                file=name,
            )
        return msgspec.json.decode(body, type=Manifest)
    except DECODE_ERRORS as error:
        raise CorruptBackup(f"{name} is damaged: {error}", file=name) from None


def encode_piece(piece: Piece) -> tuple[PieceRef, bytes]:
    """The piece as a file."""
    data = msgspec.msgpack.encode(piece if piece.named else msgspec.structs.astuple(piece)[:-1])
    return PieceRef(hashlib.sha256(data).hexdigest(), len(data), len(piece.ids)), data


def decode_piece(ref: PieceRef, data: bytes) -> Piece:
    """Raises CorruptBackup."""
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise CorruptBackup(f"{ref.name} is damaged: its checksum differs", file=ref.name)
    try:
        piece = msgspec.msgpack.decode(data, type=Piece)
    except DECODE_ERRORS as error:
        raise CorruptBackup(f"{ref.name} is damaged: {error}", file=ref.name) from None
    if len(piece.ids) != ref.documents:
        raise CorruptBackup(f"{ref.name} has {len(piece.ids)} documents, not {ref.documents}", file=ref.name)
    return piece


class Contents:
    """Counts documents and sums their hashes: equal for equal documents, whatever shard, order and version they have.
    lasting: only documents count that do not expire up to this instant (microseconds since 1970); 0 for all.
    repeats: documents with the id of the one before them."""

    def __init__(self, lasting: int = 0) -> None:
        self.documents = self.expiring = self.repeats = 0
        self._last = ""
        self._lasting = lasting
        self._sum = 0
        self._id = self._metadata = self._document = 0

    @property
    def longest(self) -> Longest:
        """The largest that these documents have."""
        return Longest(id=self._id, metadata=self._metadata, document=self._document)

    @property
    def digest(self) -> str:
        """32 hex digits."""
        return f"{self._sum:032x}"

    def add(self, rows: Piece | DocumentBatch) -> None:
        """Documents with their vectors."""
        width = len(rows.vectors) // max(1, len(rows.ids))
        view, total, named = memoryview(rows.vectors), 0, by_row(rows.named)
        for at, name in enumerate(rows.ids):
            expires = rows.expires[at] if rows.expires else 0
            if expires and expires <= self._lasting:
                continue
            self.expiring += expires > 0
            self.documents += 1
            self.repeats += name == self._last
            self._last = name
            vector, others = view[at * width : (at + 1) * width], named.get(at, {})
            data, metadata = name.encode(), rows.metadata[at]
            size = len(metadata) + len(vector) + (sum(map(len, others.values())) if others else 0)
            self._id, self._metadata = max(self._id, len(data)), max(self._metadata, len(metadata))
            self._document = max(self._document, size)
            total += _hash(data, metadata, vector, expires, others)
        self._sum = (self._sum + total) % (1 << 128)


def by_row(named: list[Named]) -> dict[int, dict[str, memoryview]]:
    """The named vectors of those documents of a batch that have some."""
    found: dict[int, dict[str, memoryview]] = {}
    for one in named:
        for row, vector in zip(one.rows, one.each(), strict=True):
            found.setdefault(row, {})[one.vector] = vector
    return found


def _hash(name: bytes, metadata: bytes, vector: memoryview, expires: int, named: Mapping[str, memoryview]) -> int:
    """Of one document, all of it at once: where parts are summed apart, as replicas do by ordinals, two documents could
    have changed their vectors."""
    head = _HEAD.pack(len(name), len(metadata), len(vector), expires)
    others = [
        part for one in sorted(named) for part in (_NAMED.pack(len(one), len(named[one])), one.encode(), named[one])
    ]
    return xxhash.xxh3_128_intdigest(b"".join((head, name, metadata, vector, *others)))


class Cutter:
    """Cuts a stream of documents into pieces. Where one ends its last id says, so that pieces come out equal before and
    behind what has changed."""

    def __init__(self, dimensions: int) -> None:
        self._width = 4 * dimensions
        self._every = max(1, PIECE_BYTES // (self._width + ROW_BYTES))
        self._begin()

    def _begin(self) -> None:
        self._ids: list[str] = []
        self._metadata: list[bytes] = []
        self._vectors: list[bytes] = []
        self._expires: list[int] = []
        self._named: dict[str, tuple[list[int], list[memoryview]]] = {}
        self._size = 0

    def cut(self, batch: DocumentBatch) -> Iterator[Piece]:
        """Take a page; the pieces that are whole by now."""
        named = by_row(batch.named)
        for at, name in enumerate(batch.ids):
            for one, vector in named.get(at, {}).items():
                places, block = self._named.setdefault(one, ([], []))
                places.append(len(self._ids))
                block.append(vector)
                self._size += len(vector)
            self._ids.append(name)
            self._metadata.append(batch.metadata[at])
            self._vectors.append(batch.vectors[at * self._width : (at + 1) * self._width])
            self._expires.append(batch.expires[at] if batch.expires else 0)
            self._size += self._width + len(batch.metadata[at]) + len(name)
            if self._size >= PIECE_BYTES_MAX or xxhash.xxh3_64_intdigest(name.encode()) % self._every == 0:
                yield self._piece()

    def rest(self) -> Iterator[Piece]:
        """What is left, if anything."""
        if self._ids:
            yield self._piece()

    def _piece(self) -> Piece:
        expires = self._expires if any(self._expires) else []
        named = [Named(one, places, b"".join(block)) for one, (places, block) in sorted(self._named.items())]
        made = Piece(self._ids, self._metadata, b"".join(self._vectors), expires, named)
        self._begin()
        return made
