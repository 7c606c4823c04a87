"""A run of one field's index as bytes, and back: what is in a file of field_files.py. Pure.

Magic, checksum (xxh3, 16 bytes) of the rest, length of the head (4 bytes, little-endian), head (msgpack), sets
(roaring), arrays. What a key of a column is (value_columns.py) is part of the format: when that changes, or which
values go where, MAGIC has to, or old files would be read with another meaning. A test compares with recorded bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import xxhash
from pyroaring import BitMap

from needle.shard.fields.field_index import COLUMNS, Run
from needle.shard.fields.filter_match import Key
from needle.shard.fields.value_columns import Column
from needle.shard.fields.weight_columns import Weights

MAGIC: Final = b"NDLFLD01"
_DIGEST: Final = 16
_LENGTH: Final = 4


class _Column(msgspec.Struct, array_like=True):
    name: str
    dtype: str
    keys: int
    ordinals: int


class _Head(msgspec.Struct, array_like=True):
    collection_id: int
    path: tuple[str, ...]
    instants: bool | str
    """What of the field is indexed, as in Key."""
    applied: int
    first: int
    end: int
    rows: int
    sets: list[int]
    """Bytes of the marks, and of the odd ones."""
    columns: list[_Column]


def encode(collection_id: int, key: Key, applied: int, run: Run) -> list[bytes | memoryview]:
    """A file, in parts: arrays are not copied. applied: an index of the log of which the run has all documents."""
    sets = [found.serialize() for found in (*run.marks, run.odd)]
    columns = [_Column(name, one.keys.dtype.str, len(one.keys), len(one.ordinals)) for name, one in run.columns.items()]
    head = msgspec.msgpack.encode(
        _Head(collection_id, key[0], key[1], applied, run.first, run.end, run.rows, list(map(len, sets)), columns)
    )
    arrays = [part for one in run.columns.values() for part in _arrays(one)]
    body: list[bytes | memoryview] = [len(head).to_bytes(_LENGTH, "little"), head, *sets, *map(_raw, arrays)]
    digest = xxhash.xxh3_128()
    for part in body:
        digest.update(part)
    return [MAGIC, digest.digest(), *body]


def _arrays(column: Column) -> list[Any]:
    beside = [column.weights] if isinstance(column, Weights) else []
    return [column.keys, column.starts, column.ordinals, *beside]


def _raw(array: Any) -> memoryview:
    return np.ascontiguousarray(array).view(np.uint8).data


def size_of(parts: Sequence[bytes | memoryview]) -> int:
    """In bytes."""
    return sum(map(len, parts))


def decode(data: bytes, collection_id: int, key: Key, applied: int) -> Run | None:
    """The run that `encode` was given with these; None if the file is damaged, or of something else."""
    start = len(MAGIC) + _DIGEST
    body = memoryview(data)[start:]
    if data[: len(MAGIC)] != MAGIC or data[len(MAGIC) : start] != xxhash.xxh3_128_digest(body):
        return None
    length = int.from_bytes(body[:_LENGTH], "little")
    head = msgspec.msgpack.decode(body[_LENGTH : _LENGTH + length], type=_Head)
    if (head.collection_id, head.path, head.instants, head.applied) != (collection_id, tuple(key[0]), key[1], applied):
        return None
    at = _LENGTH + length
    sets = []
    for size in head.sets:
        sets.append(BitMap.deserialize(bytes(body[at : at + size])))
        at += size
    columns = {}
    for one in head.columns:
        arrays = []
        weights = [("<f4", one.ordinals)] if COLUMNS[one.name] is Weights else []
        for dtype, count in (one.dtype, one.keys), ("<i8", one.keys + 1), ("<u4", one.ordinals), *weights:
            arrays.append(np.frombuffer(body, dtype, count, at).copy())  # aligned, and without the rest of the file
            at += arrays[-1].nbytes
        columns[one.name] = COLUMNS[one.name](*arrays)
    return Run(head.first, head.end, head.rows, sets[:-1], sets[-1], columns)
