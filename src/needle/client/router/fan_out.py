"""One read of many shards: who is asked, how long, and whether the answers cover what was asked for.

Invariant (coverage): an answer is used only if it names the map's epoch and the very ranges that the map gives its
shard; the ranges of the shards that answered cover the key space, or the result says which do not. So a search never
has a silent gap and never counts a range twice: the ranges of one map do not overlap.
Any replica will do for eventual reads (any_replica.py). It must not know what is read.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol, Self, TypeVar

import msgspec

from needle.base.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NeedleError,
    ProtocolError,
    ScanEnded,
    StaleEpoch,
    in_seconds,
)
from needle.base.model import ReadMode, WriteResult
from needle.base.parts import Payload
from needle.client.known_topology import told_version
from needle.client.meaning import meant
from needle.client.router.any_replica import AnyReplica
from needle.client.router.by_node import Asked, Before, Led, NodeCalls, NodePart, Together
from needle.client.router.gathering import gather
from needle.client.router.stats import FanOutStats
from needle.protocol import calls
from needle.protocol.bounds import bound_call
from needle.protocol.calls import Freshness
from needle.protocol.commands import Bound, Command, Session
from needle.protocol.peer_calls import ReceivedAnswer
from needle.routing.shard_map import KeyRange, uncovered
from needle.routing.topology import Ownership, Topology

T = TypeVar("T")

MakeCall = Callable[[int, Freshness, int], object]
"""The call of one shard, given the shard, how fresh the read must be, and the epoch of the map."""
_EVENTUAL = ReadMode.EVENTUAL
PAUSE_SECONDS = 0.02


class ShardGroup(Led, Protocol):
    """One shard's Raft group, as `client.shards` reaches it."""

    async def write(self, make: Callable[[Session], Command], timeout: float) -> WriteResult: ...
    async def ask_leader(self, method: str, make_body: Callable[[float], bytes], timeout: float) -> Payload: ...
    async def ask_leader_after(
        self,
        error: NeedleError | None,
        address: str,
        spent: float,
        method: str,
        make_body: Callable[[float], bytes],
        timeout: float,
    ) -> Payload: ...


class Answers(msgspec.Struct, frozen=True):
    """by_shard: bodies of the shards that answered alone, in order. parts: of those that answered together. missing:
    why others did not. gaps: the ranges of the key space without an answer (only when partial answers were asked for).
    epoch: of the map all were computed on."""

    by_shard: dict[int, Payload]
    missing: dict[int, NeedleError]
    gaps: list[KeyRange]
    epoch: int
    parts: list[NodePart] = []

    def size(self) -> int:
        """Bytes of all bodies."""
        size = 0
        for body in self.by_shard.values():
            size += len(body)
        for part in self.parts:
            size += len(part.body)
        return size


class _OfNode(msgspec.Struct, frozen=True):
    """What shards that were asked together have answered: merged, or each by itself."""

    part: NodePart | None
    alone: dict[int, Payload]


def no_agreement(timeout: float, last: StaleEpoch) -> DeadlineExceeded:
    """What to say of a read whose time is up and whose map was never the shards'."""
    return DeadlineExceeded(f"no agreement on the shard map within {in_seconds(timeout)}: {last.message}")


