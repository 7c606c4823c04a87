"""In which type a collection keeps its vectors: in the log, in the file of documents and in index files. Pure.

Invariant: what is scored follows from the stored bytes alone, row by row, so it is the same on all replicas and
wherever a vector lies. float16 and int8 widen to float32 exactly; under cosine they are divided by their length then,
while what is stored stays as it was given. Bits, eight of which are a stored byte, become zeros and ones: how many of
them differ is their squared distance (docs/adr/0128).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
StoredRows = npt.NDArray[Any]


class DType(StrEnum):
    """float32, float16 (IEEE 754: what is given is rounded to 11 bits), int8 (whole numbers from -128 to 127), bit (0
    and 1, eight in a byte, the first of them its highest bit, as numpy.packbits has them)."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    BIT = "bit"


_FLOAT32: Final = DType.FLOAT32
"""By a name of its own: to look up a member of an Enum takes seven times as long in Python 3.11."""
_ARRAYS: Final[dict[DType, np.dtype[Any]]] = {
    DType.FLOAT32: np.dtype("<f4"),
    DType.FLOAT16: np.dtype("<f2"),
    DType.INT8: np.dtype("i1"),
    DType.BIT: np.dtype("u1"),
}
BYTE_BITS: Final = 8
BYTE_MAX: Final = 255
FLOAT16_MAX: Final = 65504.0
_ALLOWED: Final = {
    DType.FLOAT32: "finite float32 numbers",
    DType.FLOAT16: f"numbers from -{FLOAT16_MAX:.0f} to {FLOAT16_MAX:.0f} (dtype float16)",
    DType.INT8: "whole numbers from -128 to 127 (dtype int8)",
}
_FLOAT16_END: Final = 65520.0
"""From here on numbers are rounded to infinity."""
# A float16 widened by hand, three times as fast as NumPy does it: exponent and fraction move by 13 bits, then a product
# makes up for the exponents' other zero. Exact for all finite numbers (after Giesen 2012, "Half to float done quic").
_HALF_BITS: Final = np.int32(-0x70002000)
_HALF_SHIFT: Final = np.float32(2.0**112)
_LEAST_HALF: Final = np.float32(2.0**-136)
_BLOCK_ROWS: Final = 1024
"""So many are widened at a time."""


