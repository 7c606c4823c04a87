"""How large a collection is, and how far its indexes are. Those of all shards are the sums of those of each."""

from __future__ import annotations

from typing import Any

import msgspec


class FieldIndex(msgspec.Struct, frozen=True, kw_only=True):
    """The index of a declared field in one shard, on the replica that answered, or in all. state: ready: it has all
    documents, but for those of the last seconds; building: not yet, or a shard has not heard of it; no_room: the bound
    of memory does not hold it, so it is not kept; not_told: to an API key for some documents only. bytes: of memory
    that it takes."""

    state: str
    bytes: int = 0

    def __add__(self, other: FieldIndex) -> FieldIndex:
        worse = max(self.state, other.state, key=FIELD_STATES.index)
        return FieldIndex(state=worse, bytes=self.bytes + other.bytes)


FIELD_STATES = ("ready", "building", "no_room")
"""From the best to the worst."""
NOT_TOLD = "not_told"
"""Where no shard says anything, in the place of a sum of their states."""


class IndexProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The index of a collection's files in one shard, as its log says, or in all. now: what they are built as (see
    IndexParams.built). wanted: what files are being built as, that will take their place. vectors: those that files
    hold; done: of so many there is a file of the wanted index. recall_before, recall_after: of the former index and of
    this one, at the switch, over so many queries; None without a switch, or with nothing to measure. waiting: vectors
    that no file has on the replica that answered, where they are enough for one: until it is built, searches score
    them one by one."""

    now: list[str] = []
    wanted: list[str] = []
    vectors: int = 0
    done: int = 0
    recall_before: float | None = None
    recall_after: float | None = None
    queries: int = 0
    waiting: int = 0

    def __add__(self, other: IndexProgress) -> IndexProgress:
        queries = self.queries + other.queries
        parts = [one for one in (self, other) if one.queries]

        def mean(name: str) -> float | None:
            return sum(getattr(one, name) * one.queries for one in parts) / queries if parts else None

        return IndexProgress(
            now=sorted({*self.now, *other.now}),
            wanted=sorted({*self.wanted, *other.wanted}),
            vectors=self.vectors + other.vectors,
            done=self.done + other.done,
            recall_before=mean("recall_before"),
            recall_after=mean("recall_after"),
            queries=queries,
            waiting=self.waiting + other.waiting,
        )


class CollectionSize(msgspec.Struct, frozen=True, kw_only=True):
    """How large a collection is in one shard, on the replica that answered, or in all. documents: exactly.
    document_bytes: of their rows with ids and metadata on disk, about. vector_bytes: of their vectors beside these.
    index_bytes: of the index files, which hold the vectors once more, and those of deleted documents until they are
    made again. field_index_bytes: of the indexes of metadata's fields. fields: those that are declared. index: of the
    vectors. vectors: so of each named vector."""

    documents: int = 0
    document_bytes: int = 0
    vector_bytes: int = 0
    index_bytes: int = 0
    field_index_bytes: int = 0
    fields: dict[str, FieldIndex] = {}
    index: IndexProgress = IndexProgress()
    vectors: dict[str, IndexProgress] = {}

    def __add__(self, other: CollectionSize) -> CollectionSize:
        mine, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        dicts: dict[str, Any] = {name: _both(mine.pop(name), theirs[name]) for name in ("fields", "vectors")}
        return CollectionSize(**{name: mine[name] + theirs[name] for name in mine}, **dicts)


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What both have is added up."""
    return other | {name: value + other[name] if name in other else value for name, value in one.items()}


def index_called(path: str, kind: str) -> str:
    """The name, among those of a collection, of an index of a field that is of something else than its values."""
    return f"{path} ({kind})"
