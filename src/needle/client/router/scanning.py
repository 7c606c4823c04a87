"""A page of a scan: every shard that may have matching documents is asked for its next ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from needle.base.errors import InvalidArgument
from needle.base.ids import shard_group
from needle.client.router.fan_out import FanOut
from needle.client.router.merge import merged_pages
from needle.client.router.pruning import matching_shards
from needle.protocol import calls
from needle.protocol.calls import Freshness, ScanAnswer, ScanCall
from needle.routing.topology import collection_id


async def scan_page(
    asked: ScanCall,
    stored: str,
    timeout: float,
    fan_out: FanOut,
    fresh: Callable[[int], Freshness],
    beside: Callable[..., Awaitable[Any]],
) -> ScanAnswer:
    """What `asked` asks for, as a caller would: of a collection by the caller's name, whatever its group, freshness and
    epoch. stored: the collection's name inside the shards. beside: runs what takes time by the byte."""
    here = collection_id(stored) or 0
    if asked.only not in (0, here):
        raise InvalidArgument(
            f"cursor is of a scan of another collection than {asked.collection[:80]!r} is now: it was dropped and "
            "made again, or its alias got another meaning; begin anew",
            field="cursor",
        )
    answers = await fan_out.read(
        calls.SCAN,
        lambda shard, fresh, epoch: msgspec.structs.replace(
            asked, group=shard_group(shard), collection=stored, freshness=fresh, epoch=epoch, only=0
        ),
        lambda owned: matching_shards(owned, asked.filter),
        fresh,
        timeout,
    )
    page: ScanAnswer = await beside(answers.size(), merged_pages, answers.by_shard, asked.limit)
    return msgspec.structs.replace(page, collection_id=here)
