"""The replicas of a group are compared, at the same entry of their log, for as long as the cluster runs.

Some seconds after a change a shard's leader proposes an entry that changes nothing (`Compare`). Every replica notes
the digest that it has right after it, and the leader asks all of them. Digests are the running sums that apply keeps,
so this reads no documents; that the stored rows add up to these sums is for the caretaker to see (docs/adr/0077). The
catalog, which is stored whole with its sum after each batch of entries, needs no entry for that (docs/adr/0115).

Invariant: only digests of one and the same entry are compared, so what is told of is no replica that is behind. While
nothing is written, nothing is proposed. It decides nothing: replicas that differ go on, for nobody can tell here which
one is right.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar

from needle.base.errors import NeedleError
from needle.base.events import REPLICAS_DIFFER, REPLICAS_EQUAL, tell
from needle.base.ids import GroupId, NodeId
from needle.base.parts import Payload
from needle.client.divergence import differing, strays
from needle.multiraft.host import Host
from needle.protocol import calls, commands
from needle.server.beats import Beats
from needle.server.chores.context import ChoreContext

log = logging.getLogger("needle.server")

DIGEST_AT: Final = "shard.digest_at"
"""Asks another replica: (group, index)."""
COMPARE_SECONDS: Final = 10.0
APPLY_SECONDS: Final = 4.0
"""So long a replica that is asked may take until it has applied the entry."""
ASK_SECONDS: Final = 5.0


T = TypeVar("T")


class Compared(Protocol):
    """This node's replica of what is compared. form: of its digests; those of another form say nothing."""

    @property
    def group(self) -> GroupId: ...
    @property
    def name(self) -> str: ...
    @property
    def host(self) -> Host: ...
    @property
    def beats(self) -> Beats: ...
    @property
    def leads(self) -> bool: ...
    @property
    def form(self) -> list[str]: ...
    @property
    def ready(self) -> bool:
        """Whether there is something to compare, and all nodes know how."""
        ...

    async def mark(self) -> int:
        """An entry after which all replicas note their digest, or have."""
        ...

    def digest_at(self, index: int) -> str | None:
        """What this one has noted; None for nothing."""
        ...

    async def attempt(self, work: Awaitable[T], otherwise: str) -> T | None:
        """As ChoreContext does."""
        ...


class ShardCompared:
    """Of a shard's replica, by an entry of its own."""

    form: Final[list[str]] = []

    def __init__(self, at: ChoreContext) -> None:
        self._at = at
        self.group, self.name, self.host, self.beats, self.attempt = at.group, at.name, at.host, at.beats, at.attempt

    @property
    def leads(self) -> bool:
        return self._at.leads

    @property
    def ready(self) -> bool:
        known = self._at.topology().cluster_version >= commands.Compare.SINCE
        return known and bool(self._at.replica.view.collections)

    async def mark(self) -> int:
        index: int = (await self._at.propose(commands.Compare())).index
        return index

    def digest_at(self, index: int) -> str | None:
        return self._at.replica.compared.at(index)


class Comparing:
    """Of one replica, while this node leads its group. index: of the last entry at which replicas were compared, 0 for
    none. diverged: the digests there, by node, if they differ. whole: how often all replicas were compared."""

    def __init__(
        self,
        at: Compared,
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
            await self._at.beats.next(COMPARE_SECONDS)
            if not self._at.leads:
                self._forget()
                continue
            await self._at.attempt(self._look(), "its replicas are not compared now")

    def _forget(self) -> None:
        """Another node leads, and compares."""
        self.index, self.diverged, self._digests, self._unheard = 0, {}, {}, set()

    async def _look(self) -> None:
        others = set(self._others())
        if not others or not self._at.ready:
            return
        # Replicas that differ are compared again, until they do not differ any more.
        if self.diverged or self._at.host.applied_index(self._at.group) > self.index:
            await self._begin(others)
        unheard = sorted(self._unheard & others)
        if unheard:
            await asyncio.gather(*map(self._ask, unheard))
            self._judge(others)

    async def _begin(self, others: set[NodeId]) -> None:
        """Go by another entry, or by what all have at the same one by now."""
        index = await self._at.mark()
        own = self._at.digest_at(index)
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
        if found and found[1:] == self._at.form:
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
