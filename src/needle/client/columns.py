"""A batch of documents, however it is given, becomes columns; and columns become parts that fit a request. Pure.

Bad input raises InvalidArgument, as in values.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from needle.base.errors import InvalidArgument, invalid
from needle.base.plain import refused
from needle.client import arrow_tables
from needle.client.named_values import of_batch
from needle.client.values import FLOAT32, Vectors, as_array, check_ids, expiries, metadata_bytes
from needle.protocol.commands import Named, last_of_each_id
from needle.protocol.named import taken_of

Documents = Iterable[Sequence[Any]] | arrow_tables.Table
"""A batch of documents: (id, vector[, metadata]) tuples, or a table with the columns id and vector."""


class Columns(msgspec.Struct, frozen=True):
    """A batch of documents as columns; vectors has one row a document. expires, named: as in `commands.Insert`, with
    names that callers know."""

    ids: list[str]
    vectors: Vectors
    metadata: list[bytes]
    expires: list[int] = []
    named: list[Named] = []

    def rows(self) -> memoryview:
        """The vectors' bytes, not copied."""
        return self.vectors.reshape(-1).view(np.uint8).data


def as_columns(
    documents: Any, ids: Any, vectors: Any, metadatas: Any, expires_at: Any = None, named_vectors: Any = None
) -> Columns:
    """From (id, vector[, metadata]) tuples or a table, or ids, a 2-d array and perhaps metadata, one a row. Checked; of
    those with one id the last is kept. expires_at: one for all, or one a document.
    named_vectors: by name, one or None a document."""
    if documents is not None:
        if ids is not None or vectors is not None or metadatas is not None:
            raise InvalidArgument("give either documents, or ids and vectors, not both", field="documents")
        if arrow_tables.is_table(documents):
            ids, vectors, metadatas, expires_at, named_vectors = _of_table(documents, expires_at, named_vectors)
        else:
            ids, vectors, metadatas = _split(documents)
    elif ids is None or vectors is None:
        raise InvalidArgument("give documents, or ids and vectors", field="ids" if ids is None else "vectors")
    if isinstance(ids, set | frozenset):
        raise refused("ids", ids, "ids in the order of their vectors, such as a list")
    names = check_ids(ids)
    if not names:
        return Columns([], np.zeros((0, 0), FLOAT32), [])
    rows = as_array(vectors, "vectors", 2)
    if len(rows) != len(names):
        raise invalid("vectors", f"{len(rows)} rows", f"one row for each of the {len(names)} ids")
    instants, named = expiries(expires_at, len(names)), of_batch(named_vectors, len(names))
    if metadatas is None:
        return _last_wins(Columns(names, rows, [b""] * len(names), instants, named))
    unordered = isinstance(metadatas, str | bytes | bytearray | memoryview | Mapping | set | frozenset)
    if unordered or getattr(metadatas, "ndim", 1) != 1 or not isinstance(metadatas, Iterable):
        raise refused("metadatas", metadatas, f"a list with one value for each of the {len(names)} ids")
    metadatas = list(metadatas)
    if len(metadatas) != len(names):
        raise invalid("metadatas", f"{len(metadatas)} values", f"one value for each of the {len(names)} ids")
    json = [metadata_bytes(value, f"metadatas[{n}]") for n, value in enumerate(metadatas)]
    return _last_wins(Columns(names, rows, json, instants, named))


def _last_wins(batch: Columns) -> Columns:
    """Of documents with one id the last one counts, wherever in the batch they stand."""
    keep = last_of_each_id(batch.ids)
    if keep is None:
        return batch
    return Columns(
        [batch.ids[at] for at in keep],
        batch.vectors[keep],
        [batch.metadata[at] for at in keep],
        [batch.expires[at] for at in keep] if batch.expires else [],
        taken_of(batch.named, keep),
    )


def _of_table(documents: Any, expires_at: Any, named: Any) -> tuple[list[Any], Any, list[Any], Any, Any]:
    rows = arrow_tables.rows_of(documents)
    if names := sorted({name for row in rows for name in row.named}):
        if named is not None:
            has = ", ".join(arrow_tables.NAMED + name for name in names)
            raise invalid("named_vectors", "given", f"left out, as the table has the columns {has}")
        named = {name: [row.named.get(name) for row in rows] for name in names}
    if expires_at is None and any(row.expires_at is not None for row in rows):
        expires_at = [row.expires_at for row in rows]
    ids, vectors, metadatas = _split([(row.id, row.vector, row.metadata) for row in rows])
    return ids, vectors, metadatas, expires_at, named


def _split(documents: Any) -> tuple[list[Any], Any, list[Any]]:
    odd = isinstance(documents, str | bytes | bytearray | memoryview | Mapping | np.ndarray)
    if odd or getattr(documents, "ndim", 1) != 1 or not isinstance(documents, Iterable):
        raise refused("documents", documents, "a list of (id, vector) or (id, vector, metadata)")
    ids, vectors, metadatas = [], [], []
    for n, document in enumerate(documents):
        if not isinstance(document, list | tuple) or len(document) not in (2, 3):
            raise refused(f"documents[{n}]", document, "(id, vector) or (id, vector, metadata)")
        ids.append(document[0])
        vectors.append(as_array(document[1], f"documents[{n}].vector", 1))
        metadatas.append(document[2] if len(document) == 3 else None)
    for n, vector in enumerate(vectors):
        if len(vector) != len(vectors[0]):
            raise invalid(f"documents[{n}].vector", f"{len(vector)} numbers", f"{len(vectors[0])} as in documents[0]")
    return ids, np.stack(vectors) if vectors else None if ids else np.zeros((0, 0), FLOAT32), metadatas


def cut(
    ids: Sequence[str], metadata: Sequence[bytes], row_bytes: int, bytes_max: int, documents_max: int
) -> list[range]:
    """Consecutive parts of a batch within both bounds (one document may exceed the bytes). row_bytes: a vector's."""
    count = len(ids)
    weights = np.fromiter(map(len, ids), np.int64, count) + np.fromiter(map(len, metadata), np.int64, count)
    ends = np.cumsum(weights + (row_bytes + 16))
    parts, start, before = [], 0, 0
    while start < count:
        fits = int(np.searchsorted(ends, before + bytes_max, side="right"))
        stop = min(max(fits, start + 1), start + documents_max)
        parts.append(range(start, stop))
        start, before = stop, int(ends[stop - 1])
    return parts
