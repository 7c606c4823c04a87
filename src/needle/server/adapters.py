"""Fits a shard's replica, and the catalog, to what the Raft host asks of a state machine: the packages do not know each
other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from needle.base.errors import NeedleError
from needle.catalog.machine import CatalogMachine
from needle.multiraft.ports import Applied, SnapshotFile
from needle.shard.state_machine import Replica


class ReplicaMachine:
    """`multiraft.ports.StateMachine` over a Replica. Blocking, like the replica."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.applied_index = replica.applied_index
        self.applied_term = replica.applied_term
        self.conf = replica.conf
        self.takes_long = replica.takes_long
        self.checkpoint = replica.checkpoint
        self.check_snapshot = replica.check_snapshot
        self.install_snapshot = replica.install_snapshot
        self.held_file = replica.held_file
        self.similar_file = replica.similar_file
        self.close = replica.close

    @property
    def damage(self) -> NeedleError | None:
        """Why the replica serves nothing."""
        return self.replica.damage

    def apply(self, entries: Sequence[Applied]) -> list[Any]:
        """Apply in order, in one transaction."""
        return self.replica.apply(entries)

    def export_snapshot(self, directory: str) -> tuple[int, int, bytes, list[SnapshotFile]]:
        """Write a consistent image into `directory`."""
        index, term, conf, files = self.replica.export_snapshot(directory)
        return index, term, conf, [SnapshotFile(file.name, file.size, file.checksum) for file in files]


class CatalogAdapter:
    """multiraft.ports.StateMachine over the catalog."""

    def __init__(self, machine: CatalogMachine) -> None:
        self.machine = machine
        self.applied_index = machine.applied_index
        self.applied_term = machine.applied_term
        self.conf = machine.conf
        self.checkpoint = machine.checkpoint
        self.digest = machine.digest
        self.check_snapshot = machine.check_snapshot
        self.install_snapshot = machine.install_snapshot
        self.held_file = self.similar_file = _no_file
        self.close = machine.close

    @property
    def damage(self) -> NeedleError | None:
        """Why the catalog's replica serves nothing."""
        return self.machine.damage

    def apply(self, entries: Sequence[Applied]) -> list[Any]:
        """Apply in order, in one transaction."""
        return self.machine.apply(entries)

    def takes_long(self, entries: Sequence[Applied]) -> bool:
        """None does."""
        return False

    def export_snapshot(self, directory: str) -> tuple[int, int, bytes, list[SnapshotFile]]:
        """Write an image into `directory`."""
        index, term, conf, files = self.machine.export_snapshot(directory)
        return index, term, conf, [SnapshotFile(file.name, file.size, file.checksum) for file in files]


def _no_file(name: str) -> str | None:
    """The catalog's one file changes, and is small."""
    return None
