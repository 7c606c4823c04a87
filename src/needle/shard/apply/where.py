"""Executing changes of documents that a filter chooses: pure decisions, as in `execute`.

Each of these entries is a batch of its own, so the stored state is exactly the one before it. It must not know SQLite.
"""

from __future__ import annotations

from collections.abc import Mapping

from needle.base.errors import InvalidArgument, StaleEpoch
from needle.base.filters.nodes import And
from needle.base.model import WriteResult
from needle.protocol.commands import Bound, Change, ChangeWhere
from needle.shard.apply.batch import Batch, check_room
from needle.shard.apply.before import Bounds
from needle.shard.apply.changes import CollectionChange
from needle.shard.apply.holdings import moved
from needle.shard.apply.patching import changed
from needle.shard.apply.visible import check_written, parsed


def amend(
    batch: Batch, index: int, change: CollectionChange, before: Mapping[str, bytes], how: Change, bound: Bound | None
) -> None:
    """Change the metadata of documents that are there. before: what they have. bound: of the write. Raises
    InvalidArgument, Forbidden, and then nothing has changed."""
    now = {id_: changed(id_, metadata, how) for id_, metadata in before.items()}
    check_written(bound, now.items())
    fence = batch.fence
    if fence is not None and fence.custom:
        for id_, metadata in now.items():
            if fence.key(id_, metadata) != fence.key(id_, before[id_]):
                raise InvalidArgument(
                    f"document {id_[:80]!r} would get another shard key; delete it and insert it again", field="change"
                )
    if now:
        batch.amend(change, before, batch.version(index), now, how.expires)


def change_where(batch: Batch, index: int, command: ChangeWhere) -> WriteResult:
    """Raises NeedleError for what is refused; then nothing has changed."""
    record, fence = batch.record(command.collection), batch.fence
    member = None
    if command.within:
        if fence is None:
            raise InvalidArgument("only a shard that took part in a move changes by ranges", field="within")
        if not fence.takes(command.within):
            raise StaleEpoch("these ranges are moving to another shard, or have moved", owned=False)
        member = fence.member(command.within)
    elif fence is not None and command.owned not in (0, fence.fingerprint):
        raise StaleEpoch("what this shard owns is not what the map says by which it was asked", owned=False)
    last = record.next_ordinal - 1
    upto = last if command.upto < 0 else min(command.upto, last)
    node, bound = parsed(command.filter), command.bound
    if bound:
        node = And((parsed(bound.filter), node))
    found, reached = batch.stored.match(
        record.id, node, member, command.after, upto, Bounds(command.limit, command.looks, command.bytes_max)
    )
    ids = [document.id for document in found]
    if fence is not None:
        for document in found:
            if not fence.accepts(document.id, document.metadata):
                raise moved(document.id)
    if found:
        change = batch.change(record)
        batch.lookup(change, ids)
        if command.change is None:
            batch.remove(change, ids)
        else:
            check_room(record, len(ids))
            before = {document.id: document.metadata for document in found}
            amend(batch, index, change, before, command.change, bound)
    return WriteResult(
        version=batch.version(index),
        index=index,
        existed=bool(found),
        count=len(found),
        ids=ids if command.return_ids else [],
        reached=reached if reached < upto else -1,
        upto=upto,
    )
