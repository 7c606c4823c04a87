"""Whether a replica may go on: after errors, with damage, and once it is closed.

Invariant: what failed half way is not tried again; the replica has to be opened again. It must not know what is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from needle.base.errors import CorruptDocuments, NeedleError, StorageError
from needle.base.file_errors import SHORTAGES
from needle.shard.searching import not_served
from needle.shard.states import States


class Usable:
    """Of one replica (state_machine.Replica)."""

    def __init__(self, directory: str, states: States) -> None:
        self._directory = directory
        self._states = states
        self._broken: NeedleError | None = None
        self.closed = False

    def check(self) -> None:
        """Raises why nothing can be asked of it."""
        if self._states.damage is not None:
            raise not_served(self._states.damage)
        if self._broken is not None:
            raise self._broken
        if self.closed:
            raise StorageError(f"replica {self._directory} is closed")

    def check_open(self) -> None:
        """The same, but damage alone is no reason."""
        if self._broken is not None or self.closed:
            self.check()

    def failed_half_way(self, what: str, error: BaseException) -> None:
        """Nothing is asked of it any more."""
        self._broken = StorageError(f"{what} failed half way ({error!r}); restart the node")

    @contextmanager
    def final_errors(self) -> Iterator[None]:
        """Around a step of applying: whatever it raises is final, but for a shortage; damage is noted as such."""
        try:
            yield
        except SHORTAGES:
            raise  # nothing was changed (OpenedState.apply)
        except CorruptDocuments as error:
            self._states.found_damage(error)
            raise
        except NeedleError as error:
            self._broken = error
            raise
        except BaseException as error:
            self.failed_half_way("applying", error)
            raise
