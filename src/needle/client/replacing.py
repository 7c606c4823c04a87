"""A node in the place of another one: all that the old one holds goes to the new one, then the old one is forgotten.

Decided all at once, in the catalog; whoever leads a shard carries it out, so it goes on without who asked for it. The
old node may be dead. Invariant: it may be repeated, whatever was done of it already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from needle.base.errors import InvalidArgument, Unavailable, invalid
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name, shard_group
from needle.client import values
from needle.client.assigning import assign
from needle.client.rebalancing import check_idle, stats_of
from needle.client.shards import OverShards
from needle.client.values import Seconds
from needle.protocol.catalog_commands import AssignReplicas, RemoveNode, WeighNode, ZoneNode
from needle.routing.planned_moves import MoveReplicas, size_in_words
from needle.routing.stats import RebalanceStats
from needle.routing.topology import NodeState, Topology


class ReplaceMethods(OverShards):
    """A part of `Client`."""

    async def weigh_node(self, node: NodeId, weight: float | None, *, timeout: Seconds = 10.0) -> None:
        """Have a node's share of replicas be `weight` beside that of others, 0 for none, whatever its own setting says;
        None: its setting counts again. Nothing moves until the next rebalance."""
        if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float)):
            raise invalid("weight", weight, "a number from 0 to 1000, or None")
        command = WeighNode(values.check_id(node, "node"), None if weight is None else float(weight))
        await self._shards.command(command, values.check_timeout(timeout))

    async def zone_node(self, node: NodeId, zone: str | None, *, timeout: Seconds = 10.0) -> None:
        """Have a node be in this zone, its failure domain, whatever its own setting says; None: its setting counts
        again. Nothing moves until the next rebalance."""
        if zone is not None and not isinstance(zone, str):
            raise invalid("zone", zone, "text, or None")
        command = ZoneNode(values.check_id(node, "node"), zone)
        await self._shards.command(command, values.check_timeout(timeout))

    async def plan_replacement(self, old: NodeId, new: NodeId, *, timeout: Seconds = 10.0) -> list[MoveReplicas]:
        """What `replace_node` would move. Nothing does. Raises what it would raise."""
        seconds = values.check_timeout(timeout)
        now = await self._shards.confirmed(seconds)
        moves = _moves(now, values.check_id(old, "old"), values.check_id(new, "new"))
        if not moves:
            return []
        await check_idle(self._shards, seconds)
        stats = await stats_of(self._caller, self._shards, seconds)
        load = stats.nodes.get(new)  # it may have been removed meanwhile
        if load is None or not load.alive:
            raise Unavailable(f"{new} does not answer", node=new)
        sized = [with_size(move, stats) for move in moves]
        total = sum(move.bytes for move in sized)
        if load.free is not None and total > load.free:
            has = size_in_words(load.free)
            raise Unavailable(f"{new} has room for {has}, and {old} holds {size_in_words(total)}", node=new)
        return sized

    async def replace_node(
        self,
        old: NodeId,
        new: NodeId,
        *,
        told: Callable[[str], None] | None = None,
        timeout: Seconds = 3600.0,
    ) -> None:
        """Have `new`, which has joined, hold all that `old` holds, dead or alive, and the cluster forget `old`. Returns
        when that is so. told: called with what has happened, for people.

        Raises InvalidArgument for nodes that are not there, if `new` holds a part of it already, if another node is
        taking the place of `old`, or did, and `new` holds nothing, or if `new` is in a zone with another replica and
        `old` was not; Unavailable without room on the disk of `new`, or if it does not
        answer; DeadlineExceeded when it takes longer: the cluster goes on with the moves, and the same call goes on
        waiting, and has it forget `old` in the end.
        """
        seconds, loop = values.check_timeout(timeout), asyncio.get_running_loop()
        deadline = loop.time() + seconds

        def left() -> float:
            return max(1.0, deadline - loop.time())

        moves = await self.plan_replacement(old, new, timeout=min(seconds, 10.0))
        for move in moves:
            command = AssignReplicas(move.group, list(move.before), list(move.after))
            await self._shards.command(command, left())
        now = await self._shards.confirmed(left())
        gone = now.node(old)
        if told is not None and gone is not None and gone.state is NodeState.REMOVED:
            told(f"{old} was removed from this cluster before; nothing was changed")
        for group in _groups(now):
            held = now.holders(group)
            if held is None or not (old in held.leaving or any(move.group == group for move in moves)):
                continue
            await assign(self._shards, group, held.wanted, left())
            if told is not None:
                told(f"{group_name(group)} is on {', '.join(held.wanted)}")
        known = (await self._shards.confirmed(left())).node(old)
        if known is not None and known.state is not NodeState.REMOVED:
            await self._shards.command(RemoveNode(old), left())


def with_size(move: MoveReplicas, stats: RebalanceStats) -> MoveReplicas:
    """The same move, with what it copies for each node that gets a replica."""
    size, count = stats.shard_sizes.get(move.group - 1), len(move.added)
    if size is None:
        return move
    return msgspec.structs.replace(move, documents=count * size.documents, bytes=count * size.bytes)


def _groups(now: Topology) -> list[GroupId]:
    return [CATALOG_GROUP, *(shard_group(info.shard) for info in now.serving)]


def _moves(now: Topology, old: NodeId, new: NodeId) -> list[MoveReplicas]:
    """What is left to decide. Raises InvalidArgument for what cannot be."""
    gone, comes = now.node(old), now.node(new)
    known = ", ".join(now.addresses())
    if gone is None:
        raise invalid("old", old, f"a node of this cluster: {known}")
    if comes is None or comes.state is NodeState.REMOVED or old == new:
        raise invalid("new", new, f"another node of this cluster, which has joined: {known}")
    if comes.state is NodeState.DRAINING:
        raise InvalidArgument(f"{new} is to be emptied: `needle node drain --undo` first", field="new")
    if gone.state is NodeState.REMOVED and not now.hosted_by(new) and new not in now.catalog:
        raise InvalidArgument(
            f"{old} was removed from this cluster before, and not for {new}, which holds nothing: "
            f"`needle node add {new}` brings it its share",
            field="old",
        )
    zones = {info.id: info.zone for info in now.nodes}
    moves = []
    for group in _groups(now):
        held = now.holders(group)
        if held is not None and old in held.leaving and new not in held.wanted:
            raise InvalidArgument(
                f"{group_name(group)} is on its way from {old} to {', '.join(held.wanted)} already, by another "
                "command; repeat this one when that is done, for what is left",
                field="new",
            )
        if held is None or old not in held.wanted:
            continue
        if new in held.all:
            raise InvalidArgument(
                f"{new} holds {group_name(group)} already, as {old} does: `needle node remove {old}` has other nodes "
                "take its place",
                field="new",
            )
        rest = [node for node in held.wanted if node != old]
        shared = [node for node in rest if comes.zone and zones[node] == comes.zone]
        if shared and not any(zones[node] == zones[old] for node in rest):
            raise InvalidArgument(
                f"{new} is in zone {comes.zone!r}, where {shared[0]} holds {group_name(group)} already", field="new"
            )
        after = tuple(new if node == old else node for node in held.wanted)
        moves.append(
            MoveReplicas(
                group=group, before=held.wanted, after=after, documents=0, bytes=0, why=f"{new} replaces {old}"
            )
        )
    return moves
