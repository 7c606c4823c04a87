"""Vectors in the type of their collection, before they are sent: fewer bytes, and what a shard would refuse is known.

Invariant: whoever does not know the collection, or whose numbers its type cannot say, sends float32: the shard decides,
and says what is wrong. Pure.
"""

from __future__ import annotations

import msgspec
import numpy as np

from needle.base.dtypes import DType, VectorForm
from needle.protocol.commands import UpdateVectors

_FLOAT32 = DType.FLOAT32
"""By a name of its own: see raft.state.LEADER."""


def packed(data: bytes, count: int, form: VectorForm | None) -> tuple[bytes, DType]:
    """Rows of float32 bytes as they are best sent, and of which type that is. form: None for float32."""
    numbers = None if form is None else form.rows_given(data, count)
    if form is None or numbers is None:
        return data, _FLOAT32
    if form.unsayable(numbers).any():
        return data, _FLOAT32
    return form.stored(numbers).tobytes(), form.dtype


def packed_update(command: UpdateVectors, form: VectorForm | None) -> UpdateVectors:
    """With its vectors so."""
    if form is None:
        return command
    vectors, dtype = packed(command.vectors, len(command.ids), form)
    return msgspec.structs.replace(command, vectors=vectors, dtype=dtype)


def unsayable(rows: memoryview, count: int, form: VectorForm | None) -> list[int]:
    """Which of these rows of float32 bytes a shard is sure to refuse, for numbers that the type cannot say."""
    numbers = None if form is None else form.rows_given(rows, count)
    if form is None or numbers is None:
        return []
    found: list[int] = np.flatnonzero(form.unsayable(numbers).any(axis=1)).tolist()
    return found
