"""What the parts of a node's service share: the node as they see it, and the errors that all of them give.

It must not know methods.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from needle.base.errors import DeadlineExceeded, NeedleError, NotLeader, invalid
from needle.base.ids import GroupId, NodeId, group_name
from needle.base.model import RaftStatus
from needle.multiraft.host import Host
from needle.server.address_book import AddressBook
from needle.server.replica import HostedReplica
from needle.server.upkeep.disk_space import DiskSpace


class ServedNode(Protocol):
    """The node, as its service sees it."""

    node_id: NodeId
    host: Host
    groups: dict[GroupId, HostedReplica]
    space: DiskSpace
    book: AddressBook

    def hosted(self, group: GroupId) -> HostedReplica: ...
    def status(self, group: GroupId, digest: bool) -> RaftStatus: ...
    def address_of(self, node: NodeId) -> str | None: ...
    def addresses(self) -> dict[NodeId, str]: ...
    def heard_from(self, node: NodeId) -> None: ...
    async def learn_addresses(self, addresses: dict[NodeId, str], timeout: float) -> None: ...
    async def move_members(self, group: GroupId, addresses: dict[NodeId, str], timeout: float) -> None: ...
    async def set_maintenance(self, on: bool, timeout: float) -> None: ...
    def observe(self, what: str, seconds: float, error: NeedleError | None) -> None: ...
    def now(self) -> float: ...
    @property
    def blocking(self) -> Callable[..., Awaitable[Any]]:
        """Runs short blocking calls in the search threads."""
        ...


def not_leader(node: ServedNode, group: GroupId) -> NotLeader:
    """The answer to who takes this node for the group's leader."""
    leader = node.host.leader(group)
    where = f"{leader} does" if leader else "no leader is known"
    return NotLeader(f"node {node.node_id} does not lead {group_name(group)}; {where}", leader=leader, group=group)


def add_address(error: NeedleError, node: ServedNode) -> None:
    """Tell a caller who is sent to the leader where that is."""
    leader = error.details.get("leader") if isinstance(error, NotLeader) else None
    if leader:
        error.details["leader_address"] = node.address_of(str(leader))


def call_timeout(seconds: float) -> float:
    """What a caller allows us, bounded: nothing waits forever on behalf of a caller that is long gone."""
    if -86_400 <= seconds <= 0:
        raise DeadlineExceeded(f"the call's time was over {abs(seconds):g} s before it arrived; nothing was done")
    if not 0 < seconds <= 86_400:
        raise invalid("timeout", seconds, "seconds, more than 0 and at most 86400")
    return seconds
