"""No replica ever searches by files of two indexes of a collection.

Fed with what the logs of shards say of index files; asked with what replicas serve. It must not know the simulation.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from needle.protocol.commands import LoadRows, PublishSegment, StageSegment, SwitchIndex
from proof.checkers.violation import Violation

File = tuple[int, int, str]
"""First and last ordinal, checksum."""


class IndexFiles:
    """By group and collection id: the files of each index that the collection had, one after the other."""

    def __init__(self) -> None:
        self._had: dict[tuple[int, int], list[set[File]]] = {}
        self._staged: dict[tuple[int, int], tuple[str, set[File]]] = {}
        self.switches = 0

    def committed(self, group: int, command: Any) -> None:
        """An entry that took effect."""
        if isinstance(command, LoadRows):
            files = {(one.first, one.last, one.checksum) for one in command.indexes}
            self._had.setdefault((group, command.collection_id), [set()])[-1].update(files)
        if not isinstance(command, PublishSegment | StageSegment | SwitchIndex):
            return
        key = group, command.collection_id
        had = self._had.setdefault(key, [set()])
        if isinstance(command, SwitchIndex):
            had.append(self._staged.pop(key, ("", set()))[1])
            self.switches += 1
            return
        file = command.first, command.last, command.checksum
        if isinstance(command, PublishSegment):
            had[-1].add(file)
            return
        index, files = self._staged.get(key, ("", set()))
        self._staged[key] = (command.index.built, {*(files if index == command.index.built else ()), file})

    def check(self, who: str, group: int, collection_id: int, served: Collection[File]) -> None:
        """Raises Violation unless all of what a replica serves is of one index."""
        had = self._had.get((group, collection_id), [set()])
        if served and not any(files.issuperset(served) for files in had):
            raise Violation(
                "indexes", f"{who} serves collection {collection_id} of group {group} by files of two indexes: {served}"
            )
