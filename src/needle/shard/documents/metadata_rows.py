"""Stored metadata in bulk: many documents' JSON decoded with one call, and few keys that are not asked for.

It must not know SQLite, filters or indexes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypedDict

import msgspec
from pyroaring import BitMap

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import StorageError

_decode = msgspec.json.decode


class Rows(NamedTuple):
    """Documents by ordinal, ascending, and their metadata as the elements of one JSON array."""

    ordinals: list[int]
    json: bytes | str


class Stored(Protocol):
    """Where the documents are; dead ones are there until they are purged."""

    def between(self, first: int, end: int) -> Rows:
        """Those with ordinals in [first, end)."""
        ...

    def some(self, ordinals: Sequence[int]) -> Rows:
        """Those with these ordinals, which ascend; absent ones are left out."""
        ...

    def placed(self, ids: Sequence[str], universe: BitMap) -> BitMap:
        """The ordinals of the universe, which were live at one moment, whose documents have one of these ids."""
        ...


def rows_of(documents: Iterable[tuple[int, bytes]]) -> Rows:
    """From (ordinal, metadata JSON) each; b"" is null."""
    listed = list(documents)
    return Rows([ordinal for ordinal, _ in listed], b"[" + b",".join([data or b"null" for _, data in listed]) + b"]")


def decode_metadata(data: bytes) -> Any:
    """One document's metadata as a Python value; b"" is null."""
    if not data:
        return None
    try:
        return _decode(data)
    except DECODE_ERRORS as error:
        raise StorageError(f"stored metadata is not JSON: {error}") from error


_all_keys = msgspec.json.Decoder(list[Any])


@lru_cache(maxsize=256)
def _some_keys(keys: frozenset[str]) -> msgspec.json.Decoder[list[Any]]:
    # Keys that are not named are skipped, not built: half of the time.
    only = TypedDict("only", dict.fromkeys(sorted(keys), Any), total=False)  # type: ignore[misc]
    return msgspec.json.Decoder(list[only | list[Any] | str | int | float | bool | None])


def decode_rows(rows: Rows, keys: frozenset[str]) -> list[Any]:
    """The metadata of each row; of objects at least the keys in `keys`. Raises StorageError."""
    try:
        # msgspec (0.22) skips keys of a TypedDict that are not ASCII, without an error, unless their UTF-8 happens to
        # be kept in the very str objects that name them.
        decoder = _some_keys(keys) if all(map(str.isascii, keys)) else _all_keys
        documents = decoder.decode(rows.json)
    except (*DECODE_ERRORS, UnicodeEncodeError) as error:
        raise StorageError(f"stored metadata is not JSON: {error}") from error
    if len(documents) != len(rows.ordinals):
        raise StorageError(f"stored metadata is not JSON: {len(rows.ordinals)} documents hold {len(documents)} values")
    return documents
