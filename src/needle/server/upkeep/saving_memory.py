"""What a node does while its memory is tight: it gives back what it only remembers to be faster, again and again.

Invariant: nothing that is given back is needed to answer; it only takes longer. It must not know what memory there is.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from needle.base.errors import NeedleError
from needle.base.ids import GroupId, group_name
from needle.multiraft.host import Host
from needle.server.beats import Beats
from needle.server.machine.space import Space
from needle.server.ports import NodePorts
from needle.server.replica import HostedReplica
from needle.shard.live_collection import ReplicaView

log = logging.getLogger("needle.server")

LOOK_SECONDS: Final = 1.0
AGAIN_SECONDS: Final = 10.0
"""What was given back is remembered again meanwhile, of what is asked for."""


class SavingNode(Protocol):
    """The node whose memory it is."""

    host: Host
    ports: NodePorts
    space: Space
    groups: dict[GroupId, HostedReplica]
    beats: Beats

    def now(self) -> float: ...
    @property
    def blocking(self) -> Callable[..., Awaitable[Any]]:
        """Runs short blocking calls in the search threads."""
        ...


class SavingMemory:
    """See the module."""

    def __init__(self, node: SavingNode) -> None:
        self._node = node
        self._tight = False
        self._due = 0.0

    async def run(self) -> None:
        """Until the node stops."""
        node = self._node
        while not node.host.stopped:
            await node.beats.next(LOOK_SECONDS, lambda: not (self._tight or node.space.memory.tight))
            await self.look()

    async def look(self) -> None:
        """Give back what is due; once memory is there again, have index files planned that were not built meanwhile."""
        node, tight = self._node, self._node.space.memory.tight
        if tight and (not self._tight or node.now() >= self._due):
            for hosted in list(node.groups.values()):
                try:
                    await node.blocking(hosted.replica.field_indexes.shrink)  # to free large ones takes long
                    await node.blocking(hosted.replica.look, _give_back)
                except NeedleError as error:  # it is closed, or damaged: others tell of it
                    log.debug("%s gives nothing back: %s", group_name(hosted.group), error)
            await node.blocking(node.ports.trim)
            self._due = node.now() + AGAIN_SECONDS
        elif self._tight and not tight:
            for hosted in list(node.groups.values()):
                hosted.keeper.look_again([held.record.id for held in hosted.replica.view.collections.values()])
        self._tight = tight


def cached_bytes(hosted: HostedReplica) -> int:
    """What a replica only remembers to be faster: ids of documents that searches found, and what filters allowed."""
    opened = hosted.replica.view.opened
    return hosted.replica.field_indexes.lists.used + (opened.cached_bytes if opened is not None else 0)


def _give_back(view: ReplicaView) -> None:
    if view.opened is not None:
        view.opened.give_back()
