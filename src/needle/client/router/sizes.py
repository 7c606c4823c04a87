"""What every shard holds of each collection: counts, and sizes if they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from needle.base.collection_sizes import CollectionSize
from needle.base.ids import shard_group
from needle.client.document_calls import Held
from needle.client.router.fan_out import FanOut
from needle.protocol import calls
from needle.protocol.calls import CollectionsAnswer, CollectionsCall, Freshness
from needle.routing.topology import CollectionInfo, Topology

HeldByShards = dict[str, dict[int, Held]]
Only = CollectionInfo | None


async def held_by_shards(
    fan_out: FanOut,
    topology: Callable[[], Topology],
    fresh: Callable[[int], Freshness],
    timeout: float,
    *,
    sizes: bool,
    only: Only = None,
) -> HeldByShards:
    """By name or alias of the collection, then by shard. only: of this collection."""
    stored = only.stored_name if only is not None else ""
    answers = await fan_out.read(
        calls.COLLECTIONS,
        lambda shard, fresh, epoch: CollectionsCall(shard_group(shard), fresh, epoch, sizes, stored),
        lambda owned: owned.owners,
        fresh,
        timeout,
    )
    now = topology()
    known = {info.stored_name: info.spec.name for info in (now.collections if only is None else (only,))}
    found: dict[str, dict[int, Held]] = {name: {} for name in known.values()}
    for shard, body in answers.by_shard.items():
        answer = calls.decode(body, CollectionsAnswer)
        told: Sequence[CollectionSize | None] = answer.sizes or [None] * len(answer.counts)
        for spec, count, size in zip(answer.collections, answer.counts, told, strict=True):
            if spec.name in known:
                found[known[spec.name]][shard] = Held(count, size)
    return found | {alias.name: found[alias.collection] for alias in now.aliases if alias.collection in found}
