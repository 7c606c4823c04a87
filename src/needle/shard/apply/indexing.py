"""Executing what the log says of index files: which there are, and which of them searches use.

Deterministic, as `execute` says. Whether a file is here is no part of it.
"""

from __future__ import annotations

import msgspec

from needle.base.errors import CollectionNotFound, InvalidArgument
from needle.base.model import WriteResult
from needle.protocol.upkeep_commands import KeepIndex, PublishSegment, StageSegment, SwitchIndex
from needle.shard.apply.batch import Batch
from needle.shard.apply.changes import CollectionChange
from needle.shard.index_change import IndexState, Switched, is_staged, with_staged
from needle.shard.plan import PublishedSegment, with_published


def execute_index(
    batch: Batch, index: int, command: PublishSegment | StageSegment | SwitchIndex | KeepIndex
) -> WriteResult:
    """Raises CollectionNotFound; InvalidArgument for what came too late."""
    record = batch.numbered(command.collection_id)
    if record is None:
        raise CollectionNotFound(f"there is no collection with id {command.collection_id}")
    change = batch.change(record)
    if isinstance(command, PublishSegment):
        _publish(batch, change, command)
    elif isinstance(command, StageSegment):
        _stage(batch, change, command)
    elif isinstance(command, SwitchIndex):
        _switch(batch, index, change, command)
    else:
        change.indexing = _without(batch.indexing(change))
    change.touched = True
    return WriteResult(version=index, index=index)


def _publish(batch: Batch, change: CollectionChange, command: PublishSegment) -> None:
    *fields, generation = msgspec.structs.astuple(command)
    segment = PublishedSegment(*fields)
    manifest = with_published(batch.manifest(change), segment, change.record.next_ordinal)
    if manifest is None or generation != batch.indexing(change).generation:
        raise InvalidArgument(f"segment [{command.first}, {command.last}] does not fit the manifest any more")
    change.manifest = manifest
    change.published.append(segment)


def _stage(batch: Batch, change: CollectionChange, command: StageSegment) -> None:
    collection_id, index, *fields = (getattr(command, name) for name in command.__struct_fields__)
    segment, record = PublishedSegment(collection_id, *fields), change.record
    state = None
    if index.built != record.spec.index.built:
        state = with_staged(batch.indexing(change), index, segment, batch.manifest(change), record.next_ordinal)
    if state is None:
        raise InvalidArgument(f"segment [{segment.first}, {segment.last}] is of no use for index {index.built}")
    change.indexing = state


def _switch(batch: Batch, index: int, change: CollectionChange, command: SwitchIndex) -> None:
    state, manifest = batch.indexing(change), batch.manifest(change)
    if not is_staged(state, command.index, manifest):
        raise InvalidArgument(f"the files of index {command.index.built} do not cover all that is indexed")
    if command.index.built == change.record.spec.index.built:
        raise InvalidArgument(f"index {command.index.built} is what the collection has")
    change.manifest = list(state.staged) if manifest else []
    last = Switched(command.before, command.after, command.queries)
    change.indexing = IndexState(index, last=last, loaded=state.loaded)
    batch.reindex(change, command.index)


def _without(state: IndexState) -> IndexState:
    return IndexState(state.generation, last=state.last, loaded=state.loaded)
