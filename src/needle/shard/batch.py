"""Executing log entries: pure decisions over the current state, gathered into one write set.

Deterministic: the results and the write set depend on the state and the entries only, never on how entries are grouped
into batches. Invariant: a refused command changes nothing but its session's stored answer. Conditions that depend on
state (collections, versions, shapes) are checked here, on every replica alike; everything else was checked by the
proposer (`validation`).

It must not know SQLite or faiss: documents are looked up through `find`, and changes leave as a `WriteSet`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from pyroaring import BitMap

from needle.base.errors import (
    AlreadyExists,
    CollectionExists,
    CollectionNotFound,
    InvalidArgument,
    NeedleError,
    StaleEpoch,
    StorageError,
    UnsupportedFormat,
    VersionMismatch,
    invalid,
)
from needle.base.file_errors import SHORTAGES
from needle.base.model import WriteResult
from needle.shard.changes import FLOAT_BYTES, CollectionChange
from needle.shard.commands import (
    MOVE_COMMANDS,
    NO_SESSION,
    Command,
    CreateCollection,
    Delete,
    DropCollection,
    Insert,
    OpenSession,
    PublishSegment,
    Session,
    decode,
    without_repeats,
)
from needle.shard.digest import MODULUS, document_hash
from needle.shard.holdings import Fence, Holdings, Transfer, encode_holdings, moved, within
from needle.shard.moving import Stored, execute_move
from needle.shard.records import ORDINAL_MAX, AppliedAt, CollectionRecord, DocRef, WriteSet, row_id
from needle.shard.segment_plan import PublishedSegment, with_published
from needle.shard.sessions import SessionTable

Result = WriteResult | NeedleError
Find = Callable[[int, Sequence[str]], Mapping[str, DocRef]]


class Collections(Protocol):
    """What a batch asks about the collections before it; each answer costs the same however many there are, but for
    `all`."""

    def named(self, name: str) -> CollectionRecord | None: ...
    def numbered(self, collection_id: int) -> CollectionRecord | None: ...
    def manifest(self, collection_id: int) -> list[PublishedSegment]: ...
    def all(self) -> Iterable[CollectionRecord]: ...


class Batch:
    """One run of consecutive log entries. Call `prefetch`, then `execute` for each, then `write_set`."""

    def __init__(
        self,
        at: AppliedAt,
        collections: Collections,
        sessions: SessionTable,
        find: Find,
        stored: Stored | None = None,
    ) -> None:
        self.stored = stored or Stored()
        self.fence = self.stored.fence
        self._next_id = at.next_collection_id
        self._before = collections
        self._records: dict[str, CollectionRecord | None] = {}
        """What this batch changed; None: dropped."""
        self._sessions = sessions
        self._find = find
        self.changes: dict[int, CollectionChange] = {}
        self.dropped: list[int] = []

    def prefetch(self, commands: Sequence[Command | NeedleError | None]) -> None:
        """Look up the ids of all commands with few queries."""
        wanted: dict[int, dict[str, None]] = {}
        for command in commands:
            if isinstance(command, Insert | Delete):
                record = self._find_record(command.collection)
                if record is not None and record.documents:
                    self.change(record)
                    wanted.setdefault(record.id, {}).update(dict.fromkeys(command.ids))
        for collection_id, ids in wanted.items():
            self.lookup(self.changes[collection_id], list(ids))

    def lookup(self, change: CollectionChange, ids: Sequence[str]) -> None:
        """Have `change.refs` know all of `ids`."""
        missing = [id_ for id_ in ids if id_ not in change.refs]
        if not missing:
            return
        found = {} if change.created else self._find(change.record.id, missing)
        change.refs.update((id_, found.get(id_)) for id_ in missing)

    def change(self, record: CollectionRecord) -> CollectionChange:
        """What this batch does to a collection."""
        change = self.changes.get(record.id)
        if change is None:
            change = CollectionChange(record, record.next_ordinal, False)
            self.changes[record.id] = change
        return change

    def execute(self, index: int, command: Command | NeedleError | None) -> Result | None:
        """The result of one entry. None: the entry carries no command. A NeedleError: it did not decode."""
        if command is None or isinstance(command, NeedleError):
            return command
        if isinstance(command, OpenSession):
            session = self._sessions.open(command.nonce, index)
            return WriteResult(version=session, index=session)
        numbered: Session = getattr(command, "session", NO_SESSION)
        if not numbered.id:
            return self._run(index, command)
        known = self._sessions.find(numbered, index)
        if known is not None:
            return known
        result = self._run(index, command)
        if isinstance(result, StaleEpoch):
            # Kept as the answer for ever: a copy of this entry that is late must not be executed should the range come
            # back. Whoever writes again, elsewhere or here, does so under a new number.
            result.details["final"] = True
        self._sessions.record(numbered, result)
        return result

    def _run(self, index: int, command: Command) -> Result:
        try:
            if isinstance(command, Insert):
                return self._insert(index, command)
            if isinstance(command, Delete):
                return self._delete(index, command)
            if isinstance(command, CreateCollection):
                return self._create(index, command)
            if isinstance(command, DropCollection):
                return self._drop(index, command)
            if isinstance(command, PublishSegment):
                return self._publish(index, command)
            if isinstance(command, MOVE_COMMANDS):
                return execute_move(self, index, command)
        except (StorageError, *SHORTAGES):
            raise  # this replica's own trouble: as a result it would differ from that of the others
        except NeedleError as refused:
            return refused
        return UnsupportedFormat(f"unknown command {type(command).__name__}")

    def _find_record(self, name: str) -> CollectionRecord | None:
        return self._records[name] if name in self._records else self._before.named(name)

    def record(self, name: str) -> CollectionRecord:
        """Raises CollectionNotFound."""
        record = self._find_record(name)
        if record is None:
            raise CollectionNotFound(f"there is no collection {name!r}", collection=name)
        return record

    def _create(self, index: int, command: CreateCollection) -> WriteResult:
        spec = command.spec
        held = self._find_record(spec.name)
        if held is not None:
            if command.if_absent and held.spec == spec:
                return WriteResult(version=index, index=index, existed=True, count=0)
            how = "with the same" if held.spec == spec else "with other"
            raise CollectionExists(f"collection {spec.name!r} exists {how} parameters", collection=spec.name)
        record = CollectionRecord(id=self._next_id, spec=spec)
        self._next_id += 1
        self._records[spec.name] = record
        self.changes[record.id] = CollectionChange(record, 0, True, touched=True)
        return WriteResult(version=index, index=index)

    def _drop(self, index: int, command: DropCollection) -> WriteResult:
        record = self.record(command.name)
        self._records[command.name] = None
        change = self.changes.pop(record.id, None)
        if change is None or not change.created:
            self.dropped.append(record.id)
        return WriteResult(version=index, index=index, existed=True, count=record.documents)

    def _insert(self, index: int, command: Insert) -> WriteResult:
        record = self.record(command.collection)
        width = record.spec.dimensions * FLOAT_BYTES
        _check_shape(command, width)
        command = without_repeats(command)
        ids = command.ids
        if record.next_ordinal + len(ids) > ORDINAL_MAX:
            raise used_up(record.spec.name)
        change = self.change(record)
        self.lookup(change, ids)
        self._admit(change, ids, command.metadata)
        _check_versions(command, change.refs)
        version = self.version(index)
        existed = self.put(change, ids, [version] * len(ids), command.vectors, command.metadata)
        return WriteResult(version=version, index=index, existed=existed > 0, count=len(ids))

    def put(
        self,
        change: CollectionChange,
        ids: Sequence[str],
        versions: Sequence[int],
        block: bytes,
        metadata: Sequence[bytes],
    ) -> int:
        """Write documents whose ids were looked up; how many of them were there."""
        if not ids:
            return 0
        record, vectors, existed = change.record, memoryview(block), 0
        width, ordinal, total = record.spec.dimensions * FLOAT_BYTES, record.next_ordinal, record.total
        base = row_id(record.id, 0)
        for at, id_ in enumerate(ids):
            old = change.refs[id_]
            if old is not None:
                existed += 1
                change.dead.append(old.ordinal)
                total -= int.from_bytes(old.hash, "little")
            hash_ = document_hash(ordinal, versions[at], id_, metadata[at], vectors[at * width : (at + 1) * width])
            total += int.from_bytes(hash_, "little")
            change.refs[id_] = DocRef(ordinal, versions[at], hash_)
            change.rows.append((base | ordinal, id_, versions[at], metadata[at]))
            ordinal += 1
        change.written.update(dict.fromkeys(ids))
        change.vectors.append(block)
        documents = record.documents + len(ids) - existed
        self._set(change, next_ordinal=ordinal, documents=documents, total=total % MODULUS)
        return existed

    def _delete(self, index: int, command: Delete) -> WriteResult:
        record = self.record(command.collection)
        ids = list(dict.fromkeys(command.ids))
        change = self.change(record)
        self.lookup(change, ids)
        if command.within:
            ids = within(self.fence, command.within, self._metadata(change, ids))
        else:
            self._admit(change, ids, None)
            if self.fence is not None and command.owned not in (0, self.fence.fingerprint):
                raise moved(ids[0])
        _check_versions(command, change.refs)
        deleted = self.remove(change, ids)
        return WriteResult(version=self.version(index), index=index, existed=deleted > 0, count=deleted)

    def remove(self, change: CollectionChange, ids: Sequence[str]) -> int:
        """Delete documents whose ids were looked up; how many of them were there."""
        record = change.record
        total, deleted = record.total, 0
        for id_ in ids:
            old = change.refs[id_]
            if old is not None:
                deleted += 1
                change.dead.append(old.ordinal)
                total -= int.from_bytes(old.hash, "little")
                change.refs[id_] = None
                change.written[id_] = None
        if deleted:
            documents = record.documents - deleted
            self._set(change, next_ordinal=record.next_ordinal, documents=documents, total=total % MODULUS)
        return deleted

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
        hidden = dict(self.stored.hidden(change.record.id) if change.hidden is None else change.hidden)
        hidden.pop(move, None)
        if ordinals:
            hidden[move] = ordinals
        change.hidden = hidden
        change.touched = True

    def mark(self, change: CollectionChange, move: int, ordinals: BitMap) -> None:
        """Keep these for the move's Release; none: forget them."""
        marked = dict(self.stored.marked(change.record.id) if change.marked is None else change.marked)
        marked.pop(move, None)
        if ordinals:
            marked[move] = ordinals
        change.marked = marked
        change.touched = True

    def records(self) -> list[CollectionRecord]:
        """All collections, by id."""
        now = {record.spec.name: record for record in self._before.all()} | self._records
        return sorted((record for record in now.values() if record is not None), key=lambda record: record.id)

    def version(self, index: int) -> int:
        """What an entry's documents get: higher than all versions of their keys, also those given by other shards."""
        return index + (0 if self.fence is None else self.fence.holdings.base)

    def _admit(self, change: CollectionChange, ids: Sequence[str], metadata: Sequence[bytes] | None) -> None:
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
            for id_, there in self._metadata(change, ids).items():
                if not fence.accepts(id_, there):
                    raise moved(id_)

    def _metadata(self, change: CollectionChange, ids: Sequence[str]) -> dict[str, bytes]:
        """What is stored of those that are there."""
        refs = {id_: ref.ordinal for id_ in ids if (ref := change.refs[id_]) is not None}
        before = [ordinal for ordinal in refs.values() if ordinal < change.first_ordinal]
        found = self.stored.documents(change.record.id, before) if before else {}
        return {
            id_: found[at].metadata if at < change.first_ordinal else change.rows[at - change.first_ordinal][3]
            for id_, at in refs.items()
        }

    def _publish(self, index: int, command: PublishSegment) -> WriteResult:
        segment = PublishedSegment(*msgspec.structs.astuple(command))
        record = self._numbered(command.collection_id)
        if record is None:
            raise CollectionNotFound(f"there is no collection with id {command.collection_id}")
        change = self.change(record)
        held = (
            self._before.manifest(record.id)
            if change.manifest is None and not change.created
            else change.manifest or []
        )
        manifest = with_published(held, segment, record.next_ordinal)
        if manifest is None:
            raise InvalidArgument(f"segment [{command.first}, {command.last}] does not fit the manifest any more")
        change.manifest = manifest
        change.published.append(segment)
        change.touched = True
        return WriteResult(version=index, index=index)

    def _numbered(self, collection_id: int) -> CollectionRecord | None:
        if collection_id in self.changes:
            return self.changes[collection_id].record
        return None if collection_id in self.dropped else self._before.numbered(collection_id)

    def _set(self, change: CollectionChange, *, next_ordinal: int, documents: int, total: int) -> None:
        change.record = CollectionRecord(
            id=change.record.id, spec=change.record.spec, next_ordinal=next_ordinal, documents=documents, total=total
        )
        change.touched = True
        self._records[change.record.spec.name] = change.record

    def write_set(self, index: int, term: int, conf: bytes) -> WriteSet:
        """Everything the batch changed; `at` is the position of its last entry."""
        changed = self._sessions.dirty()
        out = WriteSet(
            at=AppliedAt(index, term, conf, self._next_id), collections={}, removed=self.dropped, documents=[],
            vectors=[], ids={}, graves=[], manifests={}, sessions=changed.sessions, sessions_removed=changed.evicted,
            answers=changed.answers, first_rows={},
            holdings=None if self.fence in (None, self.stored.fence) else encode_holdings(self.fence.holdings),
        )  # fmt: skip
        for change in self.changes.values():
            if change.touched:
                change.write_to(out)
        return out


