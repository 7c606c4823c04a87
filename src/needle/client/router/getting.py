"""Documents by their ids: asked of the shards that may have them, and put in the order asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from needle.base.ids import shard_group, shard_of_group
from needle.client.router.by_node import Together
from needle.client.router.merge import by_owner, merged_documents
from needle.client.router.routes import Routes
from needle.protocol import calls
from needle.protocol.calls import DocumentBatch, Freshness, GetCall
from needle.protocol.node_calls import READ_SHARDS, AskedShard, ReadShardsCall
from needle.routing.topology import Ownership

TOGETHER_MAX = 100
"""More ids are asked of each shard by itself: what they bring may be too much for one answer."""


async def get_documents(
    routes: Routes,
    collection: str,
    names: list[str],
    with_vectors: bool,
    fresh: Callable[[int], Freshness],
    timeout: float,
    fields: tuple[str, ...] | None,
    named: tuple[str, ...] = (),
) -> DocumentBatch:
    """Those that exist. collection, named: their names inside the shards."""
    asked: dict[int, list[str]] = {}

    def choose(owned: Ownership) -> Sequence[int]:
        asked.clear()
        asked.update({s: [names[at] for at in part] for s, part in holders(owned, names).items()})
        return list(asked)

    def together(shards: list[AskedShard], fresh: Freshness, epoch: int) -> ReadShardsCall:
        one = GetCall(0, collection, [], with_vectors, fresh, epoch, fields, named=named)
        return ReadShardsCall(shards, fresh, epoch, get=one, ids=[asked[shard_of_group(each.group)] for each in shards])

    answers = await routes.fan_out.read(
        calls.GET,
        lambda shard, fresh, epoch: GetCall(
            shard_group(shard), collection, asked[shard], with_vectors, fresh, epoch, fields, named=named
        ),
        choose,
        fresh,
        timeout,
        together=Together(READ_SHARDS, together) if len(names) <= TOGETHER_MAX else None,
    )
    batches, merged = await routes.beside(answers.size(), merged_documents, answers.by_shard, names)
    for shard, batch in batches.items():
        routes.saw(shard, batch.applied_index)
    return merged


def holders(owned: Ownership, names: Sequence[str]) -> dict[int, list[int]]:
    """Where documents with these ids may be: positions of `names` by shard. Under a custom strategy an id does not
    tell, so every shard is asked for every id."""
    shard_map = owned.map
    if shard_map.strategy.kind == "custom":
        return {shard: list(range(len(names))) for shard in owned.owners}
    return dict(by_owner(shard_map.owners_of(names)))
