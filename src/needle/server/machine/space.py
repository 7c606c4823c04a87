"""The room that a node has, on its disk and in its memory: what is refused while either is short.

It must not know who asks.
"""

from __future__ import annotations

from collections.abc import Callable

from needle.base.config import RaftConfig
from needle.base.runtime import Repeating
from needle.multiraft.log.wal_store import segment_bytes
from needle.protocol.catalog_commands import CatalogCommand
from needle.protocol.commands import Command
from needle.protocol.move_commands import MoveCommand
from needle.routing.topology import MoveState
from needle.server.machine.disk_space import DiskSpace, Volume
from needle.server.machine.memory_space import MemorySpace, MemoryUse

LOOK_SECONDS = 0.2


class Space:
    """Of one node."""

    def __init__(self, disk: DiskSpace, memory: MemorySpace) -> None:
        self.disk = disk
        self.memory = memory

    @property
    def low(self) -> bool:
        """Whether data is refused."""
        return self.disk.low or self.memory.low

    def look(self) -> None:
        """At both. Blocking."""
        self.memory.look()
        self.disk.look()

    async def watch(self, thread: Repeating) -> None:
        """Look for as long as this runs. thread: for this alone. To hand each look to one of two woke both, and the
        event loop: a hundred waits and wakes a second."""
        await thread.repeat(LOOK_SECONDS, self.look)

    def check(self, command: Command) -> None:
        """Raises DiskFull or OutOfMemory for a command that needs what is short."""
        if self.disk.low or self.memory.low:
            self.disk.check(command)
            self.memory.check(command)

    def check_catalog(self, command: CatalogCommand) -> None:
        """See Refusing."""
        self.disk.check_catalog(command)
        self.memory.check_catalog(command)

    def check_import(self, command: MoveCommand, state: MoveState | None) -> None:
        """See Refusing."""
        self.disk.check_import(command, state)
        self.memory.check_import(command, state)


def space_of(config: RaftConfig, volume: Callable[[str], Volume], memory: Callable[[], MemoryUse]) -> Space:
    """As a node's settings have it."""
    log_file = segment_bytes(config.log_bytes_max)
    reserve, node = config.disk_reserve_bytes, config.node_id
    disk = DiskSpace(volume(config.data_dir), config.data_dir, reserve, log_file, node=node)
    return Space(disk, MemorySpace(memory, config.memory_bytes_max, node=node))
