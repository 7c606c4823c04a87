"""To whom a node that is to lead nothing offers the leadership of its groups.

While leadership is on offer its group takes no writes, so it is offered only to voters that answer and may take it,
each in turn: one that does not take over (it is damaged, or in maintenance, which this node has not heard yet) must not
be asked again while there is another one. Where there is none, this node goes on leading. It must not know the catalog.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from needle.base.errors import InvalidArgument, Unavailable
from needle.base.ids import GroupId, NodeId
from needle.multiraft.engine import Engine
from needle.multiraft.group import Group
from needle.raft.state import LEADER


class Heirs:
    """resting: nodes that take no leadership, as far as this node has heard."""

    def __init__(self, engine: Engine) -> None:
        self.resting: frozenset[NodeId] = frozenset()
        self._engine = engine
        self._asked: dict[GroupId, set[NodeId]] = {}

    async def drain(self) -> None:
        """Offer leadership around until none is left here; a group whose only voter this is keeps it."""
        engine = self._engine
        self._asked.clear()
        while engine.maintenance:
            for group in list(engine.groups.values()):
                self._offer(group)
            await asyncio.sleep(min(engine.config.election_timeout, engine.config.lease_timeout))

    def _offer(self, group: Group) -> None:
        raft, asked = group.raft, self._asked.setdefault(group.id, set())
        if raft.role is not LEADER:
            asked.clear()
            return
        if raft.is_transferring:
            return
        heir = self.best(group, asked)
        if heir is None:
            asked.clear()  # the next round begins again, if there is anybody
            return
        asked.add(heir)
        try:
            raft.transfer_leadership(heir, self._engine.clock.monotonic())
        except (Unavailable, InvalidArgument):
            return  # the next round tries again
        self._engine.wake(group)

    def best(self, group: Group, but: Collection[NodeId] = ()) -> NodeId | None:
        """On a leader: the most caught-up other voter that answers and may lead; None if there is none."""
        found, silent = group.raft.progress(), unheard(self._engine, group)
        may = [
            voter
            for voter in sorted(group.raft.conf.voters)
            if voter in found and voter not in {self._engine.node_id, *silent, *but} and voter not in self.resting
        ]
        return max(may, key=lambda voter: found[voter].match, default=None)


def unheard(engine: Engine, group: Group) -> list[NodeId]:
    """On a leader: who has not answered it for an election timeout. One that has just begun knows of nobody yet."""
    past = engine.clock.monotonic() - engine.config.election_timeout
    return [node for node, of in group.raft.progress().items() if node != engine.node_id and of.contact < past]
