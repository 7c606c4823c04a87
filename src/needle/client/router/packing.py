"""Vectors in the type of their collection, before they are sent: fewer bytes, and what a shard would refuse is known.

Invariant: whoever does not know the collection, or whose numbers its type cannot say, sends float32: the shard decides,
and says what is wrong. Pure.
"""

from __future__ import annotations

import msgspec
import numpy as np

from needle.base.dtypes import DType, VectorForm
from needle.protocol.commands import UpdateVectors


def packed(data: bytes, count: int, form: VectorForm | None) -> tuple[bytes, DType]:
    """Rows of float32 bytes as they are best sent, and of which type that is. form: None for float32."""
    if form is None or len(data) != 4 * count * form.numbers:
        return data, DType.FLOAT32
    numbers = np.frombuffer(data, "<f4").reshape(count, form.numbers)
    if form.unsayable(numbers).any():
        return data, DType.FLOAT32
    return form.stored(numbers).tobytes(), form.dtype


def packed_update(command: UpdateVectors, form: VectorForm | None) -> UpdateVectors:
    """With its vectors so."""
    if form is None:
        return command
    vectors, dtype = packed(command.vectors, len(command.ids), form)
    return msgspec.structs.replace(command, vectors=vectors, dtype=dtype)


def unsayable(rows: memoryview, count: int, form: VectorForm | None) -> list[int]:
    """Which of these rows of float32 bytes a shard is sure to refuse, for numbers that the type cannot say."""
    if form is None or rows.nbytes != 4 * count * form.numbers:
        return []
    numbers = np.frombuffer(rows, "<f4").reshape(count, form.numbers)
    found: list[int] = np.flatnonzero(form.unsayable(numbers).any(axis=1)).tolist()
    return found
