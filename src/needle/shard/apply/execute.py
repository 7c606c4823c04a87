"""Executing log entries: what each command does to a batch, or why it is refused.

Deterministic: results depend on the state and the entries only, never on how entries are grouped into batches.
Invariant: a refused command changes nothing but the stored answers of its session and of its request. Conditions that
depend on state (collections, versions, shapes) are checked here, on every replica alike; everything else was checked by
the proposer (`validation`). It must not know SQLite or faiss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from needle.base.errors import (
    AlreadyExists,
    CollectionExists,
    ConditionFailed,
    NeedleError,
    StaleEpoch,
    StorageError,
    UnsupportedFormat,
    VersionMismatch,
    invalid,
)
from needle.base.file_errors import SHORTAGES
from needle.base.filters.nodes import evaluate
from needle.base.model import CollectionSpec, WriteResult
from needle.protocol.commands import (
    NO_SESSION,
    Bound,
    ById,
    ChangeWhere,
    Command,
    Compare,
    CreateCollection,
    Delete,
    DropCollection,
    EndPins,
    Expire,
    Insert,
    KnowCatalog,
    Named,
    Once,
    OpenSession,
    Patch,
    PinScan,
    Session,
    Spread,
    UpdateVectors,
    decode_logged,
    inner,
    is_by_id,
    is_load,
    without_repeats,
)
from needle.protocol.move_commands import MOVE_COMMANDS
from needle.protocol.upkeep_commands import INDEX_COMMANDS, KeepIndex, LoadRows, StageSegment, SwitchIndex
from needle.shard.apply.batch import Batch, check_room, instant_of
from needle.shard.apply.bulk import load_rows
from needle.shard.apply.changes import CollectionChange
from needle.shard.apply.expiry import expire
from needle.shard.apply.holdings import moved, within
from needle.shard.apply.indexing import execute_index
from needle.shard.apply.moves import execute_move
from needle.shard.apply.named import Given, missing, vectors_in
from needle.shard.apply.pins import end_pins, know_catalog, pin_scan
from needle.shard.apply.visible import check_insert, parsed, seen
from needle.shard.apply.where import amend, change_where
from needle.shard.documents.metadata_rows import decode_metadata
from needle.shard.documents.records import DocRef

Result = WriteResult | NeedleError
ALONE = frozenset({
    *MOVE_COMMANDS, PinScan, EndPins, KnowCatalog, ChangeWhere, Expire, Compare, StageSegment, SwitchIndex, KeepIndex,
    LoadRows,
})  # fmt: skip
"""Commands that need the stored state right before them, or show the one right after them: each is a transaction of
its own."""
_OF_MOVES = frozenset(MOVE_COMMANDS)
"""Looked up by type: `isinstance` of so many structs takes a microsecond, of each entry on each replica."""


def decode_entry(data: bytes) -> Command | None:
    """The command of a log entry; None for an entry without data. Raises UnsupportedFormat for one that this release
    cannot read: passing over it would make this replica another one than those of nodes that can."""
    return decode_logged(data) if data else None


class Logged(Protocol):
    """An entry of the log."""

    @property
    def data(self) -> bytes: ...


def takes_long(entries: Sequence[Logged]) -> bool:
    """Whether one of them is a bulk load: it is some hundred bytes, and writes what a file has."""
    return any(is_load(entry.data) for entry in entries)


def runs(commands: Sequence[Command | None]) -> Iterator[tuple[int, int]]:
    """[first, end) of what is applied in one transaction each."""
    first = 0
    for at, command in enumerate(commands):
        if type(inner(command)) in ALONE:
            if first < at:
                yield first, at
            yield at, at + 1
            first = at + 1
    if first < len(commands):
        yield first, len(commands)


def execute(batch: Batch, index: int, command: Command | None) -> Result | None:
    """The result of one entry. None: the entry carries no command.

    Raises DiskFull or TooManyFiles if what it needs of the stored documents cannot be read now. Then it has changed
    nothing: the batch and the sessions are as they were after the entry before."""
    once = command if type(command) is Once else None
    command = inner(command)
    if command is None:
        return None
    if is_by_id(command):
        # Before its session is looked at, which remembers that. (Commands of moves have no session.)
        batch.read_ahead(command)
    elif type(command) is OpenSession:
        session = batch.sessions.open(command.nonce, index, command.owner)
        return WriteResult(version=session, index=session)
    numbered: Session = getattr(command, "session", NO_SESSION)
    if not numbered.id:
        return _run(batch, index, command) if once is None else _run_once(batch, index, command, once)
    bound: Bound | None = getattr(command, "bound", None)
    known = batch.sessions.find(numbered, index, 0 if bound is None else bound.owner)
    if known is not None:
        return known
    result = _run(batch, index, command) if once is None else _run_once(batch, index, command, once)
    if isinstance(result, StaleEpoch):
        # Kept as the answer forever: a copy of this entry that is late must not be executed should the range come
        # back. Whoever writes again, elsewhere or here, does so under a new number.
        result.details["final"] = True
    batch.sessions.record(numbered, result)
    return result


def _run_once(batch: Batch, index: int, command: Command, once: Once) -> Result:
    """once: of which the command is, for its request has an idempotency key."""
    known = batch.sessions.once.find(once.asked, command)
    if known is not None:
        return known
    result = _run(batch, index, command)
    batch.sessions.once.record(once, index, result)
    return result


def _run(batch: Batch, index: int, command: Command) -> Result:
    batch.telling = 0 if type(command) in _OF_MOVES else index
    try:
        if isinstance(command, Insert):
            return _insert(batch, index, command)
        if isinstance(command, Delete):
            return _delete(batch, index, command)
        if isinstance(command, Patch):
            return _patch(batch, index, command)
        if isinstance(command, UpdateVectors):
            return _update_vectors(batch, index, command)
        if isinstance(command, ChangeWhere):
            return change_where(batch, index, command)
        if isinstance(command, Expire):
            return expire(batch, index, command)
        if isinstance(command, PinScan):
            return pin_scan(batch, index, command)
        if isinstance(command, EndPins):
            return end_pins(batch, index, command)
        if isinstance(command, KnowCatalog):
            return know_catalog(batch, index, command)
        if isinstance(command, CreateCollection):
            return _create(batch, index, command)
        if isinstance(command, DropCollection):
            return _drop(batch, index, command)
        if isinstance(command, INDEX_COMMANDS):
            return execute_index(batch, index, command)
        if isinstance(command, LoadRows):
            return load_rows(batch, index, command)
        if isinstance(command, Compare):
            return WriteResult(version=index, index=index)
        if isinstance(command, MOVE_COMMANDS):
            return execute_move(batch, index, command)
    except (StorageError, *SHORTAGES):
        raise  # this replica's own trouble: as a result it would differ from that of the others
    except NeedleError as refused:
        return refused
    raise UnsupportedFormat(f"unknown command {type(command).__name__}")


def _create(batch: Batch, index: int, command: CreateCollection) -> WriteResult:
    spec = command.spec
    held = batch.find_record(spec.name)
    if held is not None:
        if command.if_absent and held.spec == spec:
            return WriteResult(version=index, index=index, existed=True, count=0)
        how = "with the same" if held.spec == spec else "with other"
        raise CollectionExists(f"collection {spec.name!r} exists {how} parameters", collection=spec.name)
    if spec.of:
        batch.record(spec.of)
    batch.create(spec)
    return WriteResult(version=index, index=index)


def _drop(batch: Batch, index: int, command: DropCollection) -> WriteResult:
    record = batch.record(command.name, vectors=True)
    batch.drop(record)
    return WriteResult(version=index, index=index, existed=True, count=record.documents)


def _insert(batch: Batch, index: int, command: Insert) -> WriteResult:
    record = batch.record(command.collection)
    count, spec = len(command.ids), record.spec
    usual = command.dtype == spec.dtype and len(command.vectors) == count * spec.vector_bytes and not command.expires
    if not usual or len(command.metadata) != count:
        _check_shape(command, spec)
    if count > 1:
        command = without_repeats(command)
    ids = command.ids
    check_room(record, len(ids))
    change = batch.changes.get(record.id) or batch.change(record)
    if batch.fence is not None:
        batch.admit(change, ids, command.metadata)
    if command.bound:
        check_insert(batch, change, command)
    if command.expected is not None:
        _check_versions(command, change.refs, ids)
    if command.matches:
        _check_matches(command, batch, change, ids)
    version = batch.version(index)
    expires = [max(instant, 0) for instant in command.expires] if command.expires else ()
    named = vectors_in(command.named, ids, _vector_specs(batch, change)) if command.named else {}
    existed = batch.put(change, ids, [version] * len(ids), command.vectors, command.metadata, expires, named)
    return WriteResult(version=version, index=index, existed=existed > 0, count=len(ids))


def _delete(batch: Batch, index: int, command: Delete) -> WriteResult:
    change, ids = _addressed(batch, command)
    refs = seen(batch, change, command.ids, command.bound)
    here = [id_ for id_ in ids if refs[id_] is not None]
    _check_versions(command, refs, command.ids)
    _check_matches(command, batch, change, here)
    deleted = batch.remove(change, here)
    return WriteResult(version=batch.version(index), index=index, existed=deleted > 0, count=deleted)


def _patch(batch: Batch, index: int, command: Patch) -> WriteResult:
    change, ids = _addressed(batch, command)
    refs = seen(batch, change, ids, command.bound)
    here = [id_ for id_ in ids if refs[id_] is not None]
    # What is not here may be in another shard.
    _check_versions(command, refs, here if command.owned or command.within else ids)
    _check_matches(command, batch, change, here)
    before = batch.metadata(change, here)
    check_room(change.record, len(before))
    amend(batch, index, change, before, command.change, command.bound)
    return WriteResult(version=batch.version(index), index=index, existed=bool(before), count=len(before))


def _update_vectors(batch: Batch, index: int, command: UpdateVectors) -> WriteResult:
    change, ids = _addressed(batch, command)
    if command.name:
        return _update_named(batch, index, command, change, ids)
    width = change.record.spec.vector_bytes
    _check_rows(command, change.record.spec)
    refs = seen(batch, change, ids, command.bound)
    here = [id_ for id_ in ids if refs[id_] is not None]
    _check_versions(command, refs, here if command.owned or command.within else ids)
    _check_matches(command, batch, change, here)
    check_room(change.record, len(here))
    metadata, place = batch.metadata(change, here), {id_: at * width for at, id_ in enumerate(command.ids)}
    block = b"".join(command.vectors[place[id_] : place[id_] + width] for id_ in here)
    version = batch.version(index)
    expires = [instant_of(command.expires, change.refs[id_]) for id_ in here]
    batch.put(change, here, [version] * len(here), block, [metadata[id_] for id_ in here], expires, None)
    return WriteResult(version=version, index=index, existed=bool(here), count=len(here))


def _update_named(
    batch: Batch, index: int, command: UpdateVectors, change: CollectionChange, ids: list[str]
) -> WriteResult:
    """A new version of each document, which has what it had but for that vector; of those that have none, no other one
    where it is to go."""
    specs, count = _vector_specs(batch, change), len(command.ids)
    if command.gone:
        if command.name not in specs:
            raise missing(command.name)
        given: Given = dict.fromkeys(command.ids)
    else:
        rows = Named(command.name, list(range(count)), command.vectors, command.dtype)
        given = vectors_in([rows], command.ids, specs)[command.name]
    refs = seen(batch, change, ids, command.bound)
    here = [id_ for id_ in ids if refs[id_] is not None]
    _check_versions(command, refs, here if command.owned or command.within else ids)
    _check_matches(command, batch, change, here)
    if command.gone:
        has = batch.change(batch.record(command.name, vectors=True)).refs
        here = [id_ for id_ in here if has.get(id_) is not None]
    check_room(change.record, len(here))
    metadata = batch.metadata(change, here)
    version, vectors = batch.version(index), {id_: given[id_] for id_ in here}
    batch.amend(change, metadata, version, metadata, command.expires, {command.name: vectors})
    return WriteResult(version=version, index=index, existed=bool(here), count=len(here))


def _vector_specs(batch: Batch, change: CollectionChange) -> dict[str, CollectionSpec]:
    return {record.spec.name: record.spec for record in batch.vectors(change.record)}


def _addressed(batch: Batch, command: Spread) -> tuple[CollectionChange, list[str]]:
    """Which documents the command is about, each once."""
    record = batch.record(command.collection)
    ids = list(dict.fromkeys(command.ids))
    change = batch.change(record)
    if command.within:
        return change, within(batch.fence, command.within, batch.metadata(change, ids))
    batch.admit(change, ids, None)
    if batch.fence is not None and command.owned not in (0, batch.fence.fingerprint):
        raise moved(ids[0])
    return change, ids


def _check_rows(command: Insert | UpdateVectors, spec: CollectionSpec) -> None:
    count = len(command.ids)
    if command.dtype != spec.dtype or len(command.vectors) != count * spec.vector_bytes:
        form = spec.form
        there = f"{len(command.vectors)} bytes of {command.dtype}"
        raise invalid("vectors", there, f"{count} documents x {form.numbers} {form.dtype} values")


def _check_shape(command: Insert, spec: CollectionSpec) -> None:
    count = len(command.ids)
    _check_rows(command, spec)
    if len(command.metadata) != count:
        raise invalid("ids", f"{count} ids", f"one for each of {len(command.metadata)} metadata")
    if command.expires and len(command.expires) != count:
        raise invalid("expires_at", f"{len(command.expires)} instants", f"one for each of {count} documents")


def _check_matches(command: ById, batch: Batch, change: CollectionChange, ids: Sequence[str]) -> None:
    """Of documents that are there; what is not there cannot contradict."""
    if not command.matches:
        return
    node = parsed(command.matches)
    for id_, metadata in batch.metadata(change, ids).items():
        if not evaluate(node, decode_metadata(metadata), id_):
            raise ConditionFailed(f"document {id_[:80]!r} does not match the condition of the write", id=id_[:80])


def _check_versions(command: ById, refs: Mapping[str, DocRef | None], ids: Sequence[str]) -> None:
    if command.expected is None:
        return
    for id_ in ids:
        ref = refs[id_]
        actual = 0 if ref is None else ref.version
        if actual == command.expected:
            continue
        if command.expected == 0:
            raise AlreadyExists(f"document {id_!r} exists with version {actual}", id=id_[:80], version=actual)
        raise VersionMismatch(
            f"document {id_!r} has version {actual}, not {command.expected}", id=id_[:80], actual=actual
        )
