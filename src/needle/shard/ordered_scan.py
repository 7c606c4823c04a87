"""A page of a scan in the order of a field: which documents are the next ones, and reading them.

What is chosen is of one view; of a scan without a pin it is then read as it is now, so that nobody gets what was
replaced meanwhile. Who was changed meanwhile is in the page only if it belongs there still, by its filter and place.

Invariant: a page holds at most what it was asked for, and costs what its documents do, or, where few match, what these
do. Threads: any. It must not know apply or Raft.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge, nsmallest
from typing import Final, NamedTuple, Protocol

import msgspec
from pyroaring import BitMap

from needle.base.errors import invalid
from needle.base.filters.builder import field_path
from needle.base.filters.nodes import Compare, Node
from needle.base.filters.ordering import START, Key, ScanOrder, Turned, key_of, turned, turned_back
from needle.shard.documents import scans
from needle.shard.documents.metadata_rows import decode_metadata
from needle.shard.documents.records import StoredDocument
from needle.shard.documents.store import DocumentStore
from needle.shard.fields.builders import Builders
from needle.shard.fields.ordered import Part, parts, undecided
from needle.shard.live_collection import CollectionView

READ_ALL: Final = 10_000
"""So many documents are read and sorted for each page; for more, the index of the field is asked which are next."""
PART_MAX: Final = 4096
CHUNK: Final = 512
GoOn = Callable[[], None]


class Asked(Protocol):
    """reads.Page."""

    @property
    def after(self) -> str: ...
    @property
    def limit(self) -> int: ...
    @property
    def with_vectors(self) -> bool: ...
    @property
    def vector_bytes(self) -> int: ...
    def holds(self, document: StoredDocument, node: Node | None) -> bool: ...


class Chosen(NamedTuple):
    """Where a document stands, and its version then."""

    key: Turned
    id: str
    ordinal: int
    size: int


class Ordered:
    """One page. shows: whether a reader may see a document. size_max: bytes of a page, about."""

    def __init__(
        self,
        held: CollectionView,
        store: DocumentStore,
        page: Asked,
        order: ScanOrder,
        node: Node | None,
        shows: Callable[[StoredDocument], bool],
        size_max: int,
        go_on: GoOn,
    ) -> None:
        self._held, self._store, self._page, self._node = held, store, page, node
        self._shows, self._size_max, self._go_on = shows, size_max, go_on
        self._path = field_path(order.field)
        self._field = ".".join(self._path)
        self._descending = order.descending
        self._start: Turned = turned(order.key) if order.descending else order.key
        self._behind = (self._start, page.after)

    def chosen(self, universe: BitMap, builders: Builders | None) -> tuple[list[Chosen], bool]:
        """The next ones of a universe, whose documents were visible at one moment and are not purged; and whether there
        are no more. Raises InvalidArgument where there is no room for the index that it takes."""
        end = self._held.record.next_ordinal
        payload = self._held.payload
        allowed = universe if self._node is None else payload.within(self._node, end, universe, builders, self._go_on)
        if len(allowed) <= READ_ALL:
            return self._cut(sorted(self._read(allowed, None)))
        there = Compare(self._field, self._path, "$exists", True)
        payload.within(there, end, universe, builders, self._go_on)
        state = payload.state_of(self._path)
        if state is None:
            raise invalid(
                "order_by",
                self._field,
                f"a field whose index fits into memory, for {len(allowed):,} documents of a shard match, and more than "
                f"{READ_ALL:,} are not sorted without: raise limits.field_index_bytes_max, declare it by "
                "create_field_index, so that others make place, or give a filter that leaves fewer",
            )
        some = self._page.limit + self._page.limit // 8 + 8  # some are before the page, and one behind it
        odd = undecided(state, allowed)
        found = parts(state, self._start, allowed - odd, some, PART_MAX, descending=self._descending)
        read = nsmallest(self._page.limit + 1, self._read(odd, None))  # one more says that there are more
        return self._cut(merge(read, (one for part in found for run in self._of_part(part) for one in run)))

    def _of_part(self, part: Part) -> Iterator[list[Chosen]]:
        if not part.single or len(part.ordinals) <= PART_MAX:
            yield sorted(self._read(part.ordinals, part))
            return
        key, after = self._behind
        after = after if key == part.upto else ""
        while True:
            self._go_on()
            with self._store.at_once() as connection:
                ids = scans.ids_in_order(connection, self._held.record.id, part.ordinals, after, CHUNK)
            yield sorted(self._read([ordinal for _, ordinal in ids], part))
            if len(ids) < CHUNK:
                return
            after = ids[-1][0]

    def _read(self, ordinals: BitMap | Sequence[int], part: Part | None) -> Iterator[Chosen]:
        """Those of some documents that come behind the place where the page begins, and belong to a part."""
        listed, collection = list(ordinals), self._held.record.id
        for start in range(0, len(listed), CHUNK):
            self._go_on()
            some = listed[start : start + CHUNK]
            for document in self._store.by_ordinal(collection, some, metadata=True, vectors=False).values():
                key = self.key(document)
                if (key, document.id) <= self._behind or not (part is None or part.holds(key)):
                    continue
                if self._page.holds(document, None) and self._shows(document):
                    size = len(document.metadata) + self._page.vector_bytes
                    yield Chosen(key, document.id, document.ordinal, size)

    def _cut(self, ascending: Iterable[Chosen]) -> tuple[list[Chosen], bool]:
        found: list[Chosen] = []
        size = 0
        for one in ascending:
            if len(found) == self._page.limit or size > self._size_max:
                return found, False
            found.append(one)
            size += one.size
        return found, True

    def key(self, document: StoredDocument) -> Turned:
        """Where a document stands; turned if the order is descending, as all keys in here."""
        key = key_of(decode_metadata(document.metadata), self._path, descending=self._descending)
        return turned(key) if self._descending else key

    def told(self, key: Turned) -> Key:
        """As it is told to who asks, who may give it back."""
        return turned_back(key) if self._descending else key

    def as_now(self, chosen: Sequence[Chosen], now: Iterable[StoredDocument]) -> list[tuple[Turned, StoredDocument]]:
        """The current documents of the chosen ids, where they belong to the page. now: those that are there."""
        ordinals = {one.id: one for one in chosen}
        upto: tuple[Turned, str] = chosen[-1][:2] if chosen else (START, "")
        kept = []
        for document in now:
            was = ordinals[document.id]
            key = was.key if was.ordinal == document.ordinal else self.key(document)
            fits = was.ordinal == document.ordinal or (
                self._behind < (key, document.id) <= upto and self._page.holds(document, self._node)
            )
            if fits and self._shows(document):
                kept.append((key, document))
        return sorted(kept, key=lambda one: (one[0], one[1].id))

    def as_pinned(self, chosen: Sequence[Chosen], pin: tuple[int, int]) -> list[tuple[Turned, StoredDocument]]:
        """The chosen documents as they were at a pin. Raises ScanEnded if it is not open any more."""
        ordinals = [one.ordinal for one in chosen]
        vectors = self._page.with_vectors
        found = self._store.by_ordinal(self._held.record.id, ordinals, metadata=True, vectors=vectors)
        with self._store.at_once() as connection:
            expires = scans.expiries(connection, self._held.record.id, *pin, list(found.values()))
        return [
            (one.key, msgspec.structs.replace(found[one.ordinal], expires=expires.get(one.ordinal, 0)))
            for one in chosen
        ]
