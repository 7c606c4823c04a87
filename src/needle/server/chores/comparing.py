"""The replicas of a shard are compared, at the same entry of their log, for as long as the cluster runs.

Some seconds after a change the shard's leader proposes an entry that changes nothing (`Compare`). Every replica notes
the digest that it has right after it, and the leader asks all of them. Digests are the running sums that apply keeps,
so this reads no documents; that the stored rows add up to these sums is for the caretaker to see (docs/adr/0077).

Invariant: only digests of one and the same entry are compared, so what is told of is no replica that is behind. While
nothing is written, nothing is proposed. It decides nothing: replicas that differ go on, for nobody can tell here which
one is right.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from needle.base.errors import NeedleError
from needle.base.events import REPLICAS_DIFFER, REPLICAS_EQUAL, tell
from needle.base.ids import GroupId, NodeId, group_name
from needle.base.parts import Payload
from needle.base.runtime import Clock
from needle.client.divergence import differing, strays
from needle.multiraft.host import Host
from needle.protocol import calls, commands
from needle.routing.topology import Topology
from needle.server.chores.expiry import micros_of
from needle.server.lasting import next_beat
from needle.shard.state_machine import Replica

log = logging.getLogger("needle.server")

DIGEST_AT: Final = "shard.digest_at"
"""Asks another replica: (group, index)."""
COMPARE_SECONDS: Final = 10.0
PROPOSE_SECONDS: Final = 10.0
APPLY_SECONDS: Final = 4.0
"""So long a replica that is asked may take until it has applied the entry."""
ASK_SECONDS: Final = 5.0


class Comparing:
    """Of one replica, while this node leads its group. index: of the last entry at which replicas were compared, 0 for
    none. diverged: the digests there, by node, if they differ. whole: how often all replicas were compared."""

    def __init__(
        self,
        group: GroupId,
        replica: Replica,
        host: Host,
        clock: Clock,
        others: Callable[[], Sequence[NodeId]],
        call: Callable[[NodeId, str, bytes, float], Awaitable[Payload]],
        topology: Callable[[], Topology],
    ) -> None:
        """others: the nodes of the other replicas. call: asks another node. topology: the newest that the node has."""
        self._group = group
        self._replica = replica
        self._host = host
        self._clock = clock
        self._others = others
        self._call = call
        self._topology = topology
        self.index = self.whole = 0
        self.diverged: dict[NodeId, str] = {}
        self._digests: dict[NodeId, str] = {}
        """What was told of the entry `index`."""
        self._unheard: set[NodeId] = set()

    async def run(self) -> None:
        """Until the node stops."""
        while not self._host.stopped:
            await next_beat(self._clock.monotonic(), COMPARE_SECONDS)
            if not self._host.is_leader(self._group):
                self._forget()
                continue
            try:
                await self._look()
            except NeedleError as error:
                if self._replica.damage is not None:
                    raise
                log.debug("%s: its replicas are not compared now: %s", group_name(self._group), error)

    def _forget(self) -> None:
        """Another node leads, and compares."""
        self.index, self.diverged, self._digests, self._unheard = 0, {}, {}, set()

    async def _look(self) -> None:
        others, known = set(self._others()), self._topology().cluster_version >= commands.Compare.SINCE
        if not known or not others or not self._replica.view.collections:
            return
        # Replicas that differ are compared at entries of their own, until they do not differ any more.
        if self.diverged or self._host.applied_index(self._group) > self.index:
            await self._begin(others)
        unheard = sorted(self._unheard & others)
        if unheard:
            await asyncio.gather(*map(self._ask, unheard))
            self._judge(others)

    async def _begin(self, others: set[NodeId]) -> None:
        """Have all note the digest at a new entry."""
        entry = commands.entry(commands.Compare(), self._topology(), micros_of(self._clock))
        index: int = (await self._host.propose(self._group, entry, PROPOSE_SECONDS)).index
        own = self._replica.compared.at(index)
        self.index, self._unheard = index, set(others)
        self._digests = {} if own is None else {self._host.status(self._group).node_id: own}

    async def _ask(self, node: NodeId) -> None:
        """One that does not answer is asked again, as long as nothing else is written; one that has no digest of the
        entry is not: it was restarted since, or has its documents of a snapshot."""
        index = self.index
        try:
            answer = await self._call(node, DIGEST_AT, calls.encode((self._group, index)), ASK_SECONDS)
            found = calls.decode(answer, list[str])
        except NeedleError as error:
            log.debug("%s: %s does not say what it has at %d: %s", group_name(self._group), node, index, error)
            return
        self._unheard.discard(node)
        if found:
            self._digests[node] = found[0]

    def _gone(self, others: set[NodeId]) -> set[NodeId]:
        """Nodes that differed and hold no replica any more. Of one that does and is silent nothing new is known."""
        return self.diverged.keys() - others - {self._host.status(self._group).node_id}

    def _judge(self, others: set[NodeId]) -> None:
        digests = self._digests
        if len(digests) == len(others) + 1:
            self.whole += 1
        if len(digests) < 2:
            return
        before = self.diverged
        if len(set(digests.values())) > 1:
            self.diverged = dict(digests)
            if strays(before) != strays(digests):
                told = differing(digests, self.index)
                name = group_name(self._group)
                tell(REPLICAS_DIFFER, group=name, why=told, index=self.index, digests=dict(digests))
        elif before and before.keys() - digests.keys() <= self._gone(others):
            self.diverged = {}
            tell(REPLICAS_EQUAL, group=group_name(self._group), index=self.index)
