"""Which vector each version of a document has, where that is the vector of an earlier version.

A change of metadata gives a document the next ordinal, under which filters and documents know it; its vector stays
where it is, under the ordinal of the version that brought it. All other versions have the ordinal of their vector.

Never changes: a batch of log entries makes a new one, which costs what the batch changed (and a logarithm, for runs are
merged as they grow). It must not know documents or vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

Ints = npt.NDArray[np.int64]

TIDY_ROWS: Final = 1024
"""A merged run of so many is freed of what is dead."""


class _Run:
    """documents: ordinals, ascending. vectors: that of each."""

    def __init__(self, documents: Ints, vectors: Ints) -> None:
        self.documents, self.vectors = documents, vectors
        self.members = BitMap(documents)
        order = np.lexsort((documents, vectors))
        self.by_vector = vectors[order]
        self.owners = documents[order]

    def newest(self) -> _Run:
        """Of each vector only the newest version."""
        last = np.append(self.by_vector[1:] != self.by_vector[:-1], True)
        return self if last.all() else _Run(*_ascending(self.owners[last], self.by_vector[last]))

    def within(self, live: BitMap) -> _Run:
        kept = np.array((self.members & live).to_array(), np.int64)
        return self if len(kept) == len(self.documents) else _Run(kept, self.vectors[self.documents.searchsorted(kept)])


def _ascending(documents: Ints, vectors: Ints) -> tuple[Ints, Ints]:
    order = np.argsort(documents)
    return documents[order], vectors[order]


class Places:
    """See the module. Every method may be called from any thread."""

    __slots__ = ("_runs",)

    def __init__(self, runs: tuple[_Run, ...] = ()) -> None:
        """Use `of`, and `added`."""
        self._runs = runs

    @staticmethod
    def of(documents: npt.NDArray[np.uint32], vectors: npt.NDArray[np.uint32]) -> Places:
        """Of all documents, in any order."""
        apart = documents != vectors
        if not apart.any():
            return Places()
        return Places((_Run(*_ascending(documents[apart].astype(np.int64), vectors[apart].astype(np.int64))),))

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __len__(self) -> int:
        """How many versions it knows, dead ones among them."""
        return sum(len(run.documents) for run in self._runs)

    def added(self, pairs: Sequence[tuple[int, int]], live: Callable[[], BitMap]) -> Places:
        """With newer versions: (ordinal, that of the vector), ascending. live: the ordinals of all documents."""
        both = np.array(pairs, np.int64).reshape(-1, 2)
        runs = [*self._runs, _Run(both[:, 0].copy(), both[:, 1].copy())]
        while len(runs) > 1 and len(runs[-2].documents) < 2 * len(runs[-1].documents):
            newer, older = runs.pop(), runs.pop()
            run = _Run(
                np.concatenate((older.documents, newer.documents)), np.concatenate((older.vectors, newer.vectors))
            ).newest()
            runs.append(run.within(live()) if len(run.documents) >= TIDY_ROWS else run)
        return Places(tuple(run for run in runs if len(run.documents)))

    def vectors_of(self, documents: BitMap) -> BitMap:
        """The vectors of these versions, all of which are current."""
        found = documents
        for run in self._runs:
            inside = documents & run.members
            if inside:
                at = run.documents.searchsorted(np.array(inside.to_array(), np.int64))
                found = found - inside | BitMap(run.vectors[at])
        return found

    def documents_of(self, vectors: Sequence[int]) -> list[int]:
        """The current versions that have these vectors, in the same order."""
        if not self._runs or not len(vectors):
            return list(vectors)
        wanted = np.array(vectors, np.int64)
        found, open_ = wanted.copy(), np.ones(len(wanted), np.bool_)
        for run in reversed(self._runs):
            # The last of equal ones is the newest.
            at = np.searchsorted(run.by_vector, wanted, side="right") - 1
            here = open_ & (at >= 0) & (run.by_vector[at] == wanted)
            found[here] = run.owners[at[here]]
            open_ &= ~here
        return [int(ordinal) for ordinal in found]
