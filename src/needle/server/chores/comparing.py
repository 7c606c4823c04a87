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
from needle.base.ids import NodeId
from needle.base.parts import Payload
from needle.client.divergence import differing, strays
from needle.protocol import calls, commands
from needle.server.chores.context import ChoreContext
from needle.server.lasting import next_beat

log = logging.getLogger("needle.server")

DIGEST_AT: Final = "shard.digest_at"
"""Asks another replica: (group, index)."""
COMPARE_SECONDS: Final = 10.0
APPLY_SECONDS: Final = 4.0
"""So long a replica that is asked may take until it has applied the entry."""
ASK_SECONDS: Final = 5.0


class Comparing:
    """Of one replica, while this node leads its group. index: of the last entry at which replicas were compared, 0 for
    none. diverged: the digests there, by node, if they differ. whole: how often all replicas were compared."""

    def __init__(
        self,
        at: ChoreContext,
        others: Callable[[], Sequence[NodeId]],
        call: Callable[[NodeId, str, bytes, float], Awaitable[Payload]],
    ) -> None:
        """others: the nodes of the other replicas. call: asks another node."""
        self._at = at
        self._others = others
        self._call = call
        self.index = self.whole = 0
        self.diverged: dict[NodeId, str] = {}
        self._digests: dict[NodeId, str] = {}
        """What was told of the entry `index`."""
        self._unheard: set[NodeId] = set()

    async def run(self) -> None:
        """Until the node stops."""
        while not self._at.host.stopped:
            await next_beat(self._at.clock.monotonic(), COMPARE_SECONDS)
            if not self._at.leads:
                self._forget()
                continue
            await self._at.attempt(self._look(), "its replicas are not compared now")

    def _forget(self) -> None:
        """Another node leads, and compares."""
        self.index, self.diverged, self._digests, self._unheard = 0, {}, {}, set()

    async def _look(self) -> None:
        others, known = set(self._others()), self._at.topology().cluster_version >= commands.Compare.SINCE
        if not known or not others or not self._at.replica.view.collections:
            return
        # Replicas that differ are compared at entries of their own, until they do not differ any more.
        if self.diverged or self._at.host.applied_index(self._at.group) > self.index:
            await self._begin(others)
        unheard = sorted(self._unheard & others)
        if unheard:
            await asyncio.gather(*map(self._ask, unheard))
            self._judge(others)

    async def _begin(self, others: set[NodeId]) -> None:
        """Have all note the digest at a new entry."""
        index: int = (await self._at.propose(commands.Compare())).index
        own = self._at.replica.compared.at(index)
        self.index, self._unheard = index, set(others)
        self._digests = {} if own is None else {self._at.host.status(self._at.group).node_id: own}

    async def _ask(self, node: NodeId) -> None:
        """One that does not answer is asked again, as long as nothing else is written; one that has no digest of the
        entry is not: it was restarted since, or has its documents of a snapshot."""
        index = self.index
        try:
            answer = await self._call(node, DIGEST_AT, calls.encode((self._at.group, index)), ASK_SECONDS)
            found = calls.decode(answer, list[str])
        except NeedleError as error:
            log.debug("%s: %s does not say what it has at %d: %s", self._at.name, node, index, error)
            return
        self._unheard.discard(node)
        if found:
            self._digests[node] = found[0]

    def _gone(self, others: set[NodeId]) -> set[NodeId]:
        """Nodes that differed and hold no replica any more. Of one that does and is silent nothing new is known."""
        return self.diverged.keys() - others - {self._at.host.status(self._at.group).node_id}

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
                tell(REPLICAS_DIFFER, group=self._at.name, why=told, index=self.index, digests=dict(digests))
        elif before and before.keys() - digests.keys() <= self._gone(others):
            self.diverged = {}
            tell(REPLICAS_EQUAL, group=self._at.name, index=self.index)
