"""Rows that a move of ranges took away and that remembered changes wrote: a change feed may have to read them still.

No effect names them as dead, for what leaves with a range was not deleted. They stay for as long as an effect is
remembered that wrote them, or one behind it, and there are not more of them than may stay; then the oldest go first,
and no effect is cut for them. It must not know SQLite or moves.

Invariant: what is held was written by a remembered effect, or came with a move behind one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from pyroaring import BitMap


class _Moved:
    """Of one collection. vectors: by ordinal of the document, where its vector has another one."""

    def __init__(self) -> None:
        self.documents, self.vectors = BitMap(), dict[int, int]()

    def count(self) -> int:
        return len(self.documents) + len(self.vectors)

    def drop(self, gone: BitMap) -> None:
        self.documents -= gone
        for ordinal in self.vectors.keys() & set(gone) if self.vectors else ():
            del self.vectors[ordinal]


class MovedRows:
    """Of one replica. rows_max: of all collections. Who calls sees to it that one thread does at a time."""

    def __init__(self, rows_max: int) -> None:
        self._rows_max = rows_max
        self._written: dict[int, tuple[int, int]] = {}
        """By collection: how many remembered effects wrote rows, and from which one on these are."""
        self._moved: OrderedDict[int, _Moved] = OrderedDict()
        """Its first is found at once, however many before it went: a plain dict looks through their places again."""
        self.count = 0
        """How many are held, vectors that have ordinals of their own included."""

    def wrote(self, collection_id: int, first: int) -> None:
        """An effect is remembered that wrote rows from there on."""
        effects, floor = self._written.get(collection_id, (0, first))
        self._written[collection_id] = effects + 1, floor

    def cut(self, collection_id: int, end: int) -> None:
        """The oldest effect that wrote rows is remembered no more: those before `end`."""
        effects, _ = self._written.pop(collection_id)
        if effects > 1:
            self._written[collection_id] = effects - 1, end
        if (moved := self._moved.get(collection_id)) is not None:
            before = len(moved.documents) if effects == 1 else moved.documents.rank(end - 1)
            self._drop(collection_id, moved, moved.documents[:before])

    def left(self, collection_id: int, documents: Sequence[int], vectors: Sequence[int]) -> None:
        """These rows were taken away. vectors: the ordinal of each document's vector."""
        if collection_id not in self._written:
            return
        floor = self._written[collection_id][1]
        moved = self._moved.get(collection_id) or _Moved()
        before = moved.count()
        for ordinal, vector in zip(documents, vectors, strict=True):
            if ordinal >= floor:
                moved.documents.add(ordinal)
                if vector != ordinal:
                    moved.vectors[ordinal] = vector
        if moved.documents:
            self._moved[collection_id] = moved
            self.count += moved.count() - before
            self.limit(self._rows_max)

    def limit(self, rows_max: int) -> None:
        """Hold no more than so many: of one collection after the other the oldest go."""
        while (too_many := self.count - rows_max) > 0:
            collection_id, moved = next(iter(self._moved.items()))
            self._drop(collection_id, moved, moved.documents[:too_many])

    def clear(self) -> None:
        """Nothing is remembered any more."""
        self._written, self.count = {}, 0
        self._moved.clear()

    def held(self) -> dict[int, BitMap]:
        """By collection, the ordinals that are to stay."""
        return {of: moved.documents | BitMap(moved.vectors.values()) for of, moved in self._moved.items()}

    def _drop(self, collection_id: int, moved: _Moved, gone: BitMap) -> None:
        before = moved.count()
        moved.drop(gone)
        self.count += moved.count() - before
        if not moved.documents:
            del self._moved[collection_id]
