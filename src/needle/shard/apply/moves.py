"""Executing the commands that move key ranges between shards: pure decisions, as in `execute`.

Each of these entries is a batch of its own (`state_machine`), so the stored state is exactly the one before it. It must
not know SQLite, catalogs or drivers.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from pyroaring import BitMap

from needle.base.errors import AlreadyExists, Internal, InvalidArgument, NeedleError, VersionMismatch, invalid
from needle.base.model import WriteResult
from needle.protocol.move_commands import (
    Confirm,
    Discard,
    Forget,
    Freeze,
    GiveUp,
    Import,
    ImportRequests,
    Mark,
    MoveCommand,
    Own,
    PrepareMove,
    Release,
    Thaw,
)
from needle.shard import effects
from needle.shard.apply.batch import Batch, check_room
from needle.shard.apply.before import Member
from needle.shard.apply.changes import CollectionChange
from needle.shard.apply.holdings import (
    DISCARDING,
    ENDED,
    FROZEN,
    GIVEN_UP,
    OPEN,
    OVER,
    RELEASED,
    Transfer,
    prepared,
)
from needle.shard.apply.named import vectors_in
from needle.shard.documents.records import CollectionRecord
from needle.shard.effects import Effect

IDS_SHOWN = 20


def execute_move(batch: Batch, index: int, command: MoveCommand) -> WriteResult:
    """Raises NeedleError for what is refused; then nothing has changed."""
    if isinstance(command, PrepareMove):
        batch.hold(prepared(batch.holdings, command))
        return WriteResult(version=index, index=index)
    transfer = _transfer(batch, command.move)
    if isinstance(command, Import):
        return _import(batch, index, command, transfer)
    if isinstance(command, ImportRequests):
        return _import_requests(batch, index, command, transfer)
    if isinstance(command, Own):
        return _own(batch, index, command, transfer)
    if isinstance(command, Confirm):
        return _confirm(batch, index, command, transfer)
    if isinstance(command, Discard):
        return _discard(batch, index, command, transfer)
    if transfer.incoming:
        raise InvalidArgument(f"this shard is the target of move {command.move}, not its source", field="move")
    if isinstance(command, Mark):
        return _mark(batch, index, command, transfer)
    if isinstance(command, Freeze):
        return _freeze(batch, index, command, transfer)
    if isinstance(command, Thaw):
        return _thaw(batch, index, command, transfer)
    if isinstance(command, Release):
        return _release(batch, index, command, transfer)
    if isinstance(command, GiveUp):
        return _give_up(batch, index, transfer)
    return _forget(batch, index, command, transfer)


def _transfer(batch: Batch, move: int) -> Transfer:
    found = batch.holdings.transfer(move) if batch.holdings is not None else None
    if found is None:
        raise InvalidArgument(f"move {move} is over, or was not prepared here", field="move")
    return found


def _changed(transfer: Transfer, **changes: object) -> Transfer:
    made: Transfer = msgspec.structs.replace(transfer, **changes)
    return made


def _mark(batch: Batch, index: int, command: Mark, transfer: Transfer) -> WriteResult:
    record = batch.record(command.collection)
    reached = transfer.cursors.get(command.collection, -1)
    upto = min(command.upto, record.next_ordinal - 1)
    if transfer.phase not in (OPEN, FROZEN) or upto <= reached:
        return WriteResult(version=index, index=index, existed=True, count=0)
    found = BitMap(batch.stored.select(record.id, _member(batch, transfer), reached, upto))
    marked = batch.stored.marked(record.id).get(command.move) or BitMap()
    batch.mark(batch.change(record), command.move, marked | found)
    batch.change_transfer(_changed(transfer, cursors={**transfer.cursors, command.collection: upto}))
    return WriteResult(version=index, index=index, count=len(found))


def _member(batch: Batch, transfer: Transfer) -> Member:
    if batch.fence is None:
        raise Internal("a transfer without holdings")
    return batch.fence.member(transfer.ranges)


def _freeze(batch: Batch, index: int, command: Freeze, transfer: Transfer) -> WriteResult:
    floor = transfer.floor
    if transfer.phase == GIVEN_UP or command.attempt < transfer.attempt:
        raise _attempt_over(transfer, command.attempt)
    if transfer.phase == OPEN:
        floor = batch.version(index)
        batch.change_transfer(_changed(transfer, phase=FROZEN, floor=floor, attempt=command.attempt))
    return WriteResult(version=floor, index=index)


def _thaw(batch: Batch, index: int, command: Thaw, transfer: Transfer) -> WriteResult:
    if transfer.phase != FROZEN or transfer.attempt != command.attempt:
        return WriteResult(version=index, index=transfer.at, existed=True)
    batch.change_transfer(_changed(transfer, phase=OPEN, attempt=transfer.attempt + 1))
    return WriteResult(version=index, index=index)


def _give_up(batch: Batch, index: int, transfer: Transfer) -> WriteResult:
    if transfer.phase not in (OPEN, FROZEN):
        return WriteResult(version=index, index=transfer.at, existed=True)
    for record in _moving(batch):
        if transfer.move in batch.stored.marked(record.id):
            batch.mark(batch.change(record), transfer.move, BitMap())
    batch.change_transfer(_changed(transfer, phase=GIVEN_UP))
    return WriteResult(version=index, index=index)


def _attempt_over(transfer: Transfer, attempt: int) -> NeedleError:
    return VersionMismatch(
        f"attempt {attempt} of move {transfer.move} is over: the source is {transfer.phase}", actual=transfer.attempt
    )


def _release(batch: Batch, index: int, command: Release, transfer: Transfer) -> WriteResult:
    if transfer.phase == GIVEN_UP or command.attempt < transfer.attempt:
        raise _attempt_over(transfer, command.attempt)
    if transfer.phase == OPEN:
        raise invalid("phase", transfer.phase, f"release move {transfer.move} once it is frozen")
    if transfer.phase != FROZEN:
        return WriteResult(version=index, index=transfer.at, existed=True)
    if command.attempt != transfer.attempt:
        raise invalid("attempt", command.attempt, f"{transfer.attempt}, which froze move {transfer.move}")
    fence = batch.fence
    if fence is None:
        raise Internal("a transfer without holdings")
    member, stored = _member(batch, transfer), batch.stored
    for record in batch.records():
        reached = transfer.cursors.get(record.spec.name, -1)
        left = (stored.marked(record.id).get(transfer.move) or BitMap()) & stored.live(record.id)
        if reached < record.next_ordinal - 1:
            left |= BitMap(stored.select(record.id, member, reached, record.next_ordinal))
        if transfer.move in stored.marked(record.id):
            batch.mark(batch.change(record), transfer.move, BitMap())
        if left:
            batch.hide(batch.change(record), transfer.move, left)
    batch.change_transfer(_changed(transfer, phase=RELEASED, at=index), owned=fence.holdings.giving(transfer.ranges))
    batch.effects.append(Effect(index, effects.RELEASED, first=transfer.move))
    return WriteResult(version=index, index=index)


def _forget(batch: Batch, index: int, command: Forget, transfer: Transfer) -> WriteResult:
    if transfer.phase in ENDED:
        return WriteResult(version=index, index=index, count=0)
    if transfer.phase != RELEASED:
        raise invalid("phase", transfer.phase, f"forget what move {command.move} left behind once it is released")
    gone = _delete_hidden(batch, command.move, command.limit, telling=index)
    if not gone:
        batch.change_transfer(_changed(transfer, phase=OVER))
    return WriteResult(version=index, index=index, existed=gone > 0, count=gone)


def _discard(batch: Batch, index: int, command: Discard, transfer: Transfer) -> WriteResult:
    if not transfer.incoming or transfer.phase == OVER:
        raise invalid("phase", transfer.phase, f"discard what move {command.move} brought where it was not owned")
    if transfer.phase == GIVEN_UP:
        return WriteResult(version=index, index=index, count=0)
    gone = _delete_hidden(batch, command.move, command.limit)
    batch.change_transfer(_changed(transfer, phase=DISCARDING if gone else GIVEN_UP))
    return WriteResult(version=index, index=index, existed=gone > 0, count=gone)


def _moving(batch: Batch) -> list[CollectionRecord]:
    """The collections of which a move hides documents, or has marked some, by id: as few as it has come to."""
    return [found for one in batch.stored.moving() if (found := batch.numbered(one)) is not None]


def _delete_hidden(batch: Batch, move: int, limit: int, telling: int = 0) -> int:
    """Delete up to `limit` of the documents that a move hides; how many. telling: the entry, if changes of this shard
    wrote some of them."""
    left, gone = max(1, limit), 0
    for record in _moving(batch):
        hidden = batch.stored.hidden(record.id).get(move) or BitMap()
        doomed = list(hidden[: left - gone])
        if not doomed:
            continue
        found, change = batch.stored.documents(record.id, doomed), batch.change(record)
        names = [found[ordinal].id for ordinal in doomed]
        batch.lookup(change, names)
        if telling:
            batch.effects += [_left(telling, batch.change(one), names) for one in (record, *batch.vectors(record))]
        batch.remove(change, names)
        batch.hide(change, move, hidden - BitMap(doomed))
        gone += len(doomed)
        if gone == left:
            break
    return gone


def _left(entry: int, change: CollectionChange, names: Sequence[str]) -> Effect:
    """The rows that go are named for who may have to read them."""
    there = [ref for name in names if (ref := change.refs.get(name)) is not None]
    olds, vectors = tuple(ref.ordinal for ref in there), tuple(ref.vector for ref in there)
    return Effect(entry, effects.LEFT, change.record.id, olds=olds, vectors=vectors)


def _import(batch: Batch, index: int, command: Import, transfer: Transfer) -> WriteResult:
    _check_open(transfer, command.step)
    record = batch.record(command.collection)
    width = record.spec.vector_bytes
    count = len(command.ids)
    if not len(command.versions) == len(command.metadata) == count or len(command.vectors) != count * width:
        raise invalid("ids", f"{count} ids", "versions, metadata and vectors for each")
    if command.expires and len(command.expires) != count:
        raise invalid("expires", f"{len(command.expires)} instants", f"one for each of {count} documents")
    check_room(record, count)
    change = batch.change(record)
    batch.lookup(change, [*command.ids, *command.deleted])
    hidden = dict(batch.stored.hidden(record.id))
    names, deleted = command.ids, list(dict.fromkeys(command.deleted))
    replaceable = BitMap.union(BitMap(), *(hidden[move] for move in hidden if _may_replace(batch, command, move)))
    taken = {name for name, ref in change.refs.items() if ref is not None and ref.ordinal not in replaceable}
    if command.whole and not taken.isdisjoint(names):
        raise _two_keys(record.spec.name, [name for name in names if name in taken])
    kept = [at for at, name in enumerate(names) if name not in taken]
    known = {one.spec.name: one.spec for one in batch.vectors(record)}
    named = vectors_in(command.named, names, known) if command.named else {}
    names, deleted = [names[at] for at in kept], [name for name in deleted if name not in taken]
    before = BitMap([ref.ordinal for name in [*deleted, *names] if (ref := change.refs[name]) is not None])
    for move, ordinals in hidden.items():
        if ordinals.intersect(before):
            batch.hide(change, move, ordinals - before)
    batch.remove(change, deleted)
    first = change.record.next_ordinal
    rows = memoryview(command.vectors)
    block = b"".join(rows[at * width : (at + 1) * width] for at in kept)
    expires = [max(0, command.expires[at]) for at in kept] if command.expires else []
    versions, metadata = [command.versions[at] for at in kept], [command.metadata[at] for at in kept]
    batch.put(change, names, versions, block, metadata, expires, named)
    imported = (hidden.get(command.move) or BitMap()) - before | BitMap(range(first, first + len(kept)))
    batch.hide(change, command.move, imported)
    reached = max(command.cursor, transfer.cursors.get(command.collection, -1))
    cursors = {**transfer.cursors, command.collection: reached}
    batch.change_transfer(_changed(transfer, step=transfer.step + 1, cursors=cursors))
    return WriteResult(version=index, index=index, count=len(kept))


def _import_requests(batch: Batch, index: int, command: ImportRequests, transfer: Transfer) -> WriteResult:
    """Should the move be given up they stay: that says nothing that is not so."""
    _check_open(transfer, command.step)
    taken = batch.sessions.once.bring(command.rows, index)
    batch.change_transfer(_changed(transfer, step=transfer.step + 1))
    return WriteResult(version=index, index=index, count=taken)


def _may_replace(batch: Batch, command: Import, move: int) -> bool:
    """Whether this import may take the place of what `move` hides: copies of its own, and what was given away. Not what
    another move brings here: under custom routing that may be the same id under another shard key."""
    if move == command.move or not command.whole:
        return True
    transfer = batch.holdings.transfer(move) if batch.holdings is not None else None
    return transfer is None or not transfer.incoming


def _two_keys(collection: str, ids: Sequence[str]) -> NeedleError:
    """Inside a shard an id is one document, so one of the two would be lost."""
    shown = ", ".join(repr(name[:80]) for name in ids[:IDS_SHOWN])
    more = f" and {len(ids) - IDS_SHOWN} more" if len(ids) > IDS_SHOWN else ""
    return AlreadyExists(
        f"the target of the move has other documents with the ids {shown}{more}, under other shard keys; a shard holds "
        f"one document of an id, so nothing of them is moved until these ids are deleted",
        collection=collection,
        ids=shown,
        count=len(ids),
    )


def _check_open(transfer: Transfer, step: int) -> None:
    if not transfer.incoming:
        raise InvalidArgument(f"this shard is the source of move {transfer.move}, not its target", field="move")
    if transfer.phase != OPEN or transfer.step != step:
        raise _another_step(transfer, step)


def _another_step(transfer: Transfer, step: int) -> NeedleError:
    return VersionMismatch(
        f"move {transfer.move} is at step {transfer.step} ({transfer.phase}), not {step}: another driver was faster",
        actual=transfer.step,
    )


def _confirm(batch: Batch, index: int, command: Confirm, transfer: Transfer) -> WriteResult:
    if transfer.incoming and transfer.phase == OVER:
        return WriteResult(version=index, index=transfer.at, existed=True)
    _check_open(transfer, command.step)
    if command.attempt + 1 < transfer.attempt:
        raise _attempt_over(transfer, command.attempt)
    batch.change_transfer(_changed(transfer, attempt=command.attempt + 1))
    return WriteResult(version=index, index=index)


def _own(batch: Batch, index: int, command: Own, transfer: Transfer) -> WriteResult:
    if transfer.incoming and transfer.phase == OVER:
        return WriteResult(version=index, index=transfer.at, existed=True)
    _check_open(transfer, command.step)
    if command.attempt + 1 != transfer.attempt:
        raise VersionMismatch(
            f"attempt {command.attempt} of move {transfer.move} is not the last that was confirmed",
            actual=transfer.attempt,
        )
    fence = batch.fence
    if fence is None:
        raise Internal("a transfer without holdings")
    for record in _moving(batch):
        if command.move in batch.stored.hidden(record.id):
            batch.hide(batch.change(record), command.move, BitMap())
    holdings = fence.holdings
    batch.change_transfer(
        _changed(transfer, phase=OVER, at=index),
        owned=holdings.taking(transfer.ranges),
        base=max(holdings.base, command.floor),
    )
    others = sum(one.incoming and one.hides and one.move != transfer.move for one in holdings.transfers)
    batch.effects.append(Effect(index, effects.OWNED, version=others, first=transfer.move))
    return WriteResult(version=index, index=index)
