"""Reads of several shards of one node in one call (docs/adr/0096, 0123): which shards go together, and what such an
answer says of each.

Invariant: a shard counts as answered only if the node says that it was read on the very ranges that the map gives it;
who is refused, or not answered for, is asked alone, as if it had failed once. Nodes of a release that has no such call
are asked for each shard, and looked at again after a minute. It must not know what is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, islice
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from needle.base.errors import NeedleError, ProtocolError, StaleEpoch, UnknownMethod
from needle.base.ids import shard_group
from needle.base.model import ReadMode
from needle.base.parts import Payload
from needle.client.attempts import Unanswered, WatchedTogether
from needle.client.router.hedging import Hedging, Replicas
from needle.protocol import calls
from needle.protocol.bounds import bound_call
from needle.protocol.calls import Freshness
from needle.protocol.commands import Bound
from needle.protocol.node_calls import (
    READ_SHARDS,
    SHARDS_MAX,
    AskedShard,
    ReadShard,
    ReadShardsAnswer,
    SearchedShard,
    SearchShardsAnswer,
)
from needle.routing.topology import Ownership

FORMER_SECONDS: Final = 60.0
"""So long a node that has no such call is not asked again."""
Refusals = dict[int, NeedleError | None]
"""By shard, why it did not answer; None if that is not known."""


class Together(NamedTuple):
    """How several shards are asked at once. method: `search_shards` or `read_shards`. make: its call, given these, how
    fresh each must be but for its index, and the epoch of the map."""

    method: str
    make: Callable[[list[AskedShard], Freshness, int], Any]


class NodePart(msgspec.Struct, frozen=True):
    """What a node has found in several shards. shards: in the order in which they were asked. seen: those that were
    searched, and the log index at which each was. body: encoded NodeHits."""

    shards: list[int]
    seen: dict[int, int]
    body: Payload


class Asked(NamedTuple):
    """Shards that go together. at: the address of the node that leads them; of an eventual read those of all nodes that
    hold all of them, the one to ask first at the front. groups: of the shards, in their order."""

    at: list[str]
    shards: list[int]
    groups: list[Led]


class Told(NamedTuple):
    """What a node has answered. part: of a search. bodies: of other reads, by shard. refused: who did not answer. by:
    the node's address."""

    part: NodePart | None
    bodies: dict[int, Payload]
    refused: Refusals
    by: str


class Before(NamedTuple):
    """That a shard was asked together with others, and has not answered. error: why; None if that is not known. at: the
    node's address. spent: seconds that this took, of the caller's time."""

    error: NeedleError | None
    at: str
    spent: float


class Led(Replicas, Protocol):
    """A shard, as far as this needs it."""

    def leads_at(self) -> str | None:
        """The address of the leader, if it is known and connected."""
        ...

    def holders(self) -> list[str]:
        """The addresses of its replicas."""
        ...

    def replicas(self) -> list[str]:
        """The same, the one to ask first at the front: each call is a turn."""
        ...

    @property
    def unanswered(self) -> Unanswered: ...


class NodeCalls:
    """Those of one router."""

    def __init__(self) -> None:
        self._former: dict[tuple[str, str], float] = {}
        """Until when a node is not asked, by method and address."""
        self._hedging = Hedging()
        """Of calls for several shards, which take longer than those for one."""
        self._waiting = WatchedTogether()

    def together(
        self, method: str, shards: Sequence[int], group: Callable[[int], Led], fresh: Freshness
    ) -> list[Asked]:
        """Which of the shards are to be asked together, and whom. fresh: how fresh they must be but for the index."""
        if fresh.max_staleness:
            return []  # each replica asks its leader, and one that is late would hold up the others
        former = self._former_ones(method)
        of = _of_replicas if fresh.mode is ReadMode.EVENTUAL else _of_leaders
        return [asked for asked in of(shards, group, former) if len(asked.shards) > 1]

    def _former_ones(self, method: str) -> set[str]:
        if not self._former:
            return set()
        now = asyncio.get_running_loop().time()
        self._former = {one: until for one, until in self._former.items() if until > now}
        return {address for of, address in self._former if of == method}

    def note_former(self, method: str, address: str) -> None:
        """The node has no such call."""
        self._former[method, address] = asyncio.get_running_loop().time() + FORMER_SECONDS

    async def ask(
        self,
        groups: Sequence[Led],
        at: Sequence[str],
        owned: Ownership,
        asked: Mapping[int, Freshness],
        together: Together,
        timeout: float,
        bound: Bound | None,
    ) -> Told:
        """What a node says of shards. groups: theirs. at: as of `Asked`. asked: shards, and how fresh each must be.
        Raises StaleEpoch."""
        shards, method, by = list(asked), together.method, at[0]
        one, failures = asked[shards[0]], dict[str, NeedleError]()
        why: NeedleError | None = None
        each = [AskedShard(shard_group(shard), fresh.min_index) for shard, fresh in asked.items()]

        def body(left: float) -> bytes:
            call = together.make(each, Freshness(one.mode, 0, one.max_staleness, left), owned.epoch)
            return calls.encode(call if bound is None else bound_call(method, call, bound))

        try:
            if one.mode is ReadMode.EVENTUAL:
                holders = _Holders(self, groups)
                data = await self._hedging.ask(holders, [*at], method, body, timeout, failures)
                by, why = next(reversed(failures.items()), (by, None)) if data is None else (holders.answered, None)
                if isinstance(why, UnknownMethod):  # it says nothing of a shard that is asked alone
                    why = None
            else:
                watches = [group.unanswered for group in groups]
                data, why = await self._waiting.call(watches, by, method, body(timeout), timeout), None
            if data is not None:
                return _told(owned, shards, method, data, by)
        except StaleEpoch:
            raise
        except UnknownMethod:
            self.note_former(method, by)
            why = None
        except NeedleError as error:
            why = error if error.retryable else None  # what is wrong with the call, each shard says better
        try:
            return Told(None, {}, dict.fromkeys(shards, why), by)
        finally:
            failures.clear()
            del why  # its traceback holds this frame


