"""Whether the files of a bulk load may be named by the log: what whoever leads finds out before it proposes that
(docs/adr/0119). Afterwards nobody can refuse them any more, and every replica does with them what they say.

Who prepared them has checked the same; but an index file with a link that leads nowhere ends the process that follows
it, and a document in the wrong shard would never be found. Blocking, in a thread; memory: a block, and 8 bytes a
document. It must not know the log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
import numpy as np

from needle.base.config import Limits
from needle.base.decoding import routed_metadata
from needle.base.errors import CorruptSegment, InvalidArgument, Unavailable, invalid
from needle.base.model import CollectionSpec
from needle.protocol.commands import Insert
from needle.protocol.upkeep_commands import LoadedFile, LoadRows
from needle.routing.ranges import KeySet
from needle.routing.shard_map import KeyRange
from needle.routing.strategy import ShardStrategy, routing_key
from needle.shard.apply.validation import check_command
from needle.shard.bulk.rows_file import doubled, id_hashes, read_rows, vectors_between
from needle.shard.bulk.staged import StagedFiles, rows_name
from needle.shard.plan import SEAL_ROWS_MIN, PublishedSegment
from needle.shard.segments.adopted import fit
from needle.shard.segments.sealed import SealedSegment, segment_file

NO_BOUND: Final = 10**9
UNCOVERED_BYTES_MAX: Final = 256 << 20
"""Of vectors of one shard's load that no index file has."""


class Owning(NamedTuple):
    """What a shard owns."""

    strategy: ShardStrategy
    shard_count: int
    ranges: list[KeyRange]


def check_load(
    command: LoadRows, staged: StagedFiles, spec: CollectionSpec, limits: Limits, owning: Owning,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Raises InvalidArgument, CorruptSegment; Unavailable for a file that is not what was put here any more, and goes;
    BuildCancelled."""
    _check_uncovered(command, spec)
    _check_sound(command, staged)
    path = staged.path(rows_name(command.collection_id, command.checksum))
    _check_rows(path, command, spec, limits, owning)
    for one in command.indexes:
        _check_index(path, command.collection_id, one, staged, spec, cancelled)


def _check_sound(command: LoadRows, staged: StagedFiles) -> None:
    """A disk may have changed it since: then what it has says nothing of the load, and it has to come again."""
    indexes = [PublishedSegment(command.collection_id, *msgspec.structs.astuple(one)) for one in command.indexes]
    for name in (rows_name(command.collection_id, command.checksum), *map(segment_file, indexes)):
        if not staged.sound(name):
            raise Unavailable(f"file {name} of a bulk load is damaged on this node, and was deleted: put it here again")


def _check_uncovered(command: LoadRows, spec: CollectionSpec) -> None:
    """What no index file has comes into the memory of each replica, when nobody can refuse it any more."""
    rows = command.rows - (command.indexes[-1].last + 1 if command.indexes else 0)
    size = rows * spec.vector_bytes
    if size > UNCOVERED_BYTES_MAX and rows > SEAL_ROWS_MIN:
        raise InvalidArgument(
            f"{rows} documents of this shard are in no index file, so that {size} bytes of vectors would come into the "
            f"memory of each replica at once, and {UNCOVERED_BYTES_MAX} may: load into a collection of float32 vectors "
            "with a flat or an hnsw index, and give it another index afterwards, or insert them",
            field="indexes", rows=rows, size=size, limit=UNCOVERED_BYTES_MAX,
        )  # fmt: skip


def _check_rows(path: str, command: LoadRows, spec: CollectionSpec, limits: Limits, owning: Owning) -> None:
    custom, keys = owning.strategy.kind == "custom", KeySet(owning.ranges)
    # Each document is bounded; how many are in a block is the file's business.
    limits = msgspec.structs.replace(limits, batch_documents_max=NO_BOUND, batch_bytes_max=NO_BOUND)
    hashes, count = [], 0
    for rows in read_rows(path):
        insert = Insert(spec.name, rows.ids, rows.vectors, rows.metadata, dtype=spec.dtype)
        checked = check_command(insert, lambda _: spec, limits)
        if not isinstance(checked, Insert) or checked.vectors != rows.vectors or len(checked.ids) != len(rows.ids):
            raise InvalidArgument("vectors of a bulk load are not as the collection stores them", field="vectors")
        for name, metadata in zip(rows.ids, rows.metadata, strict=True):
            said = routed_metadata(metadata) if custom else None
            if routing_key(owning.strategy, owning.shard_count, name, said) not in keys:
                raise invalid("ids", name[:80], "one whose key this shard owns")
        hashes.append(id_hashes(rows))
        count += len(rows.ids)
    if count != command.rows:
        raise invalid("rows", command.rows, f"{count}, as the file has")
    if doubled(hashes):
        raise InvalidArgument("two documents of a bulk load have the same id (or hash)", field="ids")


def _check_index(
    rows: str, collection_id: int, one: LoadedFile, staged: StagedFiles, spec: CollectionSpec,
    cancelled: Callable[[], bool],
) -> None:  # fmt: skip
    segment = PublishedSegment(collection_id, *msgspec.structs.astuple(one))
    path = staged.path(segment_file(segment))
    fit(path, one.first, one.last, vectors_between(rows, one.first, one.last, spec.dimensions), spec, cancelled)
    sealed = SealedSegment(path, segment, spec)
    if not np.array_equal(sealed.all_ordinals(), np.arange(one.first, one.last + 1)):
        raise CorruptSegment("an index file of a bulk load has not the ordinals that it says", path=path)
    for ordinals, vectors in vectors_between(rows, one.first, one.last, spec.dimensions):
        here = sealed.vectors(slice(int(ordinals[0]) - one.first, int(ordinals[-1]) - one.first + 1))
        if here.tobytes() != vectors.tobytes():
            raise CorruptSegment("an index file of a bulk load has other vectors than its documents", path=path)
