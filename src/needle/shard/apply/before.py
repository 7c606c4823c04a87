"""What a batch may ask of the state before it: the collections, and the documents that they hold.

By default there is nothing: no documents, nothing hidden, nothing that matches. It must not know SQLite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pyroaring import BitMap

from needle.base.filters.nodes import Node
from needle.shard.apply.holdings import Fence
from needle.shard.bulk.staged import StagedFiles
from needle.shard.catalog_known import ANY, CatalogKnown
from needle.shard.documents.records import CollectionRecord, DocRef, StoredDocument
from needle.shard.index_change import IndexState
from needle.shard.pins import NO_PINS, Pins
from needle.shard.plan import PublishedSegment

Find = Callable[[int, Sequence[str]], Mapping[str, DocRef]]
Member = Callable[[str, bytes], bool]
Matched = tuple[list[StoredDocument], int]


class Bounds(NamedTuple):
    """Of a part of a change by a filter: as in commands.ChangeWhere."""

    limit: int
    looks: int
    bytes_max: int


Match = Callable[[int, Node, Member | None, int, int, Bounds], Matched]


class Collections(Protocol):
    """What a batch asks about the collections before it; each answer costs the same however many there are, but for
    `all`."""

    def named(self, name: str) -> CollectionRecord | None: ...
    def numbered(self, collection_id: int) -> CollectionRecord | None: ...
    def manifest(self, collection_id: int) -> list[PublishedSegment]: ...
    def indexing(self, collection_id: int) -> IndexState: ...
    def vectors_of(self, name: str) -> Iterable[str]:
        """The named vectors of a collection, by the names that they have inside the shard."""
        ...

    def all(self) -> Iterable[CollectionRecord]: ...


def _nothing_hidden(_: int) -> Mapping[int, BitMap]:
    return {}


def _nothing_stored(_: int, __: Sequence[int]) -> Mapping[int, StoredDocument]:
    return {}


def _nothing_selected(_: int, __: Member, ___: int, ____: int) -> Iterable[int]:
    return ()


def _nothing_matched(_: int, __: Node, ___: Member | None, ____: int, upto: int, _____: Bounds) -> Matched:
    return [], upto


def _nothing_moves() -> Sequence[int]:
    return ()


def _nothing_live(_: int) -> BitMap:
    return BitMap()


def _nothing_expires(_: int, __: int, ___: int) -> Sequence[StoredDocument]:
    return ()


@dataclass(frozen=True)
class Stored:
    """What a batch may ask of the state before it, by collection id. hidden: the invisible ordinals of each move.
    marked: what Mark has found for each move, also if it died since. live: the ordinals of current documents.
    documents: by ordinal, without vectors. select: of the documents that (id, metadata) tells, the live ordinals above
    the first and up to the second bound. match: of the visible documents in such bounds those that match a filter
    and that (id, metadata) tells, in the order of their ordinals, without vectors, within bounds; and the ordinal up to
    which it looked. expiring: the documents that expire at an instant or earlier, at most so many, the earliest first,
    without vectors. pins, catalog: as they are. staged: files of bulk loads; None where there are none. moving: the
    collections of which a move hides documents, or has marked some, ascending."""

    fence: Fence | None = None
    hidden: Callable[[int], Mapping[int, BitMap]] = _nothing_hidden
    documents: Callable[[int, Sequence[int]], Mapping[int, StoredDocument]] = _nothing_stored
    select: Callable[[int, Member, int, int], Iterable[int]] = _nothing_selected
    marked: Callable[[int], Mapping[int, BitMap]] = _nothing_hidden
    live: Callable[[int], BitMap] = _nothing_live
    match: Match = _nothing_matched
    expiring: Callable[[int, int, int], Sequence[StoredDocument]] = _nothing_expires
    pins: Pins = NO_PINS
    catalog: CatalogKnown = ANY
    staged: StagedFiles | None = None
    moving: Callable[[], Sequence[int]] = _nothing_moves
