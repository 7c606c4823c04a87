"""One read of many shards: who is asked, how long, and whether the answers cover what was asked for.

Invariant (coverage): an answer is used only if it names the map's epoch and the very ranges that the map gives its
shard; the ranges of the shards that answered cover the key space, or the result says which do not. So a search never
has a silent gap and never counts a range twice: the ranges of one map do not overlap.
Any replica will do for eventual reads (hedging.py). It must not know what is read.
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
    Overloaded,
    ProtocolError,
    ScanEnded,
    StaleEpoch,
    TooManyRequests,
    TooStale,
    in_seconds,
    told_version,
)
from needle.base.model import ReadMode, WriteResult
from needle.base.parts import Payload
from needle.client.attempts import Unanswered
from needle.client.meaning import meant
from needle.client.router.by_node import MakeTogether, NodeCalls, NodePart
from needle.client.router.gathering import gather
from needle.client.router.hedging import Hedging, Replicas
from needle.client.waiting import waited_for
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


class ShardGroup(Replicas, Protocol):
    """One shard's Raft group, as `client.shards` reaches it."""

    async def write(self, make: Callable[[Session], Command], timeout: float) -> WriteResult: ...
    async def ask_leader(self, method: str, make_body: Callable[[float], bytes], timeout: float) -> Payload: ...
    async def ask_leader_after(
        self, error: NeedleError | None, address: str, method: str, make_body: Callable[[float], bytes], timeout: float
    ) -> Payload: ...
    def leads_at(self) -> str | None: ...
    @property
    def unanswered(self) -> Unanswered: ...
    def replicas(self) -> list[str]:
        """Addresses, the one to ask first at the front."""
        ...


class FanOutStats:
    """What the fan-outs of a router did, for metrics. on_search: told of every search that was answered: how many
    shards it asked, and the seconds that making one answer of theirs took."""

    __slots__ = ("fanout", "merge_seconds", "on_search", "searches")

    def __init__(self) -> None:
        self.fanout = self.searches = 0
        self.merge_seconds = 0.0
        self.on_search: Callable[[int, float], None] | None = None

    def searched(self, shards: int, merge_seconds: float) -> None:
        """One search was answered."""
        self.searches += 1
        self.fanout += shards
        self.merge_seconds += merge_seconds
        if self.on_search is not None:
            self.on_search(shards, merge_seconds)


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
        return sum(map(len, self.by_shard.values())) + sum(len(part.body) for part in self.parts)


