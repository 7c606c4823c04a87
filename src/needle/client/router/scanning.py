"""Counts by a filter, and a page of a scan: every shard that may have matching documents is asked, for its next ones.

Of a consistent scan the first page has each shard open a pin: from one map, which all of them own what it says by their
logs. So the pins together cover every key once, and the later pages are read at them, whatever the map is by then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from needle.base.errors import ClusterTooOld, InvalidArgument, NeedleError
from needle.base.ids import shard_group
from needle.base.model import ReadMode
from needle.base.parts import Payload
from needle.client.router.by_node import Together
from needle.client.router.fan_out import FanOut
from needle.client.router.merge import GROUPED, merged_facets, merged_pages
from needle.client.router.pruning import matching_shards
from needle.client.router.routes import Routes
from needle.protocol import calls
from needle.protocol.calls import (
    CountAnswer,
    CountCall,
    FacetAnswer,
    FacetCall,
    Freshness,
    ScanAnswer,
    ScanCall,
    ScanPin,
)
from needle.protocol.node_calls import READ_SHARDS, AskedShard, ReadShardsCall
from needle.routing.topology import Ownership, collection_id

END_SECONDS = 1.0
"""For telling shards that a scan has ended: they end it themselves after a while."""

ANY_EPOCH = -1
"""In a call that is about a pin: it is a shard's, and the map by which it was found does not matter."""

Beside = Callable[..., Awaitable[Any]]


async def count_in_shards(
    stored: str,
    filter_json: bytes,
    timeout: float,
    routes: Routes,
    fresh: Callable[[int], Freshness],
) -> int:
    """How many documents match a filter. stored: as below."""

    def together(shards: list[AskedShard], fresh: Freshness, epoch: int) -> ReadShardsCall:
        return ReadShardsCall(shards, fresh, epoch, count=CountCall(0, stored, filter_json, fresh, epoch))

    answers = await routes.fan_out.read(
        calls.COUNT,
        lambda shard, fresh, epoch: CountCall(shard_group(shard), stored, filter_json, fresh, epoch),
        lambda owned: matching_shards(owned, filter_json),
        fresh,
        timeout,
        together=Together(READ_SHARDS, together),
    )
    found = {shard: calls.decode(body, CountAnswer) for shard, body in answers.by_shard.items()}
    for shard, answer in found.items():
        routes.saw(shard, answer.applied_index)
    return sum(answer.count for answer in found.values())


async def facet_in_shards(
    stored: str,
    field: str,
    filter_json: bytes,
    limit: int,
    timeout: float,
    routes: Routes,
    fresh: Callable[[int], Freshness],
) -> FacetAnswer:
    """How many documents that match have each value of a field: of each shard all values are asked for. stored: as
    below."""

    def together(shards: list[AskedShard], fresh: Freshness, epoch: int) -> ReadShardsCall:
        return ReadShardsCall(shards, fresh, epoch, facet=FacetCall(0, stored, field, filter_json, 0, fresh, epoch))

    answers = await routes.fan_out.read(
        calls.FACET,
        lambda shard, fresh, epoch: FacetCall(shard_group(shard), stored, field, filter_json, 0, fresh, epoch),
        lambda owned: matching_shards(owned, filter_json),
        fresh,
        timeout,
        together=Together(READ_SHARDS, together),
    )
    seen, merged = await routes.beside(GROUPED * answers.size(), merged_facets, answers.by_shard, limit)
    for shard, index in seen.items():
        routes.saw(shard, index)
    return merged


