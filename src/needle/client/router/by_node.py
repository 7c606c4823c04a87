"""Searches of several shards of one node in one call (docs/adr/0096): which shards go together, and what such an answer
says of each.

Invariant: a shard counts as answered only if the node says that it was searched on the very ranges that the map gives
it; who is refused, or not answered for, is asked alone, as if it had failed once. Nodes of a release that has no such
call are asked for each shard, and looked at again after a minute. It must not know what is searched for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from needle.base.errors import NeedleError, ProtocolError, StaleEpoch, UnknownMethod
from needle.base.ids import shard_group
from needle.base.model import ReadMode
from needle.base.parts import Payload
from needle.client.attempts import Unanswered, call_watched
from needle.protocol import calls
from needle.protocol.bounds import bound_call
from needle.protocol.calls import Freshness
from needle.protocol.commands import Bound
from needle.protocol.node_calls import SEARCH_SHARDS, SHARDS_MAX, AskedShard, SearchShardsAnswer
from needle.routing.topology import Ownership

FORMER_SECONDS: Final = 60.0
"""So long a node that has no such call is not asked again."""
MakeTogether = Callable[[list[AskedShard], Freshness, int], Any]
"""The call for several shards, given these, how fresh each must be but for its index, and the epoch of the map."""


class NodePart(msgspec.Struct, frozen=True):
    """What a node has found in several shards. shards: in the order in which they were asked. seen: those that were
    searched, and the log index at which each was. body: encoded NodeHits."""

    shards: list[int]
    seen: dict[int, int]
    body: Payload


class Led(Protocol):
    """A shard, as far as this needs it."""

    def leads_at(self) -> str | None:
        """The address of the leader, if it is known and connected."""
        ...


class NodeCalls:
    """Those of one router."""

    def __init__(self) -> None:
        self._former: dict[str, float] = {}
        """Until when a node is not asked, by address."""

    def of_leaders(self, shards: Sequence[int], group: Callable[[int], Led], mode: ReadMode) -> dict[str, list[int]]:
        """The shards that are to be asked together, by the address of the node that leads them."""
        if mode is ReadMode.EVENTUAL:
            return {}
        if self._former:
            now = asyncio.get_running_loop().time()
            self._former = {address: until for address, until in self._former.items() if until > now}
        led: dict[str, list[int]] = {}
        for shard in shards:
            address = group(shard).leads_at()
            if address is not None and address not in self._former:
                found = led.setdefault(address, [])
                if len(found) < SHARDS_MAX:
                    found.append(shard)
        return {address: found for address, found in led.items() if len(found) > 1}

    async def ask(
        self,
        watches: Sequence[Unanswered],
        address: str,
        owned: Ownership,
        asked: Mapping[int, Freshness],
        make: MakeTogether,
        timeout: float,
        bound: Bound | None,
    ) -> tuple[NodePart | None, dict[int, NeedleError | None]]:
        """What a node has found, and of the shards that did not answer why; None if that says nothing. watches: of each
        shard's leader. asked: shards, and how fresh each must be. Raises StaleEpoch."""
        shards = list(asked)
        one = asked[shards[0]]
        each = [AskedShard(shard_group(shard), fresh.min_index) for shard, fresh in asked.items()]
        call = make(each, Freshness(one.mode, 0, one.max_staleness, timeout), owned.epoch)
        if bound is not None:
            call = bound_call(SEARCH_SHARDS, call, bound)
        try:
            data = await call_watched(watches, address, SEARCH_SHARDS, calls.encode(call), timeout)
            if data is not None:
                return _told(owned, shards, calls.decode(data, SearchShardsAnswer))
            why: NeedleError | None = None  # another leader was elected meanwhile
        except StaleEpoch:
            raise
        except UnknownMethod:
            self._former[address] = asyncio.get_running_loop().time() + FORMER_SECONDS
            why = None
        except NeedleError as error:
            why = error if error.retryable else None  # what is wrong with the call, each shard says better
        return None, dict.fromkeys(shards, why)


def _told(
    owned: Ownership, shards: list[int], answer: SearchShardsAnswer
) -> tuple[NodePart | None, dict[int, NeedleError | None]]:
    if len(answer.shards) != len(shards):
        raise ProtocolError(f"a node was asked for {len(shards)} shards and answers for {len(answer.shards)}")
    seen: dict[int, int] = {}
    refused: dict[int, NeedleError | None] = {}
    for shard, found in zip(shards, answer.shards, strict=True):
        if found.refused is not None:
            refused[shard] = found.refused.error()
        elif answer.epoch != owned.epoch or found.fingerprint != owned.fingerprint(shard):
            raise StaleEpoch(f"shard {shard} answered for other ranges (epoch {answer.epoch})", epoch=answer.epoch)
        else:
            seen[shard] = found.applied_index
    return (NodePart(shards, seen, answer.body) if seen else None), refused
