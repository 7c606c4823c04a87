"""Bitmaps of ordinals per field value: a filter becomes the exact set of ordinals that match it.

A field is indexed when it is first filtered on, from the stored metadata; afterwards apply keeps it up to date. The
answer never depends on whether a field is indexed: base.filters.evaluate is the definition, and a field with more than
VALUES_MAX different values is not indexed but scanned.

Invariants: an indexed field knows every ordinal below `end`; postings only ever gain ordinals, the caller's `dead` set
takes the others out; so one index serves every view of the collection, older ones too.

Memory: about 100 bytes for each different value plus 0.2 to 4 bytes for each ordinal; a value that only one document
has costs no bitmap. It must not know SQLite, vectors or Raft.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
from pyroaring import BitMap

from needle.base.errors import StorageError
from needle.base.filter_nodes import And, Compare, Node, Not, Or, evaluate, lookup
from needle.base.filter_operators import Scalar, kind
from needle.base.instants import Instant

VALUES_MAX: Final = 1_000_000
FIELDS_MAX: Final = 64
SCAN_ROWS: Final = 8192

Path = tuple[str, ...]
Rows = Callable[[int, int], list[tuple[int, bytes]]]
"""rows(first, end): (ordinal, metadata JSON) of the stored documents with ordinals in [first, end)."""

_decode = msgspec.json.decode


def decode_metadata(data: bytes) -> Any:
    """Stored metadata as a Python value; b"" is null."""
    if not data:
        return None
    try:
        return _decode(data)
    except msgspec.MsgspecError as error:
        raise StorageError(f"stored metadata is not JSON: {error}") from error


class _Values:
    """Postings of one type class: value -> ordinals. One ordinal is kept as an int, several as a bitmap."""

    def __init__(self) -> None:
        self.postings: dict[Any, int | BitMap] = {}
        self._sorted: list[Any] = []
        self._unsorted: list[Any] = []

    def add(self, value: Any, ordinal: int) -> None:
        held = self.postings.get(value)
        if held is None:
            self.postings[value] = ordinal
            self._unsorted.append(value)
        elif isinstance(held, BitMap):
            held.add(ordinal)
        elif held != ordinal:
            self.postings[value] = BitMap((held, ordinal))

    def of(self, values: Iterable[Any]) -> BitMap:
        """The union of the postings of `values`."""
        single: list[int] = []
        many: list[BitMap] = []
        for value in values:
            held = self.postings.get(value)
            if isinstance(held, BitMap):
                many.append(held)
            elif held is not None:
                single.append(held)
        return BitMap.union(BitMap(single), *many)

    def sorted(self) -> list[Any]:
        """Every value, ascending."""
        if self._unsorted:
            self._sorted.extend(self._unsorted)
            self._unsorted.clear()
            self._sorted.sort()
        return self._sorted

    def between(self, op: str, bound: Any) -> list[Any]:
        """The values that $gt, $gte, $lt, $lte or $between allow."""
        values = self.sorted()
        low, high = 0, len(values)
        if op == "$gt":
            low = bisect_right(values, bound)
        elif op == "$gte":
            low = bisect_left(values, bound)
        elif op == "$lt":
            high = bisect_left(values, bound)
        elif op == "$lte":
            high = bisect_right(values, bound)
        else:
            low, high = bisect_left(values, bound[0]), bisect_right(values, bound[1])
        return values[low:high]


class FieldIndex:
    """One field of one collection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        self._present = BitMap()
        self._null = BitMap()
        self._true = BitMap()
        self._false = BitMap()
        self._numbers = _Values()
        self._strings = _Values()

    def __len__(self) -> int:
        """Different values held."""
        return len(self._numbers.postings) + len(self._strings.postings)

    def add(self, ordinal: int, metadata: object) -> None:
        """The next ordinal, in ascending order; gaps are ordinals that were dead before the field was indexed."""
        self.end = ordinal + 1
        present, found = lookup(metadata, self.path)
        if not present:
            return
        self._present.add(ordinal)
        for value in found:
            if isinstance(value, bool):
                (self._true if value else self._false).add(ordinal)
            elif isinstance(value, str):
                self._strings.add(value, ordinal)
            elif value is None:
                self._null.add(ordinal)
            else:
                self._numbers.add(value, ordinal)

    def _equal(self, value: Scalar, universe: BitMap) -> BitMap:
        if value is None:
            return self._null | (universe - self._present)
        if isinstance(value, bool):
            return self._true if value else self._false
        return (self._strings if isinstance(value, str) else self._numbers).of((value,))

    def _in(self, values: Sequence[Scalar], universe: BitMap) -> BitMap:
        special = [self._equal(v, universe) for v in values if v is None or isinstance(v, bool)]
        numbers = self._numbers.of(dict.fromkeys(v for v in values if kind(v) == "number"))
        strings = self._strings.of(dict.fromkeys(v for v in values if isinstance(v, str)))
        return BitMap.union(numbers, strings, *special)

    def matching(self, op: str, value: Any, universe: BitMap) -> BitMap:
        """Ordinals for which the comparison holds; may hold some outside `universe`, never lacks one inside."""
        if op == "$eq":
            return self._equal(value, universe)
        if op == "$in":
            return self._in(value, universe)
        if op == "$ne":
            return universe - self._equal(value, universe)
        if op == "$nin":
            return universe - self._in(value, universe)
        if op == "$exists":
            return self._present if value else universe - self._present
        if op == "$all":
            return BitMap.intersection(*(self._equal(v, universe) for v in value)) if value else BitMap()
        if op == "$contains":
            return self._strings.of([text for text in self._strings.postings if value in text])
        if op == "$starts_with":
            return self._strings.of(_prefixed(self._strings.sorted(), value))
        numeric = kind(value[0] if op == "$between" else value) == "number"
        values = self._numbers if numeric else self._strings
        return values.of(values.between(op, value))


