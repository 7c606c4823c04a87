"""What a proposer checks of vectors, and makes of them: the bytes that the log takes, and queries.

Invariant: nothing is changed in silence but what the type of a collection says: float16 rounds, and float32 under
cosine is divided by its length. Cosine vectors of float32 leave here at length 1, so that all replicas store the same
bytes (a float computation repeated elsewhere might round differently).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Final

import numpy as np

from needle.base.dtypes import DType, Floats, itemsize
from needle.base.errors import InvalidArgument, invalid
from needle.base.model import CollectionSpec, Metric
from needle.protocol.commands import Insert, Named, UpdateVectors

SQUARE_MAX: Final = float(np.finfo(np.float32).max) / 8
UNIT_ERROR: Final = 2.0**-22
"""A vector whose square is 1 but for this is of length 1 as exactly as float32 can say it, and stays as it is: so what
was read is written back as the same bytes."""
_COSINE: Final = Metric.COSINE
_FLOAT32: Final = np.dtype("<f4")
_PLAIN: Final = DType.FLOAT32
"""By a name of its own, as _COSINE: every write asks for it (see raft.state.LEADER)."""


def to_log(command: Insert | UpdateVectors, spec: CollectionSpec) -> tuple[bytes, DType]:
    """The vectors of a command as its log entry has them. Raises InvalidArgument."""
    return _to_log(command.vectors, command.dtype, command.ids, spec)


def named_to_log(named: Named, ids: list[str], spec: CollectionSpec) -> Named:
    """The named vectors of documents, with these ids, as the log entry has them. Raises InvalidArgument."""
    vectors, dtype = _to_log(named.vectors, named.dtype, [ids[row] for row in named.rows], spec)
    return Named(named.vector, named.rows, vectors, dtype)


def _to_log(data: bytes, dtype: DType, ids: list[str], spec: CollectionSpec) -> tuple[bytes, DType]:
    if spec.dtype is _PLAIN and dtype is _PLAIN:
        vectors = _vectors(data, len(ids), spec, ids)
        if spec.metric != _COSINE:
            return data, spec.dtype
        return vectors.astype(_FLOAT32, copy=False).tobytes(), spec.dtype
    numbers = _numbers(data, len(ids), spec, dtype)
    if spec.dtype is _PLAIN:
        checked = _vectors(numbers.astype(_FLOAT32, copy=False).tobytes(), len(numbers), spec, ids)
        return checked.astype(_FLOAT32, copy=False).tobytes(), spec.dtype
    return _in_range(numbers, spec, ids), spec.dtype


def query_of(data: bytes, spec: CollectionSpec) -> Floats:
    """A query as (dimensions,) float32, normalised for cosine. Raises InvalidArgument."""
    if spec.dtype is DType.BIT:
        return _bits_asked_for(data, spec)
    query: Floats = _vectors(data, 1, spec)[0]
    return query


def queries_of(each: Sequence[bytes], spec: CollectionSpec) -> Floats | None:
    """Several queries as (count, dimensions) float32, each the same bits as `query_of` gives, in a few passes over all;
    None if one of them is to be looked at by itself."""
    if spec.dtype is DType.BIT or any(len(data) != 4 * spec.dimensions for data in each):
        return None
    vectors: Floats = np.frombuffer(b"".join(each), _FLOAT32).reshape(len(each), spec.dimensions)
    wide = vectors.astype(np.float64)
    squares = np.add.reduce(wide * wide, axis=1)  # as of one: row by row, in the same order
    if not np.all((squares > 0) & (squares <= SQUARE_MAX)):
        return None
    if spec.metric == _COSINE and len(others := np.flatnonzero(np.abs(squares - 1) > UNIT_ERROR)):
        vectors = vectors.astype(np.float32)
        vectors[others] = (wide[others] / np.sqrt(squares[others])[:, None]).astype(np.float32)
    return vectors.astype(np.float32, copy=sys.byteorder == "big")


def _bits_asked_for(data: bytes, spec: CollectionSpec) -> Floats:
    """A query that is bits, as what is stored."""
    form = spec.form
    numbers = _numbers(data, 1, spec, _PLAIN)
    bad = np.flatnonzero(form.unsayable(numbers)[0])
    if len(bad):
        raise invalid(f"vector[{int(bad[0])}]", float(numbers[0, bad[0]]), form.allowed(numbers))
    query: Floats = form.scored(form.stored(numbers))[0]
    return query


def _numbers(data: bytes, count: int, spec: CollectionSpec, dtype: DType) -> Floats:
    """(count, how many callers may give), whatever type they came in."""
    numbers = spec.form.rows_given(data, count, dtype)
    if numbers is None:
        text = (
            f"a vector of {len(data) / (itemsize(dtype) * count):g} {dtype} values is not allowed: collection "
            f"{spec.name!r} takes {spec.form.takes}"
        )
        raise InvalidArgument(text, field="vector")
    return numbers


def _in_range(numbers: Floats, spec: CollectionSpec, ids: list[str]) -> bytes:
    """Stored bytes of vectors that the type can say."""
    form = spec.form
    bad = form.unsayable(numbers)
    if bad.any():
        row, column = map(int, np.argwhere(bad)[0])
        raise invalid(f"vector of {ids[row][:80]!r}[{column}]", float(numbers[row, column]), form.allowed(numbers))
    rows = form.stored(numbers)
    if spec.metric == _COSINE and len(zero := np.flatnonzero(~rows.any(axis=1))):
        raise _bad_vector(numbers, int(zero[0]), ids, f"not all zeros as {form.dtype}: such a vector has no cosine")
    return rows.tobytes()


def _vectors(data: bytes, count: int, spec: CollectionSpec, ids: list[str] | None = None) -> Floats:
    """(count, dimensions) float32, checked; normalised for cosine."""
    width = 4 * spec.dimensions
    if len(data) != count * width:
        text = (
            f"a vector of {len(data) / (4 * count):g} values is not allowed: collection {spec.name!r} takes "
            f"{spec.dimensions} float32 values"
        )
        raise InvalidArgument(text, field="vector")
    vectors: Floats = np.frombuffer(data, _FLOAT32)
    if count == 1:
        # Most writes carry one vector: the same arithmetic without the passes that find the offender among many.
        wide = vectors.astype(np.float64)
        square = float(np.add.reduce(wide * wide))  # not dot: it lets go of the GIL, and others take it
        if 0 < square <= SQUARE_MAX:
            if spec.metric == _COSINE and abs(square - 1) > UNIT_ERROR:
                wide /= math.sqrt(square)
                unit: Floats = wide.astype(np.float32).reshape(1, -1)
                return unit
            return vectors.astype(np.float32, copy=sys.byteorder == "big").reshape(1, -1)
    vectors = vectors.reshape(count, spec.dimensions)
    # Squares in float64: the sum of 8192 squares of the largest float32 does not overflow.
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64, casting="safe")
    bad = np.flatnonzero(~np.isfinite(squares))
    if len(bad):
        raise _bad_vector(vectors, int(bad[0]), ids, "finite float32 values (no NaN, no infinity)")
    if spec.metric == _COSINE:
        zero = np.flatnonzero(squares == 0)
        if len(zero):
            raise _bad_vector(vectors, int(zero[0]), ids, "not all zeros: the cosine of a zero vector is undefined")
        lengths = np.where(np.abs(squares - 1) > UNIT_ERROR, np.sqrt(squares), 1.0)
        vectors = (vectors / lengths[:, None]).astype(np.float32)
    # A distance must be finite in float32, too.
    huge = np.flatnonzero(squares > SQUARE_MAX)
    if spec.metric != _COSINE and len(huge):
        raise _bad_vector(vectors, int(huge[0]), ids, "shorter than 6e18, so that distances fit float32")
    return vectors.astype(np.float32, copy=sys.byteorder == "big")


def _bad_vector(vectors: Floats, row: int, ids: list[str] | None, allowed: str) -> InvalidArgument:
    field = "vector" if ids is None else f"vector of {ids[row][:80]!r}"
    shown = [float(value) for value in vectors[row, :4]]
    return invalid(field, shown, allowed)