class _Holders:
    """The nodes that hold several shards, as `Hedging` asks them. answered: which was the first to."""

    def __init__(self, nodes: NodeCalls, groups: Sequence[Led]) -> None:
        self._nodes = nodes
        self._groups = groups
        self._lack: set[str] = set()
        self.answered = ""

    async def ask_replica(self, address: str, method: str, body: bytes, timeout: float) -> Payload:
        try:
            data = await self._groups[0].ask_replica(address, method, body, timeout)
        except UnknownMethod:
            self._nodes.note_former(method, address)
            self._lack.add(address)
            raise
        self.answered = self.answered or address
        return data

    def suspect(self, address: str) -> None:
        if address not in self._lack:
            for group in self._groups:
                group.suspect(address)


def _of_leaders(shards: Sequence[int], group: Callable[[int], Led], former: set[str]) -> list[Asked]:
    led: dict[str, Asked] = {}
    for shard in shards:
        one = group(shard)
        address = one.leads_at()
        if address is None or address in former:
            continue
        found = led.get(address)
        if found is None:
            found = led[address] = Asked([address], [], [])
        if len(found.shards) < SHARDS_MAX:
            found.shards.append(shard)
            found.groups.append(one)
    return [*led.values()]


def _of_replicas(shards: Sequence[int], group: Callable[[int], Led], former: set[str]) -> list[Asked]:
    """Calls of shards that two nodes hold at the least, both of a release that has the call, unless they have one
    replica each: whoever is late must not be the only one who can be asked. The first shard's turn is that of all; a
    shard that is asked alone has its own."""
    held: dict[int, list[str]] = {}
    pairs: dict[int, list[tuple[str, ...]]] = {}
    of_pair: dict[tuple[str, ...], dict[int, None]] = {}
    for shard in shards:
        at = group(shard).holders()
        held[shard] = able = [one for one in at if one not in former]
        pairs[shard] = [*combinations(sorted(able), min(2, len(at)))] if able else []
        for pair in pairs[shard]:
            of_pair.setdefault(pair, {})[shard] = None
    found: list[Asked] = []
    for first, mine in pairs.items():
        most = max((of_pair[pair] for pair in mine), key=len) if mine else {}
        if first not in most or len(most) < 2:  # who goes with an earlier one is in none by now
            continue
        together = [*islice(most, SHARDS_MAX)]
        for shard in together:
            for pair in pairs[shard]:
                del of_pair[pair][shard]
        of_all = set(held[first]).intersection(*(held[shard] for shard in together))
        at = [one for one in group(first).replicas() if one in of_all]
        found.append(Asked(at, together, [group(shard) for shard in together]))
    return found


def _told(owned: Ownership, shards: list[int], method: str, data: Payload, by: str) -> Told:
    if method == READ_SHARDS:
        return _read(owned, shards, calls.decode(data, ReadShardsAnswer), by)
    answer = calls.decode(data, SearchShardsAnswer)
    _check(owned, shards, answer)
    seen = dict(zip(shards, [found.applied_index for found in answer.shards], strict=True))
    refused: Refusals = {}
    for shard, found in zip(shards, answer.shards, strict=True):
        if found.refused is not None:
            refused[shard] = found.refused.error()
            del seen[shard]
    return Told(NodePart(shards, seen, answer.body) if seen else None, {}, refused, by)


def _read(owned: Ownership, shards: list[int], answer: ReadShardsAnswer, by: str) -> Told:
    _check(owned, shards, answer)
    refused: Refusals = {}
    bodies: dict[int, Payload] = {}
    for shard, found in zip(shards, answer.shards, strict=True):
        if found.body is None or found.refused is not None:
            refused[shard] = None if found.refused is None else found.refused.error()
        else:
            bodies[shard] = found.body
    return Told(None, bodies, refused, by)


def _check(owned: Ownership, shards: list[int], answer: ReadShardsAnswer | SearchShardsAnswer) -> None:
    """Whether each shard that has answered did so on the very ranges of the map. Raises ProtocolError, StaleEpoch."""
    each: Sequence[ReadShard | SearchedShard] = answer.shards
    if len(each) != len(shards):
        raise ProtocolError(f"a node was asked for {len(shards)} shards and answers for {len(each)}")
    if answer.epoch == owned.epoch and [one.fingerprint for one in each] == owned.fingerprints(shards):
        return
    for shard, found in zip(shards, each, strict=True):
        if found.refused is not None or (isinstance(found, ReadShard) and found.body is None):
            continue
        if answer.epoch != owned.epoch or found.fingerprint != owned.fingerprint(shard):
            raise StaleEpoch(f"shard {shard} answered for other ranges (epoch {answer.epoch})", epoch=answer.epoch)