def _prefixed(values: list[str], prefix: str) -> list[str]:
    low = bisect_left(values, prefix)
    # Strings with the prefix are one run of the sorted values.
    high = bisect_right(values, prefix, lo=low, key=lambda text: text[: len(prefix)])
    return values[low:high]


class PayloadIndex:
    """The field indexes of one collection incarnation. `add` is called by apply, `matching` by any search thread."""

    def __init__(self, rows: Rows, values_max: int = VALUES_MAX) -> None:
        self._rows = rows
        self._values_max = values_max
        self._fields: dict[Path, FieldIndex] = {}
        self._scanned: dict[Path, None] = {}
        self._guard = threading.Lock()
        self._building = threading.Lock()

    def indexed(self) -> list[str]:
        """The fields that have bitmaps."""
        with self._guard:
            return [".".join(path) for path in self._fields]

    def add(self, documents: Sequence[tuple[int, bytes]]) -> None:
        """New documents, (ordinal, metadata JSON), ascending. Call before a view that holds them is published."""
        with self._guard:
            if not self._fields:
                return
            decoded = [(ordinal, decode_metadata(data)) for ordinal, data in documents]
            for path, field in list(self._fields.items()):
                for ordinal, metadata in decoded:
                    if ordinal >= field.end:
                        field.add(ordinal, metadata)
                if len(field) > self._values_max:
                    self._give_up(path)

    def _give_up(self, path: Path) -> None:
        self._fields.pop(path, None)
        self._scanned[path] = None

    def matching(self, node: Node, end: int, dead: BitMap) -> BitMap:
        """The ordinals below `end` that are not in `dead` and whose metadata matches: exactly."""
        return self.within(node, end, BitMap(range(end)) - dead)

    def within(self, node: Node, end: int, universe: BitMap) -> BitMap:
        """Those of the ordinals `universe`, all of which are below `end`, whose metadata matches: exactly."""
        scanned = [path for path in dict.fromkeys(_paths(node)) if not self._ensure(path, end)]
        if scanned or _asks_for_instants(node):
            return self._scan(node, end, universe)
        try:
            with self._guard:
                return self._evaluate(node, universe) & universe
        except KeyError:  # given up by apply between _ensure and here
            return self._scan(node, end, universe)

    def _ensure(self, path: Path, end: int) -> bool:
        """Whether the field has bitmaps for the ordinals below `end`, after building them if need be."""
        with self._guard:
            if path in self._fields:
                return True
            if path in self._scanned or len(self._fields) >= FIELDS_MAX:
                return False
        with self._building:
            return self._build(path, end)

    def _build(self, path: Path, end: int) -> bool:
        """Index what is stored; most of it without holding up apply. Apply adds whatever comes later."""
        with self._guard:
            if path in self._fields or path in self._scanned:
                return path in self._fields
        field = FieldIndex(path)
        for first in range(0, end, SCAN_ROWS):
            for ordinal, data in self._rows(first, min(first + SCAN_ROWS, end)):
                field.add(ordinal, decode_metadata(data))
            if len(field) > self._values_max:
                with self._guard:
                    self._give_up(path)
                return False
        with self._guard:
            # Documents are stored before apply calls `add`, which waits for the guard: nothing falls between.
            for ordinal, data in self._rows(end, 1 << 32):
                field.add(ordinal, decode_metadata(data))
            self._fields[path] = field
        return True

    def _evaluate(self, node: Node, universe: BitMap) -> BitMap:
        if isinstance(node, And):
            parts = [self._evaluate(child, universe) for child in node.children]
            return BitMap.intersection(*parts) if parts else universe
        if isinstance(node, Or):
            return BitMap.union(*(self._evaluate(child, universe) for child in node.children))
        if isinstance(node, Not):
            return universe - self._evaluate(node.child, universe)
        return self._fields[node.path].matching(node.op, node.value, universe)

    def _scan(self, node: Node, end: int, universe: BitMap) -> BitMap:
        """Evaluate the filter on the stored metadata, document by document: exact, and no memory."""
        found = BitMap()
        for first in range(0, end, SCAN_ROWS):
            rows = self._rows(first, min(first + SCAN_ROWS, end))
            found.update(ordinal for ordinal, data in rows if evaluate(node, decode_metadata(data)))
        return found & universe


def _asks_for_instants(node: Node) -> bool:
    """Whether a comparison is with an instant: the bitmaps know texts only."""
    if isinstance(node, Compare):
        return any(isinstance(v, Instant) for v in (node.value if isinstance(node.value, tuple) else (node.value,)))
    if isinstance(node, Not):
        return _asks_for_instants(node.child)
    return any(map(_asks_for_instants, node.children))


def _paths(node: Node) -> Iterator[Path]:
    if isinstance(node, Compare):
        yield node.path
    elif isinstance(node, Not):
        yield from _paths(node.child)
    else:
        for child in node.children:
            yield from _paths(child)
