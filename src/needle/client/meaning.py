"""What a call takes an alias for, while it is under way.

Invariant: what a shard does for a call that names an alias, it does at an epoch of the map at which the alias meant the
collection that the call is about. When an alias gets another meaning the map gets another epoch, so a shard refuses the
old meaning, which has no effect; the call begins again with the new one. One that may have had an effect says so.
"""

from __future__ import annotations

from contextvars import ContextVar

from needle.base.errors import NeedleError, Unavailable
from needle.routing.topology import Topology

_SWITCHED = "alias_switched"


class Meaning:
    """An alias, and the collection it means."""

    __slots__ = ("_epoch", "_id", "_name")

    def __init__(self, name: str, collection_id: int) -> None:
        self._name = name
        self._id = collection_id
        self._epoch = 0

    def holds(self, now: Topology) -> bool:
        """Whether it does by this topology, which is not older than those before."""
        found = now.collection(self._name)
        return found is not None and found.id == self._id

    def epoch(self, now: Topology) -> int:
        """The newest one known at which it did, for a call; -1 for one that is too old."""
        if now.map is not None and self.holds(now):
            self._epoch = now.map.epoch
        return self._epoch or -1

    def check(self, now: Topology) -> None:
        """Raises what `switched` tells."""
        if not self.holds(now):
            text = f"alias {self._name[:80]!r} got another meaning, and nothing was done by the old one"
            raise Unavailable(text, **{_SWITCHED: True})


meant: ContextVar[Meaning | None] = ContextVar("meant", default=None)
"""Of the call that is under way here; None if it names a collection by its own name."""


def switched(error: object) -> bool:
    """Whether a call, or a part of it, had no effect because its alias got another meaning."""
    return isinstance(error, NeedleError) and bool(error.details.get(_SWITCHED))
