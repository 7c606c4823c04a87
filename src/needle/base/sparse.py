"""Sparse vectors: of very many dimensions a few, each with its weight. What one is, and what a search asks for. Pure.

A sparse vector of a document is a field of its metadata, {"indices": [...], "values": [...]} (docs/adr/0120); so it is
JSON wherever documents are, and float32 only where it is scored. `read` is the definition of which value is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from needle.base.decoding import routed_metadata
from needle.base.errors import InvalidArgument, invalid
from needle.base.plain import refused

INDEX_MAX: Final = 2**32 - 1
FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
VALUE_MAX: Final = float(np.nextafter(2.0**128 - 2.0**103, 0))
"""The largest number that float32 rounds to a finite one: its own largest in fewest digits, 3.4028235e38, is a little
more than that is."""
INDICES_MAX: Final = 4096
"""Of one sparse vector."""
FORM: Final = '{"indices": [...], "values": [...]}, two lists of one length'

SPARSE_KIND: Final = "sparse-1"
"""The kind of an index of sparse vectors. The number is of which values are some (`read`)."""

Indices = npt.NDArray[np.uint32]
Weights = npt.NDArray[np.float32]


class SparseQuery(msgspec.Struct, frozen=True, array_like=True):
    """What a search asks for. name: of the sparse vectors that are meant. indices: uint32, little-endian, ascending,
    different; values: as many float32."""

    name: str
    indices: bytes
    values: bytes


class Sparse(NamedTuple):
    """A sparse vector: its indices in the order in which they were given, all different, and the weight of each."""

    indices: Indices
    values: Weights

    def ascending(self) -> Sparse:
        """By index."""
        order = np.argsort(self.indices)
        return Sparse(self.indices[order], self.values[order])


class Wrong(NamedTuple):
    """Why a value is no sparse vector. inside: what of it is wrong, "" for all of it."""

    inside: str
    value: Any
    allowed: str

    def error(self, field: str) -> InvalidArgument:
        return invalid(f"{field}.{self.inside}" if self.inside else field, self.value, self.allowed)


def read(value: Any) -> Sparse | Wrong:
    """The sparse vector that decoded JSON holds, or why it is none. No loop over its numbers is Python's."""
    if not isinstance(value, Mapping) or value.keys() != {"indices", "values"}:
        return Wrong("", value, FORM)
    indices, values = value["indices"], value["values"]
    for name, listed in (("indices", indices), ("values", values)):
        if not isinstance(listed, list):
            return Wrong(name, listed, "a list")
    if len(indices) != len(values):
        return Wrong("values", f"{len(values)} numbers", f"one for each of {len(indices)} indices")
    if len(indices) > INDICES_MAX:
        return Wrong("indices", f"{len(indices)} indices", f"at most {INDICES_MAX}")
    if not indices:
        return Sparse(np.zeros(0, np.uint32), np.zeros(0, np.float32))
    whole = f"whole numbers from 0 to {INDEX_MAX}"
    if set(map(type, indices)) != {int}:
        return Wrong("indices", next(one for one in indices if type(one) is not int), whole)
    if min(indices) < 0 or max(indices) > INDEX_MAX:
        return Wrong("indices", next(one for one in indices if not 0 <= one <= INDEX_MAX), whole)
    if len(set(indices)) < len(indices):
        return Wrong("indices", _twice(indices), "each index once")
    if not set(map(type, values)) <= {int, float}:
        other = next(one for one in values if type(one) not in (int, float))
        return Wrong("values", other, "numbers that are finite as float32")
    if not (min(values) >= -VALUE_MAX and max(values) <= VALUE_MAX) or sum(values) != sum(values):
        other = next(one for one in values if not -VALUE_MAX <= one <= VALUE_MAX)
        return Wrong("values", other, "numbers that are finite as float32")
    return Sparse(np.array(indices, np.uint32), np.array(values, np.float64).astype(np.float32))


def _twice(values: Iterable[int]) -> int:
    seen = set[int]()
    return next(one for one in values if one in seen or seen.add(one))  # type: ignore[func-returns-value]


