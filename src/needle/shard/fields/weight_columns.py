"""Sorted columns of sparse vectors: which ordinals have an index, and with which weight.

As value_columns.py, which says what a column is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from needle.shard.fields.value_columns import Column, Integers, Ordinals


class Weights(Integers):
    """The indices of sparse vectors, and beside each ordinal of an index the weight that its vector has there."""

    dtype = np.uint32
    low = 0
    high = 2**32

    def __init__(
        self,
        keys: npt.NDArray[Any],
        starts: npt.NDArray[np.int64],
        ordinals: Ordinals,
        weights: npt.NDArray[np.float32],
    ) -> None:
        super().__init__(keys, starts, ordinals)
        self.weights = weights

    @classmethod
    def of(cls, indices: npt.NDArray[np.uint32], ordinals: Ordinals, weights: npt.NDArray[np.float32]) -> Weights:
        """From the indices, owner and weight of each number, in any order; no vector has an index twice."""
        order = np.argsort(indices, kind="stable")
        indices = indices[order]
        fresh = np.concatenate(([True], indices[1:] != indices[:-1]))
        return cls(indices[fresh], np.append(np.flatnonzero(fresh), len(indices)), ordinals[order], weights[order])

    @classmethod
    def merged(cls, columns: Sequence[Column]) -> Weights:
        parts = [column for column in columns if isinstance(column, Weights)]
        if len(parts) == 1:
            return parts[0]
        keys, starts, where = cls.in_order(parts)
        ordinals = np.concatenate([part.ordinals for part in parts])[where]
        return cls(keys, starts, ordinals, _weights(parts, where))

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.starts.nbytes + self.ordinals.nbytes + self.weights.nbytes + 500


def _weights(parts: Sequence[Weights], where: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Those of several columns in the order of one."""
    found: npt.NDArray[np.float32] = np.concatenate([part.weights for part in parts])[where]
    return found
