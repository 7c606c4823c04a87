"""Watches the memory that a node's process takes, so that the node stops taking data before the system ends it.

What counts is memory of its own (anonymous pages): index files are mapped, and the system takes their pages back by
itself. Above `soft_bytes` the node is `tight`: it gives back what it only remembers, joins no index files, and gets no
new copies of shards. Above the limit it is `low`: the leaders here refuse what makes the data grow. Reads, deletes,
drops, elections, and what others commit, go on. Both end by themselves, a sixteenth of the limit below where they
began, so that nothing goes to and fro. Pure but for `look`, which asks the port.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from needle.base.errors import OutOfMemory
from needle.base.events import MEMORY_LOW, MEMORY_OK, MEMORY_TIGHT, tell
from needle.protocol.peer_calls import MemoryRoom
from needle.server.machine.growth import Refusing

SHARE: Final = 0.8
"""Of what there is, the limit by default: the rest is for the system, for mapped files, and for what comes between two
looks."""
STEPS: Final = 16


class MemoryUse(NamedTuple):
    """Bytes. own: anonymous memory of the process, in RAM or swapped out. total: that the machine, or the
    process' cgroup, has. 0 for what is not known."""

    own: int
    total: int


def endless() -> MemoryUse:
    """Memory that never ends."""
    return MemoryUse(0, 0)


def soft_bytes(limit: int) -> int:
    """From where on memory is saved: seven eighths of the limit."""
    return limit - limit // 8


class MemorySpace(Refusing):
    """The memory of one node. `look` now and then; `low`, `tight` and `check` in between."""

    def __init__(self, use: Callable[[], MemoryUse], limit: int | None = None, *, node: str = "?") -> None:
        """use: see MemoryUse. limit: bytes above which data is refused; None: SHARE of what there is, 0: never."""
        self._use = use
        self._configured = limit
        self._node = node
        self.tight = False
        self.own = self.total = self.limit = 0

    def look(self) -> None:
        """What is refused follows from what is found. Takes some 0.2 ms."""
        self.own, self.total = self._use()
        self.limit = int(self.total * SHARE) if self._configured is None else self._configured
        step, before = self.limit // STEPS, (self.tight, self.low)
        self.low = bool(self.limit) and self.own > self.limit - (step if self.low else 0)
        self.tight = bool(self.limit) and self.own > soft_bytes(self.limit) - (step if self.tight else 0)
        if (self.tight, self.low) != before:
            self._tell()

    def _tell(self) -> None:
        if self.low:
            tell(MEMORY_LOW, node_name=self._node, own=self.own, limit=self.limit)
        elif self.tight:
            tell(MEMORY_TIGHT, node_name=self._node, own=self.own, limit=self.limit)
        else:
            tell(MEMORY_OK, node_name=self._node, own=self.own, limit=self.limit)

    def room(self) -> MemoryRoom:
        """What other nodes and clients are told."""
        return MemoryRoom(self.own, self.limit, self.tight, self.low)

    def refusal(self) -> OutOfMemory:
        """See Refusing."""
        return OutOfMemory(
            f"node {self._node} takes {self.own} bytes of memory, and data is refused until it takes "
            f"{self.limit - self.limit // STEPS}, for its limit is {self.limit}: delete "
            f"documents, drop collections, or give it more memory (memory_bytes_max); reads, deletes and drops go on",
            own=self.own, limit=self.limit, node=self._node,
        )  # fmt: skip
