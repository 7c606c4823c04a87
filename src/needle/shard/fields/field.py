"""The index of one field, as its collection keeps it: what searches see, and what is being done with it.

It must not know documents, budgets or other fields.
"""

from __future__ import annotations

from needle.shard.fields.field_index import FieldState
from needle.shard.fields.filter_match import Key


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