class FanOut:
    """Asks shards. One for all reads of a router."""

    def __init__(
        self,
        group: Callable[[int], ShardGroup],
        topology: Callable[[], Topology],
        refresh: Callable[[int, float], Coroutine[Any, Any, Topology]],
    ) -> None:
        """refresh: (version, seconds) -> a topology of at least that version, or the newest there is."""
        self._group = group
        self._topology = topology
        self._refresh = refresh
        self._owned: Ownership | None = None
        self._covers: bool = False
        self._any = AnyReplica(topology, refresh)
        self._nodes = NodeCalls()
        self.latencies = self._any.hedging.latencies
        self.stats = FanOutStats()
        self._bound: Bound | None = None

    def bound_to(self, bound: Bound) -> Self:
        """One that asks for documents within the bound only: a copy, as of a router."""
        with suppress(NeedleError):
            self.ownership()  # what it takes to make that of a large map is not spent by each copy again
        other = copy.copy(self)
        other._bound = bound
        return other

    def binding(self, method: str, call: Any) -> Any:
        """The call, for the key that this works for."""
        return call if self._bound is None else bound_call(method, call, self._bound)

    def ownership(self) -> Ownership:
        """Of the newest map known. Raises StaleEpoch without one; Unavailable if the call under way names an alias that
        has another meaning now."""
        now = self._topology()
        if (meaning := meant.get()) is not None:
            meaning.check(now)
        found = now.map
        if found is None:
            raise StaleEpoch("the shard map is not known yet", version=1, epoch=0)
        if self._owned is None or self._owned.map is not found:
            self._owned = Ownership(found)
            self._covers = not uncovered(r for shard in self._owned.owners for r in self._owned.ranges(shard))
        return self._owned

    def owned_by_one(self) -> Ownership | None:
        """By the newest map known, if there is one and one shard owns everything."""
        if self._topology().map is None:
            return None
        owned = self.ownership()
        return None if owned.only is None else owned

    async def read(
        self,
        method: str,
        make: MakeCall,
        choose: Callable[[Ownership], Sequence[int]],
        fresh: Callable[[int], Freshness],
        timeout: float,
        *,
        partial: bool = False,
        together: Together | None = None,
    ) -> Answers:
        """Ask the shards that `choose` names (they own all that is read) in parallel, and prove coverage. together:
        how several shards of one node are asked at once; None if they are not.

        Retries with a newer map when one is stale. Raises the first error of a shard unless `partial`; then shards that
        failed for a reason that may pass are told in `missing`.
        """
        loop = asyncio.get_running_loop()
        deadline, left = loop.time() + timeout, timeout
        last: StaleEpoch | None = None
        try:
            while True:
                try:
                    owned = self.ownership()
                    shards = choose(owned)
                    if len(shards) == 1 and not partial:
                        [shard] = shards
                        body = await self._ask(owned, shard, method, make, fresh(shard), left)
                        return Answers({shard: body}, {}, [], owned.epoch)
                    return await self._many(owned, shards, method, make, fresh, left, partial, together)
                except StaleEpoch as stale:
                    last = stale
                except DeadlineExceeded:
                    if last is None:
                        raise
                if (left := deadline - loop.time()) <= 0.001:
                    raise no_agreement(timeout, last)
                await self.renew(last, left)
                left = max(0.001, deadline - loop.time())
        finally:
            del last  # it holds this frame

    async def renew(self, stale: StaleEpoch, timeout: float) -> None:
        """Get the newer map that a shard told of."""
        version = told_version(stale)
        before = self._topology().version
        if (await self._refresh(version, timeout)).version <= before:
            await asyncio.sleep(min(timeout, PAUSE_SECONDS))  # the node is behind, not we

    async def _many(
        self,
        owned: Ownership,
        shards: Sequence[int],
        method: str,
        make: MakeCall,
        fresh: Callable[[int], Freshness],
        timeout: float,
        partial: bool,
        together: Together | None,
    ) -> Answers:
        nodes: list[Asked] = []
        if together is not None and not partial and shards:
            # Of a partial read, one shard that is late would keep the answers of its node.
            nodes = self._nodes.together(together.method, shards, self._group, fresh(shards[0]))
        asking: dict[int, Coroutine[Any, Any, Payload | _OfNode]] = {}
        if sum(len(found.shards) for found in nodes) < len(shards):
            with_others = {shard for found in nodes for shard in found.shards}
            for one in shards:
                if one not in with_others:
                    asking[one] = self._ask(owned, one, method, make, fresh(one), timeout)
        for found in nodes:
            asking[found.shards[0]] = self._of_node(owned, found, method, make, fresh, timeout, together)
        told, missing = await gather(asking, partial)
        answered, parts = dict[int, Payload](), list[NodePart]()
        for shard, said in told.items():
            if not isinstance(said, _OfNode):
                answered[shard] = said
                continue
            answered |= said.alone
            parts += [] if said.part is None else [said.part]
        if nodes:
            answered = dict(sorted(answered.items()))
        self._prove(owned, shards, [*answered, *missing, *(shard for part in parts for shard in part.seen)])
        gaps = uncovered([r for s in owned.owners if s not in missing for r in owned.ranges(s)]) if missing else []
        return Answers(answered, missing, gaps, owned.epoch, parts)

    async def _of_node(
        self,
        owned: Ownership,
        found: Asked,
        method: str,
        make: MakeCall,
        fresh: Callable[[int], Freshness],
        timeout: float,
        together: Together | None,
    ) -> _OfNode:
        """Of shards that one node leads, or holds, in one call; who does not answer there is asked alone."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        asked = {shard: fresh(shard) for shard in found.shards}
        if together is None:
            raise ValueError("there is no call for several shards")
        told = await self._nodes.ask(found.groups, found.at, owned, asked, together, timeout, self._bound)
        try:
            if not told.refused:
                return _OfNode(told.part, told.bodies)
            left = max(0.0, deadline - loop.time())
            again = {
                shard: self._ask(owned, shard, method, make, asked[shard], left, Before(why, told.by, timeout - left))
                for shard, why in told.refused.items()
            }
            alone, _ = await gather(again, False)
            return _OfNode(told.part, told.bodies | alone)
        finally:
            del told  # one of its errors may be raised, and hold this frame

    def _prove(self, owned: Ownership, shards: Sequence[int], told: Sequence[int]) -> None:
        """Every shard asked has answered on its ranges, once, or is named as missing; and the map itself has no
        hole."""
        if not self._covers or sorted(told) != sorted(shards):
            raise ProtocolError(f"the map of epoch {owned.epoch} or its answers do not cover the key space")

    async def _ask(
        self,
        owned: Ownership,
        shard: int,
        method: str,
        make: MakeCall,
        fresh: Freshness,
        timeout: float,
        after: Before | None = None,
    ) -> Payload:
        """One shard's answer, computed on exactly the ranges of `owned`. Raises StaleEpoch otherwise. after: if it was
        asked together with others."""
        asking = self.asking(owned, shard, method, make, fresh, timeout, after)
        del after  # its error may be raised, and hold this frame
        return checked(owned, shard, await asking)

    def asking(
        self,
        owned: Ownership,
        shard: int,
        method: str,
        make: MakeCall,
        fresh: Freshness,
        timeout: float,
        after: Before | None = None,
    ) -> Coroutine[Any, Any, Payload]:
        """What one shard answers, for `checked`. The rest as of `_ask`."""

        def body(left: float) -> bytes:
            asked = Freshness(fresh.mode, fresh.min_index, fresh.max_staleness, left)
            return calls.encode(self.binding(method, make(shard, asked, owned.epoch)))

        group = self._group(shard)
        if fresh.mode is _EVENTUAL:
            return self._any.ask(shard, group, method, body, timeout, after)
        if after is None:
            return group.ask_leader(method, body, timeout)
        return group.ask_leader_after(*after, method, body, timeout)

    async def at_pins(
        self,
        method: str,
        make: Callable[[int, int, Freshness], object],
        pins: Sequence[tuple[int, int]],
        timeout: float,
    ) -> dict[int, Payload]:
        """Ask shards for what they keep of one index each, whatever the map is by now: any replica that has applied it
        will do. make: the call, given the shard, the index and how fresh. Raises the first error of a shard; ScanEnded
        for one that was retired, InvalidArgument for one that never was."""
        await self._check_shards([shard for shard, _ in pins])

        async def ask(shard: int, index: int) -> Payload:
            def body(left: float) -> bytes:
                return calls.encode(self.binding(method, make(shard, index, Freshness(_EVENTUAL, index, 0.0, left))))

            data = await self._any.ask(shard, self._group(shard), method, body, timeout)
            return calls.decode(data, ReceivedAnswer).body

        answered, _ = await gather({shard: ask(shard, index) for shard, index in pins}, False)
        return answered

    async def _check_shards(self, named: Sequence[int]) -> None:
        """Of a cursor, which anybody may have made up."""
        now = self._topology()
        if not {*named} <= {info.shard for info in now.shards}:
            now = await self._refresh(now.version + 1, PAUSE_SECONDS)  # one that was added since
        if unknown := {*named} - {info.shard for info in now.shards}:
            raise InvalidArgument(
                f"cursor names shard {min(unknown)}, which this cluster does not have", field="cursor"
            )
        if gone := {*named} & {info.shard for info in now.shards if info.retired}:
            raise ScanEnded(
                f"this consistent scan has ended: shard {min(gone)} was removed. Begin it again; that is safe"
            )

    async def tell_leaders(
        self, method: str, make: Callable[[int, float], object], shards: Sequence[int], timeout: float
    ) -> None:
        """Tell the leaders of shards something that nobody waits for: who is silent, or refuses, is passed over."""
        await self._check_shards(shards)

        async def tell(shard: int) -> None:
            with suppress(NeedleError):
                group = self._group(shard)
                await group.ask_leader(method, lambda left: calls.encode(make(shard, left)), timeout)

        await asyncio.gather(*map(tell, shards))


def checked(owned: Ownership, shard: int, data: Payload) -> Payload:
    """What a shard has answered, if it is computed on exactly its ranges of `owned`. Raises StaleEpoch."""
    answer = calls.decode(data, ReceivedAnswer)
    if answer.epoch != owned.epoch or answer.fingerprint != owned.fingerprint(shard):
        raise StaleEpoch(f"shard {shard} answered for other ranges (epoch {answer.epoch})", epoch=answer.epoch)
    return answer.body