class VectorForm(NamedTuple):
    """How a collection's vectors are stored. unit: they are scored at length 1."""

    dimensions: int
    dtype: DType = DType.FLOAT32
    unit: bool = False

    @property
    def bits(self) -> bool:
        """Whether what is stored are bytes of bits, which are compared as they are."""
        return self.dtype is DType.BIT

    @property
    def numbers(self) -> int:
        """Of a stored vector, and of one as callers get it: of bits, the bytes that have them."""
        return self.dimensions // BYTE_BITS if self.bits else self.dimensions

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many numbers callers may give: bits may also come each by itself."""
        return (self.dimensions, self.numbers) if self.bits else (self.dimensions,)

    @property
    def takes(self) -> str:
        """The same in words, for who gave others."""
        if self.bits:
            return f"{self.dimensions} bits: so many numbers 0 or 1, or {self.numbers} bytes (numpy.packbits)"
        return f"{self.dimensions} {self.dtype} values"

    @property
    def array(self) -> np.dtype[Any]:
        """Of stored numbers."""
        return _ARRAYS[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Of a stored vector."""
        return self.numbers * self.array.itemsize

    @property
    def divides(self) -> bool:
        """Whether what is scored is more work to make than numbers to widen."""
        return self.unit and self.dtype is not _FLOAT32

    def rows(self, data: Any) -> StoredRows:
        """Stored bytes as (n, numbers)."""
        return np.frombuffer(data, self.array).reshape(-1, self.numbers)

    def rows_given(self, data: Any, count: int, dtype: DType = DType.FLOAT32) -> Floats | None:
        """The numbers of `count` vectors as callers give them, of bytes of a type: (count, one of `lengths`); None for
        bytes of another length."""
        numbers, odd = divmod(len(data), itemsize(dtype))
        width, rest = divmod(numbers, count) if count else (0, 1)
        if odd or rest or width not in self.lengths:
            return None
        return numbers_of(data, dtype).reshape(count, width)

    def widened(self, rows: StoredRows) -> Floats:
        """(n, dimensions) float32: the stored numbers themselves."""
        if self.bits:
            return np.unpackbits(rows, axis=1).astype(np.float32)
        if self.dtype is not DType.FLOAT16 or np.float32(2.0**-24) != _LEAST_HALF * _HALF_SHIFT:
            return rows.astype(np.float32)  # or this thread takes the least numbers for zero
        bits = rows.view(np.int16).astype(np.int32)
        bits <<= 13
        bits &= _HALF_BITS
        wide = bits.view(np.float32)
        wide *= _HALF_SHIFT
        return wide

    def scored(self, rows: StoredRows) -> Floats:
        """(n, dimensions) float32: stored rows as distances are computed from them."""
        if self.dtype is _FLOAT32:
            return rows.astype(np.float32, copy=False)
        if not self.unit:
            return self.widened(rows)
        out = np.empty((len(rows), self.dimensions), np.float32)
        for at in range(0, len(rows), _BLOCK_ROWS):
            wide = rows[at : at + _BLOCK_ROWS].astype(np.float64, order="C")
            # The sum of a row does not depend on how many there are (see shard/segments/scoring.py).
            lengths = np.sqrt(np.multiply(wide, wide).sum(axis=1))
            out[at : at + _BLOCK_ROWS] = wide / np.where(lengths > 0, lengths, 1)[:, None]
        return out

    def unsayable(self, floats: Floats) -> Bools:
        """Which of these numbers, as callers give them, the type cannot say: they are to be refused."""
        if self.bits:
            most = self._most_of_bits(floats)
            fits: Bools = (floats >= 0) & (floats <= most) & (floats == np.rint(floats))
        elif self.dtype is DType.FLOAT16:
            fits = np.abs(floats) < _FLOAT16_END
        elif self.dtype is DType.INT8:
            fits = (floats >= -128) & (floats <= 127) & (floats == np.rint(floats))
        else:
            fits = np.isfinite(floats)
        return ~fits  # NaN does not fit

    def allowed(self, floats: Floats) -> str:
        """What these may be, in words."""
        if self.bits:
            if self._most_of_bits(floats) == 1:
                return "0 or 1 (dtype bit)"
            return f"whole numbers from 0 to {BYTE_MAX}, each of {BYTE_BITS} bits (dtype bit, numpy.packbits)"
        return _ALLOWED[self.dtype]

    def _most_of_bits(self, floats: Floats) -> int:
        """Each is a bit, or a byte of them."""
        return 1 if floats.shape[-1] == self.dimensions else BYTE_MAX

    def stored(self, floats: Floats) -> StoredRows:
        """Numbers as callers give them (n, one of `lengths`), which are in the range of the type, as stored rows. Of a
        form that is not `unit` it is the way back from `scored`, too."""
        if self.bits and floats.shape[-1] == self.dimensions:
            return np.packbits(floats != 0, axis=-1)
        return floats.astype(self.array)

    def given(self, data: Any) -> bytes:
        """Stored bytes as callers get them: float32 bytes of the same numbers."""
        return bytes(data) if self.dtype is DType.FLOAT32 else self.rows(data).astype("<f4").tobytes()


def numbers_of(data: Any, dtype: DType) -> Floats:
    """Bytes of a type as float32 numbers: (n,). Their number must fit."""
    return np.frombuffer(data, _ARRAYS[dtype]).astype(np.float32, copy=False)


def itemsize(dtype: DType) -> int:
    """Bytes of a number of the type."""
    return _ARRAYS[dtype].itemsize
