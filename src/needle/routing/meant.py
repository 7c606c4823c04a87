"""Which shard an operator's call is about."""

from __future__ import annotations

from needle.base.errors import InvalidArgument, Unavailable, invalid
from needle.routing.topology import ShardInfo, Topology

HOW_MADE = "start a majority of its cluster_nodes, or make it with `needle cluster create`"
"""What to do where nodes belong to no cluster yet: only who started them knows which of the two it is."""


def not_made() -> Unavailable:
    """For calls that need a shard where there is none yet."""
    return Unavailable(f"this cluster has no shards yet: {HOW_MADE}")


def shard_meant(topology: Topology, shard: int | str | None) -> ShardInfo:
    """The shard of that number, or the only one: a cluster of several has no default.

    Raises InvalidArgument that says which there are, Unavailable while there is none."""
    shards = topology.serving
    if not shards:
        raise not_made()
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
