"""Which commands make a node hold more: what is refused while its disk, or its memory, has too little room.

Invariant: deletes, drops, and what ends something that was begun, are never refused here. Pure. It must not know why
there is no room.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from needle.base.errors import NeedleError
from needle.protocol import catalog_commands
from needle.protocol.catalog_commands import CatalogCommand
from needle.protocol.commands import ChangeWhere, Command, CreateCollection, Insert, LoadRows, Patch, UpdateVectors
from needle.protocol.move_commands import Import, MoveCommand, PrepareMove
from needle.routing.topology import MoveState


class Refusing(ABC):
    """Something that a node may run short of. `low` while it has: then `refusal()` is raised for what needs it."""

    low = False
    more: tuple[type[Command], ...] = ()
    """Commands that need it beside those that add data."""

    @abstractmethod
    def refusal(self) -> NeedleError:
        """What a refused command is answered."""

    def check(self, command: Command) -> None:
        """Raises the refusal for a command that makes the data grow."""
        if not self.low:
            return
        grows = isinstance(command, (Insert, CreateCollection, Patch, UpdateVectors, LoadRows, *self.more))
        if grows or (isinstance(command, ChangeWhere) and command.change is not None):
            raise self.refusal()

    def check_catalog(self, command: CatalogCommand) -> None:
        """The same for one of the catalog: what begins something that shards then need room for."""
        if self.low and isinstance(command, catalog_commands.CreateCollection | catalog_commands.StartMove):
            raise self.refusal()

    def check_import(self, command: MoveCommand, state: MoveState | None) -> None:
        """The same on the leader of a move's target. state: of the move, None if it is not known here. A move that has
        frozen its ranges is let through: the sooner it ends, the sooner they take deletes again."""
        takes = isinstance(command, Import) or (isinstance(command, PrepareMove) and command.incoming)
        if self.low and takes and state in (None, MoveState.COPYING):
            raise self.refusal()