def wrong_in(metadata: bytes, names: Sequence[str]) -> tuple[str, Wrong] | None:
    """The first of these fields of a document that is neither a sparse vector nor left out, and why; None if all are.
    Raises InvalidArgument for what is no JSON."""
    # Most often the name of a field is in no other text; to look for it costs less than to decode. JSON may spell it by
    # escapes, as nobody does who means well.
    if b"\\u" not in metadata and not any(name.encode() in metadata for name in names):
        return None
    decoded = routed_metadata(metadata)
    for name in names if isinstance(decoded, dict) else ():
        # None, like a field that is not there, is no sparse vector and no mistake.
        if (value := decoded.get(name)) is not None and isinstance(found := read(value), Wrong):
            return name, found
    return None


def check_metadata(field: str, metadata: bytes, names: Sequence[str]) -> None:
    """Raises InvalidArgument for a document of which one of these fields is no sparse vector. field: what errors call
    its metadata."""
    if names and (found := wrong_in(metadata, names)) is not None:
        name, wrong = found
        raise wrong.error(f"{field}: {name}")


def sparse_vector(indices: Any, values: Any) -> dict[str, list[Any]]:
    """A sparse vector as metadata has it, made of lists or arrays: of different whole numbers of 32 bits, without a
    sign, at most 4096; and of as many numbers, which are rounded to float32 here. Raises InvalidArgument."""
    which, weights = _array("indices", indices, "iu"), _array("values", values, "iuf")
    found = read({"indices": which.tolist(), "values": weights.tolist()})
    if isinstance(found, Wrong):
        raise found.error("sparse vector")
    return {"indices": found.indices.tolist(), "values": _short(found.values)}


def _array(name: str, given: Any, kinds: str) -> npt.NDArray[Any]:
    try:
        found = np.asarray(given if isinstance(given, np.ndarray | list | tuple) else list(given))
    except (TypeError, ValueError) as error:
        raise refused(f"sparse vector.{name}", given, "a list or an array of numbers") from error
    if found.ndim != 1 or (found.size and found.dtype.kind not in kinds):
        allowed = "one list of whole numbers" if kinds == "iu" else "one list of numbers"
        raise refused(f"sparse vector.{name}", given, allowed)
    return found


def _short(values: Weights) -> list[float]:
    """As numbers that are the same float32 and have few digits in JSON; earlier releases take FLOAT32_MAX at most."""
    short = values.astype("U").astype(np.float64)
    same = (np.abs(short) <= FLOAT32_MAX) & (short.astype(np.float32) == values)
    numbers: list[float] = np.where(same, short, values.astype(np.float64)).tolist()
    return numbers


def query_of(given: Any, field: str = "sparse") -> SparseQuery:
    """What a search asks for, of a mapping with one name and its sparse vector. Raises InvalidArgument."""
    if not isinstance(given, Mapping) or len(given) != 1:
        raise refused(field, given, f"one name with its sparse vector: {{name: {FORM}}}")
    name, value = next(iter(given.items()))
    if not isinstance(name, str) or not name:
        raise refused(field, name, "the name of sparse vectors")
    if isinstance(value, Mapping) and value.keys() == {"indices", "values"}:
        value = {part: one.tolist() if isinstance(one, np.ndarray) else one for part, one in value.items()}
        value = {part: list(one) if isinstance(one, tuple) else one for part, one in value.items()}
    found = read(value)
    if isinstance(found, Wrong):
        raise found.error(f"{field}.{name[:80]}")
    if not len(found.indices):
        raise invalid(f"{field}.{name[:80]}.indices", [], f"1 to {INDICES_MAX} indices")
    found = found.ascending()
    return SparseQuery(name, found.indices.astype("<u4").tobytes(), found.values.astype("<f4").tobytes())


def asked(query: SparseQuery) -> Sparse:
    """What came over the wire. Raises InvalidArgument."""
    count = len(query.indices) // 4
    if not 1 <= count <= INDICES_MAX or len(query.indices) != 4 * count or len(query.values) != 4 * count:
        sizes = f"{len(query.indices)} and {len(query.values)} bytes"
        raise invalid("sparse", sizes, f"4 bytes for each of 1 to {INDICES_MAX} indices, and for each value")
    indices, values = np.frombuffer(query.indices, "<u4"), np.frombuffer(query.values, "<f4")
    if not np.all(indices[1:] > indices[:-1]):
        raise invalid("sparse", "indices", "different ones, ascending")
    if not np.all(np.isfinite(values)):
        raise invalid("sparse", "values", "numbers that are finite")
    return Sparse(indices, values)