def used_up(collection: str) -> NeedleError:
    """Every document version ever written takes one ordinal."""
    return InvalidArgument(
        f"collection {collection!r} has taken all the {ORDINAL_MAX} document versions that one can take; copy its "
        f"documents into a new collection (docs/operations.md)",
        field="collection",
        collection=collection,
    )


def _check_shape(command: Insert, width: int) -> None:
    count = len(command.ids)
    if len(command.vectors) != count * width:
        raise invalid(
            "vectors", f"{len(command.vectors)} bytes", f"{count} documents x {width // FLOAT_BYTES} float32 values"
        )
    if len(command.metadata) != count:
        raise invalid("ids", f"{count} ids", f"one for each of {len(command.metadata)} metadata")


def _check_versions(command: Insert | Delete, refs: Mapping[str, DocRef | None]) -> None:
    if command.expected is None:
        return
    for id_ in command.ids:
        ref = refs[id_]
        actual = 0 if ref is None else ref.version
        if actual == command.expected:
            continue
        if command.expected == 0:
            raise AlreadyExists(f"document {id_!r} exists with version {actual}", id=id_[:80], version=actual)
        raise VersionMismatch(
            f"document {id_!r} has version {actual}, not {command.expected}", id=id_[:80], actual=actual
        )


def decode_entry(data: bytes) -> Command | NeedleError | None:
    """The command of a log entry; None for an entry without data. A NeedleError result if it does not decode."""
    if not data:
        return None
    try:
        return decode(data)
    except UnsupportedFormat as error:
        return error


def runs(commands: Sequence[Command | NeedleError | None]) -> Iterator[tuple[int, int]]:
    """[first, end) of what is applied in one transaction each."""
    first = 0
    for at, command in enumerate(commands):
        if isinstance(command, MOVE_COMMANDS):
            if first < at:
                yield first, at
            yield at, at + 1
            first = at + 1
    if first < len(commands):
        yield first, len(commands)
