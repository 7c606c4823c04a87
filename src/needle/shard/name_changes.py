"""Which collections of a replica came and went lately, so that whoever compares their names with others looks at these
only. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

KEPT_MAX: Final = 256


class NameChanges(NamedTuple):
    """At one moment; a later one has another. of: the state of which these are: those of another one say nothing of
    this. count: how many came and went since it was opened. latest: the names of the last of them."""

    of: object = None
    number: int = 0
    latest: tuple[str, ...] = ()

    def with_one(self, name: str) -> NameChanges:
        """A collection of that name came, or went."""
        return NameChanges(self.of, self.number + 1, (*self.latest, name)[-KEPT_MAX:])

    def since(self, before: NameChanges) -> tuple[str, ...] | None:
        """The names that came or went since an earlier moment; None if that is not known any more."""
        more = self.number - before.number
        if self.of is None or self.of is not before.of or not 0 <= more <= len(self.latest):
            return None
        return self.latest[len(self.latest) - more :]


NO_NAMES: Final = NameChanges()
"""Of nothing: no moment is known."""
