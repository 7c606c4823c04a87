"""Whether a cluster can do without a node, by the word of those that lead its groups.

What follows from their answers is pure. It must not know what becomes of the node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

from needle.base.errors import NeedleError
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name, shard_group
from needle.base.model import RaftStatus
from needle.client.shards import ClusterShards
from needle.routing.topology import Topology

LAG_MAX = 100
"""Entries that a replica may lack and still count as having the log."""


async def leaders_say(
    shards: ClusterShards, groups: Sequence[GroupId], seconds: float
) -> dict[GroupId, RaftStatus | None]:
    """What the leader of each of these groups says; None where none does in time."""

    async def one(group: GroupId) -> RaftStatus | None:
        try:
            found = await shards.group(group - 1).leaders_status(seconds)
        except NeedleError:
            return None
        return found if found.state == "Leader" else None

    return dict(zip(groups, await asyncio.gather(*map(one, groups)), strict=True))


# --- what follows from what is so; pure ------------------------------------------------------------------------------
def held_by(now: Topology, nodes: Collection[NodeId]) -> list[GroupId]:
    """The groups of which one of these nodes holds a replica."""
    groups = (CATALOG_GROUP, *(shard_group(info.shard) for info in now.serving))
    found = [(group, now.holders(group)) for group in groups]
    return [group for group, held in found if held is not None and set(held.all) & set(nodes)]


def able(status: RaftStatus) -> set[NodeId]:
    """The voters that answer the leader and have the log, the leader with them."""
    return set(status.voters) - _unable(status).keys()


def _unable(status: RaftStatus) -> dict[NodeId, str]:
    """The voters of which that is not so, and why."""
    found = dict.fromkeys(status.voters, "is not known to its leader")
    found.pop(status.node_id, None)
    for peer in status.peers:
        if peer.id in status.refused:
            found[peer.id] = f"is refused: {status.refused[peer.id]}"
        elif not peer.recently_active:
            found[peer.id] = "does not answer"
        elif peer.state == "snapshot":
            found[peer.id] = "fetches a snapshot"
        elif peer.lag_entries > LAG_MAX:
            found[peer.id] = f"is {peer.lag_entries} entries behind"
        else:  # also one in the state "probe", as who comes back to an idle group is: it takes the log all the same
            found.pop(peer.id, None)
    return {node: why for node, why in found.items() if node in status.voters}


def why_not(node: NodeId, groups: Mapping[GroupId, RaftStatus | None], now: Topology) -> str:
    """Why a node must not stop: a group that would have no majority without it; "" for nothing. groups: what their
    leaders say, those of this node at least."""
    for group, status in groups.items():
        held = now.holders(group)
        if held is None or node not in held.all:
            continue
        name = group_name(group)
        if status is None:
            return f"{name} has no leader that answers"
        if node not in status.voters:
            continue
        if status.voters == [node]:
            return f"{name} is on {node} alone"
        unable = {other: why for other, why in _unable(status).items() if other != node}
        if 2 * (len(status.voters) - 1 - len(unable)) <= len(status.voters):
            others = "; ".join(f"{other} {why}" for other, why in sorted(unable.items()))
            only = f": {others}" if others else f", for it has only {len(status.voters)} voters"
            return f"without it {name} has no majority{only}"
    return ""


def costs(node: NodeId, groups: Mapping[GroupId, RaftStatus | None], now: Topology) -> list[str]:
    """What it would cost if this node led nothing any more and were stopped for work on it, in words: groups that
    nobody could lead, or that would have no majority because others do not answer or are behind. What can never be
    otherwise, because a group has only one or two replicas, is not told. groups: as of `why_not`."""
    found, resting = [], {info.id for info in now.nodes if info.maintenance}
    for group, status in groups.items():
        name = group_name(group)
        if status is None:
            found.append(f"{name} has no leader that answers")
            continue
        if node not in status.voters or status.voters == [node]:
            continue
        lacking = {other: why for other, why in sorted(_unable(status).items()) if other != node}
        able = set(status.voters) - lacking.keys() - {node}
        others = "; ".join(f"{other} {why}" for other, why in lacking.items())
        if not able - resting:
            rest = "; ".join(f"{other} is in maintenance" for other in sorted(able))
            found.append(f"nobody could lead {name}: {'; '.join(filter(None, (others, rest)))}")
        elif lacking and 2 * len(able) <= len(status.voters):
            found.append(f"once it is stopped, {name} has no majority: {others}")
    return found