async def scan_page(
    asked: ScanCall,
    stored: str,
    timeout: float,
    fan_out: FanOut,
    fresh: Callable[[int], Freshness],
    beside: Beside,
    saw: Callable[[int, int], None],
) -> ScanAnswer:
    """What `asked` asks for, as a caller would: of a collection by the caller's name, whatever its group, freshness and
    epoch. stored: the collection's name inside the shards. beside: runs what takes time by the byte. saw: told of the
    log index at which each shard was read, but for pins, which are of before."""
    here = collection_id(stored) or 0
    if asked.only not in (0, here):
        raise InvalidArgument(
            f"cursor is of a scan of another collection than {asked.collection[:80]!r} is now: it was dropped and "
            "made again, or its alias got another meaning; begin again",
            field="cursor",
        )
    if asked.pin is not None:
        return await _pinned_page(asked, asked.pin, stored, timeout, fan_out, beside)
    answers = await fan_out.read(
        calls.SCAN,
        lambda shard, fresh, epoch: msgspec.structs.replace(
            asked, group=shard_group(shard), collection=stored, freshness=fresh, epoch=epoch, only=0
        ),
        lambda owned: matching_shards(owned, asked.filter),
        fresh,
        timeout,
    )
    page: ScanAnswer
    seen, page = await beside(answers.size(), merged_pages, answers.by_shard, asked.limit, asked.order)
    for shard, index in seen.items():
        saw(shard, index)
    return msgspec.structs.replace(page, collection_id=here)


async def _pinned_page(
    asked: ScanCall, pin: ScanPin, stored: str, timeout: float, fan_out: FanOut, beside: Beside
) -> ScanAnswer:
    inner = msgspec.structs.replace(asked, collection=stored, only=0)

    def at(shard: int, index: int, fresh: Freshness) -> ScanCall:
        one = ScanPin(pin.token, [(shard, index)])
        return msgspec.structs.replace(inner, group=shard_group(shard), freshness=fresh, epoch=ANY_EPOCH, pin=one)

    if pin.ends:
        await _end(inner, pin, fan_out)
        return ScanAnswer(calls.DocumentBatch([], [], [], b"", 0), None)
    if pin.open:
        bodies = await fan_out.at_pins(calls.SCAN, at, pin.open, timeout)
    else:
        bodies = await _opened(inner, pin.token, timeout, fan_out)
    page: ScanAnswer
    _, page = await beside(sum(map(len, bodies.values())), merged_pages, bodies, asked.limit, asked.order)
    found = page.pin
    if found is None or {shard for shard, _ in found.open} != set(bodies):
        raise ClusterTooOld("a node runs a release that knows no consistent scans: upgrade all nodes first")
    if page.reached is None:
        await _end(inner, found, fan_out)
    return msgspec.structs.replace(page, collection_id=collection_id(stored) or 0)


async def _opened(inner: ScanCall, token: int, timeout: float, fan_out: FanOut) -> dict[int, Payload]:
    """The first page of each shard. If one of them opens no pin, nobody reads at those of the others: they end."""

    def choose(owned: Ownership) -> Sequence[int]:
        return matching_shards(owned, inner.filter)

    try:
        answers = await fan_out.read(
            calls.SCAN,
            lambda shard, fresh, epoch: msgspec.structs.replace(
                inner, group=shard_group(shard), freshness=fresh, epoch=epoch
            ),
            choose,
            lambda _: Freshness(ReadMode.STRONG),
            timeout,
        )
    except NeedleError:
        with suppress(NeedleError):
            perhaps = [(shard, calls.ANY_INDEX) for shard in choose(fan_out.ownership())]
            await _end(inner, ScanPin(token, perhaps), fan_out)
        raise
    return answers.by_shard


async def _end(inner: ScanCall, pin: ScanPin, fan_out: FanOut) -> None:
    def end(shard: int, left: float) -> ScanCall:
        one = ScanPin(pin.token, [held for held in pin.open if held[0] == shard], True)
        fresh = Freshness(timeout=left)
        return msgspec.structs.replace(inner, group=shard_group(shard), freshness=fresh, epoch=ANY_EPOCH, pin=one)

    await fan_out.tell_leaders(calls.SCAN, end, [shard for shard, _ in pin.open], END_SECONDS)
