"""Sparse vectors in requests."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta


class SparseVector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """indices: different whole numbers of 32 bits, in any order, at most 4096; values: as many numbers, which count as
    float32."""

    indices: Annotated[list[Annotated[int, Meta(ge=0, le=2**32 - 1)]], Meta(max_length=4096)]
    values: Annotated[list[float], Meta(max_length=4096)]


Sparse = Annotated[dict[str, SparseVector], Meta(min_length=1, max_length=1)]


def sparse_of(given: dict[str, SparseVector] | None) -> dict[str, Any] | None:
    """As a client says it."""
    return None if given is None else {name: msgspec.structs.asdict(one) for name, one in given.items()}
