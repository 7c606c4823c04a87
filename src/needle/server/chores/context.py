"""What the background work of a replica has at hand, and how it treats what fails."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

from needle.base.errors import NeedleError
from needle.base.ids import GroupId, NodeId, group_name
from needle.base.model import RaftStatus
from needle.base.runtime import Clock, Pool, micros_of
from needle.multiraft.host import Host
from needle.protocol import commands
from needle.routing.topology import Topology
from needle.server.beats import Beats
from needle.shard.state_machine import Replica

log = logging.getLogger("needle.server")

PROPOSE_SECONDS: Final = 10.0

T = TypeVar("T")


def others_of(status: RaftStatus) -> list[NodeId]:
    """The nodes of a group's other replicas, leader first."""
    others = [node for node in [*status.voters, *status.learners] if node != status.node_id]
    return sorted(others, key=lambda node: node != status.leader)


class ChoreContext(NamedTuple):
    """Of one replica. pool: for what blocks. topology: the newest that the node has. beats: of the node."""

    group: GroupId
    replica: Replica
    host: Host
    clock: Clock
    pool: Pool
    topology: Callable[[], Topology]
    beats: Beats

    @property
    def name(self) -> str:
        """Of the group, as logs have it."""
        return group_name(self.group)

    @property
    def leads(self) -> bool:
        """Whether this node leads the group."""
        return self.host.is_leader(self.group)

    async def propose(self, command: commands.Command) -> Any:
        """The result of an entry with the command."""
        entry = commands.entry(command, self.topology(), micros_of(self.clock))
        return await self.host.propose(self.group, entry, PROPOSE_SECONDS)

    async def attempt(self, work: Awaitable[T], otherwise: str) -> T | None:
        """Do what is tried again later anyway: an error is logged, with the words of what is the matter then, and makes
        None. Damage of the replica is raised, for it ends all work of it."""
        try:
            return await work
        except NeedleError as error:
            if self.replica.damage is not None:
                raise
            log.debug("%s: %s: %s", self.name, otherwise, error)
            return None
