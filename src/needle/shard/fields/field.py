"""The index of one field, as its collection keeps it: what searches see, and what is being done with it.

It must not know budgets or other fields.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from needle.base.collection_sizes import FieldIndex, index_called
from needle.shard.documents.metadata_rows import Rows, decode_rows
from needle.shard.fields.field_index import RUN_BYTES, FieldState, Path
from needle.shard.fields.filter_match import Key
from needle.shard.fields.run_making import run_of

BLOAT_ROWS: Final = 1 << 16
EMPTY_BYTES: Final = 2000
"""A field without any value takes about that much."""


class Field:
    """The index of one field.

    nbytes, used_at: the budget's. refused: there was no room for the bytes it `needs`. asked: a search found that it
    lacks documents. fresh: is made in its place, without what was purged. tried: how many rows it had then. declared:
    it is kept rather than others; goal: and has been whole once it had the ordinals below this.
    """

    def __init__(self, key: Key) -> None:
        self.key = key
        self.state = FieldState()
        self.fresh: FieldState | None = None
        self.refused = self.asked = self.declared = False
        self.goal = self.refused_at = self.needs = self.tried = self.nbytes = self.used_at = 0

    def give_back(self) -> None:
        """See index_budget.Holder."""
        self.state, self.fresh = FieldState(), None

    def publish(self, state: FieldState, fresh: FieldState | None) -> None:
        """Let searches see another state."""
        self.state, self.fresh = state, fresh

    def bloated(self, live: int) -> bool:
        """Whether most of what it holds is dead, and may have been purged since it was last made again. live: how many
        documents there are."""
        return self.state.rows > max(2 * live, 2 * self.tried) + BLOAT_ROWS


def least_used(fields: Mapping[Key, Field], wanted: Collection[Key]) -> Field | None:
    """Which one makes place for those that are wanted, if one can."""
    others = [one for key, one in fields.items() if key not in wanted and not one.declared]
    return min(others, key=lambda one: (one.state.found, one.used_at), default=None)


def refused(key: Key) -> Field:
    """One that there is no room for."""
    field = Field(key)
    field.refused = True
    return field


def needed(path: Path, rows: Rows, end: int, live: int, kind: str = "") -> int:
    """Bytes that the indexes of a field of `live` documents would take, judged by some of them. end: of ordinals. kind:
    as in Key, if it is not of values."""
    documents, kinds = decode_rows(rows, frozenset((path[0],))), (kind,) if kind else (False, True)
    runs = [run_of(path, 0, end, rows.ordinals, documents, kind=one) for one in kinds]
    share = live / max(1, len(rows.ordinals))
    return sum(EMPTY_BYTES + RUN_BYTES + int((run.nbytes - RUN_BYTES) * share) for run in runs)


def declared_of(fields: Iterable[Field]) -> dict[str, FieldIndex]:
    """The indexes of declared fields, by path; that of the words of a text by path and analyzer."""
    found: dict[str, FieldIndex] = {}
    for one in fields:
        if one.declared:
            state = "no_room" if one.refused else "ready" if one.state.end >= one.goal else "building"
            index, (path, kind) = FieldIndex(state=state, bytes=one.nbytes), one.key
            name = index_called(".".join(path), kind) if isinstance(kind, str) else ".".join(path)
            found[name] = found[name] + index if name in found else index
    return found
