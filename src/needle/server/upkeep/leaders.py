"""Leaders where placement wants them: a node hands a shard it leads to the shard's preferred leader, gracefully. A
node that leads the catalog and no shard hands it to one that leads shards: then heartbeats of both travel in one frame.

Invariants: one transfer at a time per node, `SPREAD_SECONDS` apart; only to a replica that answers, and so fast that it
would be heard as a leader (where everything is late, each transfer would be one more election), is not in maintenance,
has room on its disk, nothing that hinders it and everything else; a transfer that failed is not tried again for a
while, longer each time. The leader of a cluster's only shard stays where it is.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Protocol

from needle.base.config import RaftConfig
from needle.base.errors import NeedleError
from needle.base.events import LEADER_MOVED, tell
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name
from needle.multiraft.host import Host
from needle.protocol import calls
from needle.protocol.calls import GroupCall, LeaderAnswer
from needle.protocol.peer_calls import SHARD_LEADER
from needle.routing.topology import Topology
from needle.server.beats import Beats
from needle.server.ports import Peers
from needle.server.replica import HostedReplica

log = logging.getLogger("needle.server")

SPREAD_SECONDS = 1.0
RETRY_SECONDS = 5.0
RETRY_SECONDS_MAX = 300.0
ASK_SECONDS = 1.0


class SpreadingNode(Protocol):
    """The node whose leaderships are spread."""

    node_id: NodeId
    config: RaftConfig
    host: Host
    peers: Peers
    topology: Topology
    groups: dict[GroupId, HostedReplica]
    beats: Beats

    def now(self) -> float: ...


class LeaderSpread:
    """See the module."""

    def __init__(self, node: SpreadingNode) -> None:
        self._node = node
        self._retry: dict[GroupId, tuple[float, float]] = {}
        self.transfers = 0

    async def run(self) -> None:
        """Look every SPREAD_SECONDS; at most one transfer each time."""
        while not self._node.host.stopped:
            await self._node.beats.next(SPREAD_SECONDS)
            if not self._node.host.maintenance:
                await self._look()

    async def _look(self) -> None:
        node = self._node
        if await self._catalog_goes_along():
            return
        if len(node.topology.serving) < 2:
            return  # one leader is nothing to spread: it stays where operators put it
        for info in node.topology.hosted_by(node.node_id):
            group, wanted = info.shard + 1, info.replicas[0]
            if wanted == node.node_id or group not in node.groups or not node.host.is_leader(group):
                continue
            if await self._hand_over(group, wanted):
                return

    async def _catalog_goes_along(self) -> bool:
        """Whether it was handed to who leads most of the shards that are here; this node leads none of them."""
        host = self._node.host
        if CATALOG_GROUP not in host.groups() or not host.is_leader(CATALOG_GROUP):
            return False
        leaders = Counter(leader for group in self._node.groups if (leader := host.leader(group)) is not None)
        if self._node.node_id in leaders or not leaders:
            return False
        most = max(leaders, key=lambda node: (leaders[node], node))
        return await self._hand_over(CATALOG_GROUP, most)

    async def _hand_over(self, group: GroupId, wanted: NodeId) -> bool:
        """Whether it was tried."""
        due = self._node.now() >= self._retry.get(group, (0.0, 0.0))[0]
        if not due or not self._caught_up(group, wanted) or not await self._willing(group, wanted):
            return False
        await self._transfer(group, wanted)
        return True

    def _caught_up(self, group: GroupId, wanted: NodeId) -> bool:
        peers = self._node.host.status(group).peers
        return any(
            peer.id == wanted and peer.recently_active and not peer.is_learner and peer.lag_entries < 100
            for peer in peers
        )

    async def _willing(self, group: GroupId, wanted: NodeId) -> bool:
        asked = self._node.now()
        try:
            data = await self._node.peers.call(
                wanted, SHARD_LEADER, calls.encode(GroupCall(group, ASK_SECONDS)), ASK_SECONDS
            )
            told = calls.decode(data, LeaderAnswer)
        except NeedleError as error:
            log.debug("preferred leader %s of %s does not answer: %s", wanted, group_name(group), error)
            return False
        if (took := self._node.now() - asked) > self._node.config.election_timeout / 2:
            log.debug("preferred leader %s of %s took %.3f s to answer", wanted, group_name(group), took)
            return False
        return not told.maintenance and told.room is not False and not told.hinders

    async def _transfer(self, group: GroupId, wanted: NodeId) -> None:
        try:
            await self._node.host.transfer(group, wanted, RETRY_SECONDS)
        except NeedleError as error:
            pause = min(RETRY_SECONDS_MAX, 2 * self._retry.get(group, (0.0, RETRY_SECONDS / 2))[1])
            self._retry[group] = (self._node.now() + pause, pause)
            log.info("%s stays with %s: %s", group_name(group), self._node.node_id, error)
        else:
            self._retry.pop(group, None)
            self.transfers += 1
            tell(LEADER_MOVED, group=group_name(group), to=wanted, why="the catalog prefers it there")
