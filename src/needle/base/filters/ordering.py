"""The order of documents by a field of metadata: what a scan with `order_by` goes by.

A document counts with the least of the values that its field stands for, as a filter sees them: numbers come first,
then texts by code point, then false and true, and at the end all documents without any of these (missing, null,
objects, arrays of nothing else). Ties are by id. Descending, the greatest value counts, and all of that is turned round
but for the documents without a value and the ids (`turned`). Keys are bounded, for they travel in cursors: a text
counts with its first bytes, a whole number of more than 64 bits as a float. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from needle.base.filters.nodes import lookup
from needle.base.plain import INT_MAX, INT_MIN

Key = tuple[int, int | float | bytes | None]
"""The rank, and the value in it: a number; bytes of UTF-8; 0 or 1; None."""

Turned = tuple[int, Any]

FIRST: Final = -1
NUMBERS, TEXTS, FLAGS, REST = range(4)
START: Final[Key] = (FIRST, None)
"""Before all documents."""
LAST: Final[Key] = (REST, None)
HEAD_BYTES: Final = 47
"""Of a text, what counts in an order. Indexes keep so much of long texts (shard.fields.value_columns)."""


class ScanOrder(msgspec.Struct, frozen=True, array_like=True):
    """field: a path of metadata. key: of the document behind which a scan goes on; START for the first page.
    descending: from the greatest value."""

    field: str
    key: Key = START
    descending: bool = False

    def known(self) -> bool:
        """Whether the key is one that `key_of` gives, or START."""
        rank, value = self.key
        if rank == NUMBERS:
            return isinstance(value, int | float) and value == value and (type(value) is float or _exact(value))
        if rank == TEXTS:
            return isinstance(value, bytes) and len(value) <= HEAD_BYTES
        return value in (0, 1) if rank == FLAGS else rank in (FIRST, REST) and value is None


def key_of(metadata: object, path: Sequence[str], *, descending: bool = False) -> Key:
    """Where a document with this decoded JSON metadata stands."""
    keys = (_key(value) for value in lookup(metadata, path)[1] if value is not None)
    return max(keys, default=LAST) if descending else min(keys, default=LAST)


def turned(key: Key) -> Turned:
    """What ascends where keys descend; START is before it, and LAST behind, as ever. For comparisons only: not every
    number has one that travels."""
    rank, value = key
    if not FIRST < rank < REST:
        return key
    return REST - 1 - rank, _turned(rank, value)


def turned_back(turned: Turned) -> Key:
    """The key that was turned."""
    rank, value = turned
    if not FIRST < rank < REST:
        return turned
    rank = REST - 1 - rank
    return rank, bytes(-byte for byte in value[:-1]) if rank == TEXTS else _turned(rank, value)


def _turned(rank: int, value: Any) -> Any:
    if rank == TEXTS:
        return *(-byte for byte in value), 1  # a text comes behind those that it begins
    return 1 - value if rank == FLAGS else -value


def _key(value: Any) -> Key:
    if isinstance(value, bool):
        return FLAGS, int(value)
    if isinstance(value, str):
        return TEXTS, value.encode()[:HEAD_BYTES]
    if isinstance(value, float) or _exact(value):
        return NUMBERS, value
    try:
        return NUMBERS, float(value)
    except OverflowError:
        return NUMBERS, float("inf") if value > 0 else float("-inf")


def _exact(value: int | float) -> bool:
    return INT_MIN <= value <= INT_MAX
