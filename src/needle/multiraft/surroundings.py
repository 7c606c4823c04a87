"""What a group, and what works for it, needs of the host that it is on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from needle.base.ids import GroupId, NodeId
from needle.base.runtime import Clock, Pool
from needle.multiraft.config import HostConfig
from needle.multiraft.counters import Counters
from needle.multiraft.failpoints import Failpoint
from needle.multiraft.log.group_log import LogWrite
from needle.multiraft.ports import Transport
from needle.multiraft.retention import Bounds
from needle.multiraft.snapshots.receiver import SnapshotFetcher
from needle.multiraft.snapshots.sender import SnapshotShelf
from needle.raft.messages import Message


class Surroundings(Protocol):
    """What a group needs of its host."""

    node_id: NodeId
    config: HostConfig
    bounds: Bounds
    clock: Clock
    counters: Counters
    apply_pool: Pool
    long_pool: Pool
    shelf: SnapshotShelf
    fetcher: SnapshotFetcher
    transport: Transport
    failpoint: Failpoint
    maintenance: bool
    stopped: bool

    def is_news(self, *what: object) -> bool:
        """Whether the log is to be told of this: it was not lately."""
        ...

    def bytes_used(self) -> int:
        """Bytes that the logs of this node take on its disk."""
        ...

    @property
    def lost(self) -> str:
        """Why no replica of this node may go on; "" if they may."""
        ...

    def wake(self, group: Any) -> None:
        """Have the group's Ready taken in the next loop turn."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run in the background; a failure is fatal for the node."""
        ...

    def background_failed(self, error: BaseException) -> None:
        """Work that nobody awaits failed: stop the node."""
        ...

    def post(self, group: GroupId, messages: tuple[Message, ...]) -> None:
        """Send these with the next loop turn."""
        ...

    async def durable(self, write: LogWrite) -> None:
        """Put a write into the next transaction; returns once it is durable."""
        ...