class _OfNode(msgspec.Struct, frozen=True):
    """What shards that were asked together have answered: together, or alone in the end; and why others did not."""

    part: NodePart | None
    alone: dict[int, Payload]
    missing: dict[int, NeedleError]


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
        self._hedging = Hedging()
        self._nodes = NodeCalls()
        self.latencies = self._hedging.latencies
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

    async def read(
        self,
        method: str,
        make: MakeCall,
        choose: Callable[[Ownership], Sequence[int]],
        fresh: Callable[[int], Freshness],
        timeout: float,
        *,
        partial: bool = False,
        together: MakeTogether | None = None,
    ) -> Answers:
        """Ask the shards that `choose` names (they own all that is read) in parallel, and prove coverage. together:
        makes the call by which several shards of one node are asked at once; None if there is none.

        Retries with a newer map when one is stale. Raises the first error of a shard unless `partial`; then shards that
        failed for a reason that may pass are told in `missing`.
        """
        loop = asyncio.get_running_loop()
        deadline, left = loop.time() + timeout, timeout
        last: StaleEpoch | None = None
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
                raise DeadlineExceeded(f"no agreement on the shard map within {in_seconds(timeout)}: {last.message}")
            await self.renew(last, left)
            left = max(0.001, deadline - loop.time())

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
        together: MakeTogether | None,
    ) -> Answers:
        # One shard that is late would keep the answers of its node from a partial search.
        nodes = (
            {} if together is None or partial else self._nodes.of_leaders(shards, self._group, fresh(shards[0]).mode)
        )
        with_others = {shard for found in nodes.values() for shard in found}
        alone = {s: self._ask(owned, s, method, make, fresh(s), timeout) for s in shards if s not in with_others}
        asking: dict[int, Coroutine[Any, Any, Payload | _OfNode]] = {**alone}
        for address, found in nodes.items():
            ask = (method, make, fresh, timeout, partial, together)
            asking[found[0]] = self._of_node(owned, address, found, *ask)
        told, missing = await gather(asking, partial)
        answered, parts = dict[int, Payload](), list[NodePart]()
        for shard, one in told.items():
            if not isinstance(one, _OfNode):
                answered[shard] = one
                continue
            answered |= one.alone
            missing |= one.missing
            parts += [] if one.part is None else [one.part]
        if nodes:
            answered, missing = dict(sorted(answered.items())), dict(sorted(missing.items()))
        self._prove(owned, shards, [*answered, *missing, *(shard for part in parts for shard in part.seen)])
        gaps = uncovered([r for s in owned.owners if s not in missing for r in owned.ranges(s)]) if missing else []
        return Answers(answered, missing, gaps, owned.epoch, parts)

    async def _of_node(
        self,
        owned: Ownership,
        address: str,
        shards: Sequence[int],
        method: str,
        make: MakeCall,
        fresh: Callable[[int], Freshness],
        timeout: float,
        partial: bool,
        together: MakeTogether | None,
    ) -> _OfNode:
        """Of shards that one node leads, in one call; who does not answer there is asked alone."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        asked = {shard: fresh(shard) for shard in shards}
        watches = [self._group(shard).unanswered for shard in shards]
        if together is None:
            raise ValueError("there is no call for several shards")
        part, refused = await self._nodes.ask(watches, address, owned, asked, together, timeout, self._bound)
        if not refused:
            return _OfNode(part, {}, {})
        left = deadline - loop.time()
        again = {
            shard: self._ask(owned, shard, method, make, asked[shard], left, (why, address))
            for shard, why in refused.items()
        }
        alone, missing = await gather(again, partial)
        return _OfNode(part, alone, missing)

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
        after: tuple[NeedleError | None, str] | None = None,
    ) -> Payload:
        """One shard's answer, computed on exactly the ranges of `owned`. Raises StaleEpoch otherwise. after: why the
        node at an address, which was asked for several shards, has not answered for this one."""

        def body(left: float) -> bytes:
            asked = Freshness(fresh.mode, fresh.min_index, fresh.max_staleness, left)
            return calls.encode(self.binding(method, make(shard, asked, owned.epoch)))

        group = self._group(shard)
        if fresh.mode is _EVENTUAL:
            data = await self._ask_any(shard, group, method, body, timeout)
        elif after is None:
            data = await group.ask_leader(method, body, timeout)
        else:
            data = await group.ask_leader_after(*after, method, body, timeout)
        answer = calls.decode(data, ReceivedAnswer)
        if answer.epoch != owned.epoch or answer.fingerprint != owned.fingerprint(shard):
            raise StaleEpoch(f"shard {shard} answered for other ranges (epoch {answer.epoch})", epoch=answer.epoch)
        return answer.body

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

            data = await self._ask_any(shard, self._group(shard), method, body, timeout)
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

    # --- any replica -------------------------------------------------------------------------------------------------
    async def _ask_any(
        self, shard: int, group: ShardGroup, method: str, body: Callable[[float], bytes], timeout: float
    ) -> Payload:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        failures: dict[str, NeedleError] = {}
        while (left := deadline - loop.time()) > 0:
            answer = await self._hedging.ask(group, group.replicas(), method, body, left, failures)
            if answer is not None:
                return answer
            if failures and all(isinstance(error, TooManyRequests) for error in failures.values()):
                left = max(0.0, deadline - loop.time())
                await asyncio.sleep(min(waited_for(error, left) for error in failures.values()))  # type: ignore[arg-type]
                continue
            # Nodes may have moved since this topology: a newer one tells where to.
            await self._refresh(self._topology().version + 1, min(max(0.0, deadline - loop.time()), PAUSE_SECONDS))
        told = "; ".join(f"{address}: {error.message}" for address, error in sorted(failures.items()))
        if stale := [error for error in failures.values() if isinstance(error, TooStale)]:
            why = f"no replica of shard {shard} is fresh enough after {in_seconds(timeout)} ({told})"
            raise TooStale(why, **stale[0].details)
        if failures and all(isinstance(error, Overloaded) for error in failures.values()):
            raise next(iter(failures.values()))  # by its name: it was like this until the end
        raise DeadlineExceeded(
            f"no replica of shard {shard} answered within {in_seconds(timeout)} ({told or 'none reached'})"
        )
