"""Which shard an operator's call is about."""

from __future__ import annotations

from needle.base.errors import InvalidArgument, Unavailable, invalid
from needle.routing.topology import ShardInfo, Topology


def shard_meant(topology: Topology, shard: int | None) -> ShardInfo:
    """The shard of that number, or the only one: a cluster of several has no default.

    Raises InvalidArgument that says which there are, Unavailable while there is none."""
    shards = topology.serving
    if not shards:
        raise Unavailable("this cluster has no shards yet: `needle cluster create` makes them")
    if shard is None and len(shards) == 1:
        return shards[0]
    if shard is None:
        last = shards[-1].shard
        raise InvalidArgument(
            f"which shard is meant? This cluster has {len(shards)}: name one, from 0 to {last}", field="shard"
        )
    found = next((info for info in shards if info.shard == shard), None) if not isinstance(shard, bool) else None
    if found is None:
        raise invalid("shard", shard, f"the number of a shard, from 0 to {shards[-1].shard}")
    return found
