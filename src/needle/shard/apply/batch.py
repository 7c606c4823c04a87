"""One run of consecutive log entries: what they change, gathered into one write set.

The primitives that commands are made of (`execute`, `moving`). Deterministic: the write set depends on the state and
the entries only, never on how entries are grouped into batches.

It must not know SQLite or faiss: documents are looked up through `find`, and changes leave as a `WriteSet`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from pyroaring import BitMap

from needle.base.errors import CollectionNotFound, Internal
from needle.base.model import CollectionSpec, IndexParams
from needle.protocol.commands import AS_IT_IS, ById, Command, Patch, UpdateVectors, inner, is_by_id
from needle.shard.apply.before import Collections, Find, Stored
from needle.shard.apply.changes import CollectionChange
from needle.shard.apply.holdings import Fence, Holdings, Transfer, encode_holdings, moved
from needle.shard.apply.named import ByVector, follow_and_tell
from needle.shard.apply.room import check_room as check_room
from needle.shard.apply.room import instant_of as instant_of
from needle.shard.apply.sessions import SessionTable
from needle.shard.catalog_known import encode_known
from needle.shard.documents.digest import MODULUS, document_sum, rehashed
from needle.shard.documents.records import AppliedAt, CollectionRecord, DocRef, StoredDocument, WriteSet, row_id
from needle.shard.effects import ABSENT, DELETED, WRITTEN, Effect
from needle.shard.index_change import AS_MADE, IndexState
from needle.shard.pins import encode_pins
from needle.shard.plan import PublishedSegment

NOTHING: Final[Mapping[Any, Any]] = {}


class Batch:
    """One run of consecutive log entries. Call `prefetch`, then `execute.execute` for each, then `write_set`."""

    def __init__(
        self, at: AppliedAt, collections: Collections, sessions: SessionTable, find: Find, stored: Stored | None = None
    ) -> None:
        self.stored = stored or Stored()
        self.fence = self.stored.fence
        self.pins = self.stored.pins
        self.catalog = self.stored.catalog
        self._next_id = at.next_collection_id
        self._before = collections
        self._vector_names: dict[str, list[str]] = {}
        """By collection, if it was asked for."""
        self._records: dict[str, CollectionRecord | None] = {}
        """What this batch changed; None: dropped."""
        self.sessions = sessions
        self._find = find
        self.changes: dict[int, CollectionChange] = {}
        self.dropped: list[int] = []
        self._read: Mapping[int, StoredDocument] = NOTHING
        """By ordinal: what the command in hand needs."""
        self._reads = False
        """Whether it needs that."""
        self.effects: list[Effect] = []
        self.telling = 0
        """The entry whose writes are changes; 0 for one whose writes are not: those of moves."""
        self.copies_expired = False
        """Whether copies of another shard's documents, which this one does not own yet, were deleted for their age."""

    def prefetch(self, commands: Sequence[Command | None]) -> None:
        """Look up the ids of all commands with few queries."""
        wanted: dict[int, dict[str, None]] = {}
        name, names = "", dict[str, None]()  # neighbours are mostly of one collection
        for command in map(inner, commands):
            if is_by_id(command):
                if command.collection != name:
                    name, names = command.collection, {}
                    record = self.find_record(name)
                    if record is not None and record.documents:
                        names = wanted.setdefault(self.change(record).record.id, names)
                names.update(dict.fromkeys(command.ids))
        for collection_id, ids in wanted.items():
            self.lookup(self.changes[collection_id], list(ids))

    def lookup(self, change: CollectionChange, ids: Sequence[str]) -> None:
        """Have `change.refs` know all of `ids`."""
        missing = [id_ for id_ in ids if id_ not in change.refs]
        if not missing:
            return
        for record in self.vectors(change.record):
            if record.documents:
                self.lookup(self.change(record), ids)
        found = {} if change.created else self._find(change.record.id, missing)
        change.refs.update((id_, found.get(id_)) for id_ in missing)

    def read_ahead(self, command: ById) -> None:
        """Look up its ids, and read the stored documents that it will be judged by. Raises DiskFull or TooManyFiles
        with nothing changed."""
        self._read = NOTHING
        record = self.find_record(command.collection)
        if record is None:
            return
        change = self.changes.get(record.id) or self.change(record)
        if not all(map(change.refs.__contains__, command.ids)):
            self.lookup(change, command.ids)
        kind, judged = type(command), bool(command.matches) or bool(command.bound)
        self._reads = judged or kind is Patch or kind is UpdateVectors or self._custom
        if not self._reads:
            return
        found = {ref.ordinal for id_ in command.ids if (ref := change.refs[id_]) is not None}
        before = sorted(ordinal for ordinal in found if ordinal < change.first_ordinal)
        if before:
            self._read = self.stored.documents(record.id, before)

    @property
    def _custom(self) -> bool:
        return self.fence is not None and self.fence.custom

    def change(self, record: CollectionRecord) -> CollectionChange:
        """What this batch does to a collection."""
        change = self.changes.get(record.id)
        if change is None:
            seen = self.record(record.spec.of).id if record.spec.of else record.id  # what a scan sees has its vectors
            change = CollectionChange(record, record.next_ordinal, False, pinned=self.pins.below(seen))
            self.changes[record.id] = change
        return change

    def find_record(self, name: str) -> CollectionRecord | None:
        """A collection as it is now; None if there is none. So `numbered`."""
        return self._records[name] if name in self._records else self._before.named(name)

    def record(self, name: str, *, vectors: bool = False) -> CollectionRecord:
        """One that has documents; vectors: or that of a named vector, whose rows only follow documents. Raises
        CollectionNotFound."""
        record = self.find_record(name)
        if record is None or (record.spec.of and not vectors):
            raise CollectionNotFound(f"there is no collection {name!r}", collection=name)
        return record

    def numbered(self, collection_id: int) -> CollectionRecord | None:
        if collection_id in self.changes:
            return self.changes[collection_id].record
        return None if collection_id in self.dropped else self._before.numbered(collection_id)

    def records(self) -> list[CollectionRecord]:
        """All collections, by id; not those of named vectors, which follow them."""
        now = {record.spec.name: record for record in self._before.all()} | self._records
        found = (record for record in now.values() if record is not None and not record.spec.of)
        return sorted(found, key=lambda record: record.id)

    def vectors(self, record: CollectionRecord) -> list[CollectionRecord]:
        """The named vectors of a collection, by id."""
        name = record.spec.name
        if (names := self._vector_names.get(name)) is None:
            names = self._vector_names[name] = list(self._before.vectors_of(name))
        return [found for one in names if (found := self.find_record(one)) is not None] if names else []

    def _follow(
        self, change: CollectionChange, ids: Sequence[str], given: ByVector = NOTHING, *, keep: bool = False
    ) -> None:
        """Have named vectors follow what was just written."""
        if self._vector_names.get(change.record.spec.name) == []:
            return  # as most have none
        for record in self.vectors(change.record):
            of, mine = self.change(record), given.get(record.spec.name, NOTHING)
            follow_and_tell(change, of, ids, mine, self.effects, keep=keep, telling=self.telling)
            self._records[record.spec.name] = of.record

    def create(self, spec: CollectionSpec) -> None:
        """Make a collection; there is none of that name."""
        record = CollectionRecord(id=self._next_id, spec=spec)
        self._next_id += 1
        self._records[spec.name] = record
        self._vector_names[spec.name] = []
        if spec.of:
            others = [one.spec.name for one in self.vectors(self.record(spec.of)) if one.spec.name != spec.name]
            self._vector_names[spec.of] = [*others, spec.name]
        self.changes[record.id] = CollectionChange(record, 0, True, touched=True)

    def drop(self, record: CollectionRecord) -> None:
        for one in self.vectors(record):  # before it, as the catalog's leader has it (server.catalog.collections)
            self.drop(one)
        self._records[record.spec.name] = None
        change = self.changes.pop(record.id, None)
        if change is None or not change.created:
            self.dropped.append(record.id)
            of = self.find_record(record.spec.of) or record  # who reads documents lacks what they had by this name
            self.pins = self.pins.without_collection(of.id)

    def manifest(self, change: CollectionChange) -> list[PublishedSegment]:
        """The published segments of a collection as they are now."""
        if change.manifest is None and not change.created:
            return self._before.manifest(change.record.id)
        return change.manifest or []

    def indexing(self, change: CollectionChange) -> IndexState:
        """What the log says of a collection's index now."""
        if change.indexing is None and not change.created:
            return self._before.indexing(change.record.id)
        return change.indexing or AS_MADE

    def reindex(self, change: CollectionChange, index: IndexParams) -> None:
        """From now on its files are of this index."""
        spec = msgspec.structs.replace(change.record.spec, index=index)
        change.record = msgspec.structs.replace(change.record, spec=spec)
        self._records[spec.name] = change.record

    def put(
        self,
        change: CollectionChange,
        ids: Sequence[str],
        versions: Sequence[int],
        block: bytes,
        metadata: Sequence[bytes],
        expires: Sequence[int] = (),
        named: ByVector | None = NOTHING,
    ) -> int:
        """Write documents whose ids were looked up; how many of them were there. expires: none of them if empty. named:
        None if they keep their named vectors."""
        if not ids:
            return 0
        record, refs, rows, existed = change.record, change.refs, change.rows, 0
        width, ordinal, total = record.spec.vector_bytes, record.next_ordinal, record.total
        base, vectors = row_id(record.id, 0), block if len(ids) == 1 else memoryview(block)
        olds: list[DocRef | None] = []
        for at, id_ in enumerate(ids):
            old = refs[id_]
            olds.append(old)
            if old is not None:
                existed += 1
                change.dies(id_, old)
                change.dead_vectors.append(old.vector)
                total -= int.from_bytes(old.hash, "little")
            vector, data, version = vectors[at * width : (at + 1) * width], metadata[at], versions[at]
            instant = expires[at] if expires else 0
            hash_ = document_sum(ordinal, version, id_, data, ordinal, vector, instant)
            total += hash_
            refs[id_] = DocRef(ordinal, version, hash_.to_bytes(16, "little"), ordinal, instant)
            rows.append((base | ordinal, id_, version, data, ordinal))
            change.written[id_] = None
            ordinal += 1
        change.vectors.append(block)
        self._tell(change, WRITTEN, versions[0], olds)
        if expires:
            change.expire(expires)
        documents = record.documents + len(ids) - existed
        self.settle(change, next_ordinal=ordinal, documents=documents, total=total % MODULUS)
        self._follow(change, ids, named or NOTHING, keep=named is None)
        return existed

    def amend(
        self,
        change: CollectionChange,
        before: Mapping[str, bytes],
        version: int,
        metadata: Mapping[str, bytes],
        expires: int = AS_IT_IS,
        named: ByVector = NOTHING,
    ) -> None:
        """Give documents that are there, and were looked up, other metadata; they keep their vectors, but for these
        named ones. before: what they have. expires: as in commands.Change."""
        record = change.record
        base, ordinal, total = row_id(record.id, 0), record.next_ordinal, record.total
        olds = [change.refs[id_] for id_ in metadata]
        for id_, data in metadata.items():
            old = change.refs[id_]
            if old is None:
                raise Internal(f"document {id_[:80]!r} is not there")
            instant = instant_of(expires, old)
            head = (old.ordinal, old.version, before[id_], old.expires)
            hash_ = rehashed(old.hash, id_, head, (ordinal, version, data, instant))
            total += int.from_bytes(hash_, "little") - int.from_bytes(old.hash, "little")
            change.dies(id_, old)
            change.kept.append((ordinal, old.vector))
            change.refs[id_] = DocRef(ordinal, version, hash_, old.vector, instant)
            change.rows.append((base | ordinal, id_, version, data, old.vector))
            ordinal += 1
        change.written.update(dict.fromkeys(metadata))
        self._tell(change, WRITTEN, version, olds, keep=True)
        change.expire([expires])
        self.settle(change, next_ordinal=ordinal, documents=record.documents, total=total % MODULUS)
        self._follow(change, list(metadata), named, keep=True)

    def remove(self, change: CollectionChange, ids: Sequence[str]) -> int:
        """Delete documents whose ids were looked up; how many of them were there."""
        record = change.record
        total, deleted = record.total, 0
        olds: list[DocRef | None] = []
        for id_ in ids:
            old = change.refs[id_]
            if old is not None:
                deleted += 1
                olds.append(old)
                change.dies(id_, old)
                change.dead_vectors.append(old.vector)
                total -= int.from_bytes(old.hash, "little")
                change.refs[id_] = None
                change.written[id_] = None
        if deleted:
            self._tell(change, DELETED, self.version(self.telling), olds)
            documents = record.documents - deleted
            self.settle(change, next_ordinal=record.next_ordinal, documents=documents, total=total % MODULUS)
            self._follow(change, ids)
        return deleted

    def _tell(
        self, change: CollectionChange, kind: int, version: int, olds: Sequence[DocRef | None], *, keep: bool = False
    ) -> None:
        """Of what is written from the next ordinal on, or deleted. keep: the vectors of olds live on."""
        if not self.telling:
            return
        dead: tuple[int, ...] = ()
        ordinals, record = (ABSENT,) * len(olds), change.record  # of new documents, as most are
        if any(olds):
            if not keep:
                dead = tuple([old.vector for old in olds if old and old.vector != old.ordinal])
            ordinals = tuple([ABSENT if old is None else old.ordinal for old in olds])
        self.effects.append(Effect(self.telling, kind, record.id, version, record.next_ordinal, ordinals, dead))

    # --- what the shard owns -----------------------------------------------------------------------------------------
    @property
    def holdings(self) -> Holdings | None:
        """What the log says the shard owns; None if that never changed."""
        return None if self.fence is None else self.fence.holdings

    def hold(self, holdings: Holdings) -> None:
        """Replace them."""
        self.fence = Fence(holdings)

    def change_transfer(self, transfer: Transfer, **changes: Any) -> None:
        """Replace one transfer, and other parts of the holdings."""
        if self.fence is not None:
            self.hold(self.fence.holdings.with_transfer(transfer, **changes))

    def hide(self, change: CollectionChange, move: int, ordinals: BitMap) -> None:
        """From now on these ordinals of a move are invisible; none: the move hides nothing here."""
        hidden = self.stored.hidden(change.record.id) if change.hidden is None else change.hidden
        change.hidden, change.touched = _with(hidden, move, ordinals), True

    def mark(self, change: CollectionChange, move: int, ordinals: BitMap) -> None:
        """Keep these for the move's Release; none: forget them."""
        marked = self.stored.marked(change.record.id) if change.marked is None else change.marked
        change.marked, change.touched = _with(marked, move, ordinals), True

    def version(self, index: int) -> int:
        """What an entry's documents get: higher than all versions of their keys, also those given by other shards."""
        return index + (0 if self.fence is None else self.fence.holdings.base)

    def admit(self, change: CollectionChange, ids: Sequence[str], metadata: Sequence[bytes] | None) -> None:
        """Raises StaleEpoch if a document, as written or as stored, has a key that this log does not accept.
        metadata: as written, None for a delete."""
        fence = self.fence
        if fence is None:
            return
        if metadata is not None or not fence.custom:
            for at, id_ in enumerate(ids):
                if not fence.accepts(id_, metadata[at] if metadata is not None else b""):
                    raise moved(id_)
        if fence.custom:
            for id_, there in self.metadata(change, ids).items():
                if not fence.accepts(id_, there):
                    raise moved(id_)

    def metadata(self, change: CollectionChange, ids: Sequence[str]) -> dict[str, bytes]:
        """What is stored of those that are there: of the command in hand (`read_ahead`), if it is judged by that."""
        if not self._reads:
            return {}
        refs = {id_: ref.ordinal for id_ in ids if (ref := change.refs[id_]) is not None}
        return {
            id_: self._read[at].metadata if at < change.first_ordinal else change.rows[at - change.first_ordinal][3]
            for id_, at in refs.items()
        }

    def settle(self, change: CollectionChange, *, next_ordinal: int, documents: int, total: int) -> None:
        """What its record says from now on."""
        change.record = CollectionRecord(
            id=change.record.id, spec=change.record.spec, next_ordinal=next_ordinal, documents=documents, total=total
        )
        change.touched = True
        self._records[change.record.spec.name] = change.record

    def write_set(self, index: int, term: int, conf: bytes) -> WriteSet:
        """Everything the batch changed; `at` is the position of its last entry."""
        changed = self.sessions.dirty()
        out = WriteSet(
            at=AppliedAt(index, term, conf, self._next_id), collections={}, removed=self.dropped, documents=[],
            vectors=[], ids={}, graves=[], manifests={}, sessions=changed.sessions, sessions_removed=changed.evicted,
            answers=changed.answers, first_rows={},
            holdings=None if self.fence in (None, self.stored.fence) else encode_holdings(self.fence.holdings),
            pins=None if self.pins is self.stored.pins else encode_pins(self.pins),
            catalog=None if self.catalog is self.stored.catalog else encode_known(self.catalog),
        )  # fmt: skip
        for change in self.changes.values():
            if change.touched:
                change.write_to(out)
        return out


def _with(of_moves: Mapping[int, BitMap], move: int, ordinals: BitMap) -> dict[int, BitMap]:
    """With these of a move; none: without it."""
    others = {one: held for one, held in of_moves.items() if one != move}
    return {**others, move: ordinals} if ordinals else others
