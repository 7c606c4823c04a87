"""What clients have written, as a model in plain Python that judges every answer they are given while they write.

A write counts as possible from before it is sent, and the state before it until it is acknowledged: an answer is right
if it shows one of the states that a document had while it was asked for. Invariant: each document has one writer at a
time, and no write is of unknown fate (any error ends the test).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from needle.base.model import Document, Hit

Vector = np.ndarray[Any, np.dtype[np.float32]]
TOLERANCE = 1e-4
"""Of a distance: float32 here and there."""


@dataclass(eq=False)
class Stored:
    """One written document. version: as its write was acknowledged with, or else as the first answer showed it."""

    vector: Vector
    metadata: dict[str, Any]
    version: int | None = None

    def matches(self, filter: Mapping[str, Any]) -> bool:
        """Whether all these fields have these values."""
        return all(self.metadata.get(field) == value for field, value in filter.items())


Possible = tuple[Stored | None, ...]
"""The states that an answer may show of one document; None: it is not there."""


class Asked(dict[str, Possible]):
    """The states that each document had since a question was asked; one that never was there is not in it."""


class Model:
    """The documents of one collection with the metric l2."""

    def __init__(self) -> None:
        self._now: dict[str, Possible] = {}
        self._open: list[Asked] = []

    def __len__(self) -> int:
        return len(self._now)

    # --- writes ------------------------------------------------------------------------------------------------------
    def write(self, documents: Mapping[str, Stored | None]) -> None:
        """Before they are sent; None: a delete."""
        for name, state in documents.items():
            before = self._now.get(name, (None,))
            self._now[name] = (*before, state)
            for asked in self._open:
                asked[name] = (*asked.get(name, before), state)

    def written(self, documents: Mapping[str, Stored | None], version: int | None = None) -> None:
        """Once they are acknowledged. version: of each; an acknowledged one is higher than the one before it."""
        for name, state in documents.items():
            if state is not None and version is not None:
                for before in self._now[name]:
                    assert before is None or before is state or before.version is None or before.version < version
                state.version = version
            if state is None:
                del self._now[name]
            else:
                self._now[name] = (state,)

    # --- questions ---------------------------------------------------------------------------------------------------
    def ask(self) -> Asked:
        """Before a question is sent; the answer goes to one of the methods below, or to `forget`."""
        asked = Asked(self._now)
        self._open.append(asked)
        return asked

    def forget(self, asked: Asked) -> None:
        """A question whose answer is not judged."""
        self._open = [other for other in self._open if other is not asked]

    def judge_get(self, asked: Asked, name: str, found: Document | None) -> None:
        """Raises AssertionError for a document that has none of its states."""
        self.forget(asked)
        possible = asked.get(name, (None,))
        if found is None:
            assert None in possible, f"{name} is not there"
            return
        assert found.id == name, f"{found.id} for {name}"
        fitting = [state for state in possible if state is not None and _is(state, found.metadata, found.version)]
        right = [state for state in fitting if np.array_equal(state.vector, found.vector)]
        assert right, f"{name} has {found.metadata}, version {found.version}, {found.vector}; may be {possible}"
        _learn(right, found.version)

    def judge_search(
        self, asked: Asked, query: Vector, k: int, found: Sequence[Hit], filter: Mapping[str, Any] | None = None
    ) -> None:
        """Of an exact search. Raises AssertionError unless the hits are the k nearest, in their order, with distances,
        metadata and versions, of states that the documents had meanwhile."""
        self.forget(asked)
        wish = filter or {}
        order = [(hit.distance, hit.id) for hit in found]
        assert order == sorted(order), "not nearest first, ties by id"
        ids = {hit.id for hit in found}
        assert len(ids) == len(found) <= k, f"{len(found)} hits of {len(ids)} documents for k {k}"
        distances = _distances(asked, query)
        for hit in found:
            fitting = [
                state
                for state in asked.get(hit.id, ())
                if state is not None and state.matches(wish) and _is(state, hit.metadata, hit.version)
            ]
            assert fitting, f"{hit} is not among the states {asked.get(hit.id, ())}"
            right = [state for state in fitting if abs(distances[id(state)] - hit.distance) < TOLERANCE]
            assert right, f"{hit.id} is told to be {hit.distance} away"
            if hit.vector is not None:
                assert any(np.array_equal(state.vector, hit.vector) for state in right), f"{hit.id}: {hit.vector}"
            _learn(right, hit.version)
        last = found[-1].distance - TOLERANCE if len(found) == k else np.inf
        missing = [
            name
            for name, possible in asked.items()
            if name not in ids
            and all(state is not None and state.matches(wish) and distances[id(state)] < last for state in possible)
        ]
        assert not missing, f"{len(missing)} of {len(asked)} documents are nearer and not found: {missing[:5]}"


def _is(state: Stored, metadata: object, version: int) -> bool:
    return metadata == state.metadata and state.version in (None, version)


def _learn(shown: Sequence[Stored], version: int) -> None:
    """From now on a document of which only this state was shown has this version: a move must keep it."""
    if len(shown) == 1:
        shown[0].version = version


def _distances(asked: Asked, query: Vector) -> dict[int, float]:
    """To each state, by its identity."""
    states = [state for possible in asked.values() for state in possible if state is not None]
    if not states:
        return {}
    told = np.sqrt(((np.stack([state.vector for state in states]) - query) ** 2).sum(axis=1))
    return dict(zip(map(id, states), told.tolist(), strict=True))
