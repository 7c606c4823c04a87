"""A node whose disk or memory is low, or whose certificate has expired, hands what it leads to a replica that has
room: its clients can write again.

Invariants: only to a voter that answers, says that it has room and of nothing that hinders it, is not in maintenance
and has everything; each group once a minute at most, so that leadership does not go around among nodes that all run
full. It must not know clients.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol

from needle.base.errors import NeedleError
from needle.base.events import LEADER_MOVED, tell
from needle.base.ids import GroupId, NodeId, group_name
from needle.multiraft.host import Host
from needle.protocol import calls
from needle.protocol.calls import GroupCall, LeaderAnswer
from needle.protocol.peer_calls import SHARD_LEADER
from needle.server.beats import Beats
from needle.server.certificates import EXPIRED
from needle.server.machine.space import Space
from needle.server.ports import Peers

log = logging.getLogger("needle.server")

LOOK_SECONDS: Final = 2.0
PACE_SECONDS: Final = 60.0
ASK_SECONDS: Final = 1.0
TRANSFER_SECONDS: Final = 5.0
LAG_MAX: Final = 100
"""Entries that a replica may lack and still count as caught up."""


class LeadingNode(Protocol):
    """The node that leads."""

    node_id: NodeId
    host: Host
    peers: Peers
    space: Space
    beats: Beats

    @property
    def expired(self) -> bool:
        """Whether nobody can connect to it any more: its certificate is no longer good."""
        ...

    def now(self) -> float: ...


class RoomierLeaders:
    """See the module."""

    def __init__(self, node: LeadingNode) -> None:
        self._node = node
        self._tried: dict[GroupId, float] = {}

    async def run(self) -> None:
        """Until the node stops."""
        node = self._node
        while not node.host.stopped:
            await node.beats.next(LOOK_SECONDS, lambda: node.host.maintenance or not (node.space.low or node.expired))
            await self.look()

    async def look(self) -> None:
        """Hand over what is due."""
        node, now = self._node, self._node.now()
        self._tried = {group: at for group, at in self._tried.items() if now - at < PACE_SECONDS}
        for group in node.host.groups():
            try:
                if group not in self._tried and node.host.is_leader(group):  # raises if it was closed meanwhile
                    self._tried[group] = now
                    await self._hand_over(group)
            except NeedleError as error:
                log.info("%s does not leave %s, which should not lead: %s", group_name(group), node.node_id, error)

    async def _hand_over(self, group: GroupId) -> None:
        host = self._node.host
        peers = [peer for peer in host.status(group).peers if peer.recently_active and not peer.is_learner]
        for peer in sorted(peers, key=lambda peer: peer.lag_entries):
            if peer.id != self._node.node_id and peer.lag_entries < LAG_MAX and await self._has_room(group, peer.id):
                await host.transfer(group, peer.id, TRANSFER_SECONDS)
                why = EXPIRED if self._node.expired else "it has room"
                tell(LEADER_MOVED, group=group_name(group), to=peer.id, why=why)
                return

    async def _has_room(self, group: GroupId, peer: NodeId) -> bool:
        node, body = self._node, calls.encode(GroupCall(group, ASK_SECONDS))
        try:
            answer = await node.peers.call(peer, SHARD_LEADER, body, ASK_SECONDS)
        except NeedleError as error:
            log.debug("%s does not say whether it has room: %s", peer, error)
            return False
        told = calls.decode(answer, LeaderAnswer)
        return told.room is True and not told.maintenance and not told.hinders
