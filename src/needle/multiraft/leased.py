"""What leased reads of several groups have to see, in one look: a call for many shards asks it of all of them.

Invariant: that of `Host.leased_index`, of each group by itself. It must not know what is read.
"""

from __future__ import annotations

from collections.abc import Iterable

from needle.base.ids import GroupId
from needle.multiraft.engine import Engine

Leased = tuple[int, int]
"""The index that a leased read which begins now has to see, and the last one that is applied here."""


def leased_indices(engine: Engine, groups: Iterable[GroupId]) -> dict[GroupId, Leased]:
    """Of the groups that this node leads within their leases. Of the others, one look at each says why not."""
    found: dict[GroupId, Leased] = {}
    if engine.stopped:
        return found
    now, replicas = engine.clock.monotonic(), engine.groups
    for group in groups:
        replica = replicas.get(group)
        if replica is None or replica.lost:
            continue
        index = replica.raft.read_lease(now)
        if index is not None:
            found[group] = index, replica.raft.applied
    return found
