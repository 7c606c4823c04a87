"""What a batch does to one collection: gathered by `batch`, written by `documents`, shown to searches by
`live_collection`.

It must not know SQLite, faiss or commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pyroaring import BitMap

from needle.shard.documents.records import (
    DEAD_DOCUMENT,
    DEAD_VECTOR,
    CollectionRecord,
    DocRef,
    DocumentRow,
    LoadedBlock,
    WriteSet,
    row_id,
)
from needle.shard.index_change import IndexState, encode_index_state
from needle.shard.plan import PublishedSegment


@dataclass
class CollectionChange:
    """What a batch does to one collection incarnation. refs: every id looked up or written; None: absent. rows: new
    versions of documents, with consecutive ordinals, but for those of a named vector (named.py). kept: (ordinal, that
    of its vector) of those that have the vector of an earlier version. vectors: of the others. dead: ordinals of
    versions that are no more. held: those of them that an open pin may see, because they have ordinals below `pinned`
    (pins.Pins.below). hidden: by move, the ordinals that are invisible after it; marked: that will be (before.Stored);
    None: unchanged. indexing: what the log says of its index, None: unchanged.
    first_expiry: the earliest instant at which something that it wrote expires, 0 for none. loaded: as in WriteSet."""

    record: CollectionRecord
    first_ordinal: int
    created: bool
    refs: dict[str, DocRef | None] = field(default_factory=dict)
    written: dict[str, None] = field(default_factory=dict)
    rows: list[DocumentRow] = field(default_factory=list)
    vectors: list[bytes | memoryview] = field(default_factory=list)
    dead: list[int] = field(default_factory=list)
    pinned: int = 0
    held: list[tuple[str, DocRef]] = field(default_factory=list)
    dead_vectors: list[int] = field(default_factory=list)
    kept: list[tuple[int, int]] = field(default_factory=list)
    manifest: list[PublishedSegment] | None = None
    published: list[PublishedSegment] = field(default_factory=list)
    indexing: IndexState | None = None
    hidden: dict[int, BitMap] | None = None
    marked: dict[int, BitMap] | None = None
    touched: bool = False
    first_expiry: int = 0
    loaded: Callable[[], Iterator[LoadedBlock]] | None = None

    @property
    def ordinals(self) -> Sequence[int]:
        """Of `rows`."""
        if not self.record.spec.of:
            return range(self.first_ordinal, self.first_ordinal + len(self.rows))
        base = row_id(self.record.id, 0)
        return [row[0] - base for row in self.rows]

    def version(self, id_: str, ref: DocRef, metadata: bytes) -> None:
        """The document is of this version now."""
        self.refs[id_] = ref
        self.rows.append((row_id(self.record.id, ref.ordinal), id_, ref.version, metadata, ref.vector))
        self.written[id_] = None

    def dies(self, id_: str, old: DocRef) -> None:
        """That version of a document is no more."""
        self.dead.append(old.ordinal)
        if old.ordinal < self.pinned:
            self.held.append((id_, old))

    def expire(self, instants: Iterable[int]) -> None:
        """Documents with these were written; what is not above 0 is none."""
        earliest = min((instant for instant in instants if instant > 0), default=0)
        if earliest and (not self.first_expiry or earliest < self.first_expiry):
            self.first_expiry = earliest

    def write_to(self, out: WriteSet) -> None:
        """Add it to what the batch writes."""
        collection_id, refs = self.record.id, self.refs
        out.collections[collection_id] = self.record
        if self.manifest is not None:
            out.manifests[collection_id] = self.manifest
        if self.indexing is not None:
            out.indexing[collection_id] = encode_index_state(self.indexing)
        if self.rows:
            out.documents.extend(self.rows)
            out.first_rows[collection_id] = self.rows[0][0]
        out.vectors.extend(self._vector_rows())
        out.loaded = out.loaded or self.loaded
        base = row_id(collection_id, 0)
        if self.dead == self.dead_vectors:
            out.graves.extend((base | ordinal, DEAD_DOCUMENT | DEAD_VECTOR) for ordinal in self.dead)
        else:
            out.graves.extend((base | ordinal, DEAD_DOCUMENT) for ordinal in self.dead)
            out.graves.extend((base | ordinal, DEAD_VECTOR) for ordinal in self.dead_vectors)
        died = out.at.index
        out.kept.extend(
            (collection_id, id_, old.ordinal, old.vector, old.version, old.expires, died) for id_, old in self.held
        )
        out.ids.update({(collection_id, id_): refs[id_] for id_ in self.written})

    def _vector_rows(self) -> list[tuple[int, bytes | memoryview]]:
        width = self.record.spec.vector_bytes
        kept = {ordinal for ordinal, _ in self.kept}
        base = row_id(self.record.id, 0)
        rows = iter([row for row in self.rows if row[0] - base not in kept] if kept else self.rows)
        return [
            (next(rows)[0], block if len(block) == width else memoryview(block)[start : start + width])
            for block in self.vectors
            for start in range(0, len(block), width)
        ]
