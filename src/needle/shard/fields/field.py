"""The index of one field, as its collection keeps it: what searches see, and what is being done with it.

It must not know budgets or other fields.
"""

from __future__ import annotations

from typing import Final

from needle.shard.documents.metadata_rows import Rows, decode_rows
from needle.shard.fields.field_index import RUN_BYTES, FieldState, Path
from needle.shard.fields.filter_match import Key
from needle.shard.fields.run_making import run_of

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


def refused(key: Key) -> Field:
    """One that there is no room for."""
    field = Field(key)
    field.refused = True
    return field


def needed(path: Path, rows: Rows, end: int, live: int) -> int:
    """Bytes that the indexes of a field of `live` documents would take, judged by some of them. end: of ordinals."""
    documents = decode_rows(rows, frozenset((path[0],)))
    runs = [run_of(path, 0, end, rows.ordinals, documents, instants=instants) for instants in (False, True)]
    share = live / max(1, len(rows.ordinals))
    return sum(EMPTY_BYTES + RUN_BYTES + int((run.nbytes - RUN_BYTES) * share) for run in runs)
