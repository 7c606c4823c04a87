"""Executing Expire: what has passed its instant is deleted. Pure decisions, as in `execute`.

No replica decides by a clock: what an entry deletes follows from the instants that the log gave to documents, and from
the one that the entry names. It is a batch of its own, so the stored state is exactly the one before it. It must not
know SQLite or clocks.
"""

from __future__ import annotations

from pyroaring import BitMap

from needle.base.model import WriteResult
from needle.protocol.commands import Expire
from needle.shard.apply.batch import Batch


def expire(batch: Batch, index: int, command: Expire) -> WriteResult:
    """Raises CollectionNotFound.

    Copies that a move has brought and that are not owned yet are deleted, too: their instant has passed here, and
    should the source have given a later one, it sends the document again. Frozen keys are left alone: a move has copied
    what there was of them, and what disappears after that would come back in the other shard."""
    record, fence = batch.record(command.collection), batch.fence
    found = batch.stored.expiring(record.id, command.before, max(1, command.limit))
    if fence is not None and fence.freezes:
        found = [document for document in found if not fence.froze(document.id, document.metadata)]
    if found:
        change = batch.change(record)
        ids = [document.id for document in found]
        batch.lookup(change, ids)
        gone, copies = BitMap([document.ordinal for document in found]), BitMap()
        for move, ordinals in batch.stored.hidden(record.id).items():
            if ordinals.intersect(gone):
                batch.hide(change, move, ordinals - gone)
                copies |= ordinals & gone
        batch.remove(change, [document.id for document in found if document.ordinal not in copies])
        if copies:
            batch.copies_expired, batch.telling = True, 0  # nobody was told of them here
            batch.remove(change, [document.id for document in found if document.ordinal in copies])
    return WriteResult(version=batch.version(index), index=index, existed=bool(found), count=len(found))
