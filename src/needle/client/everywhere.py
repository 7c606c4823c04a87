"""Clusters of which every node holds every shard: a node more that holds all of it, and one less that holds nothing.

All of it is decided first, by one command of the catalog for each shard; then the cluster goes on with it without who
asked, and the call waits. Invariant: it may be repeated, whatever was done of it already; the order of a shard's
replicas stays, for the first one is its preferred leader. It must not know how replicas move.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from needle.base.errors import InvalidArgument, NeedleError, invalid
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name, shard_group
from needle.client.replacing import with_size
from needle.protocol.catalog_commands import AssignReplicas, CatalogCommand, SetReplication
from needle.routing.jobs import check_over
from needle.routing.planned_moves import MoveReplicas
from needle.routing.plans import REPLICAS_MAX, Plan, Wish
from needle.routing.replication import taking
from needle.routing.stats import RebalanceStats
from needle.routing.topology import Holders, NodeState, Topology

ASK_SECONDS = 5.0


class Operator(Protocol):
    """What is used of a client."""

    async def refresh_topology(self, *, confirmed: bool, timeout: float) -> Topology: ...
    async def describe_node(self, node: str, *, timeout: float) -> Any: ...
    async def plan_rebalance(self, wish: Wish, /) -> Plan: ...
    async def get_stats(self, *, timeout: float) -> RebalanceStats: ...
    async def change_catalog(self, command: CatalogCommand, *, timeout: float) -> Any: ...
    async def set_replicas(self, shard: int, nodes: Iterable[NodeId], *, timeout: float) -> None: ...
    async def set_catalog_nodes(self, nodes: Iterable[NodeId], *, timeout: float) -> None: ...


async def joining(client: Operator, node: NodeId) -> list[AssignReplicas]:
    """What to decide so that `node` holds the catalog and every shard, beside those that do. Raises InvalidArgument."""
    now = await client.refresh_topology(confirmed=True, timeout=ASK_SECONDS)
    _check_known(now, node)
    if len({frozenset(info.wanted) - {node} for info in now.serving}) > 1:  # some may have it already
        raise InvalidArgument(
            "the shards of this cluster are on different nodes each: `needle shard replicas` says which hold one"
        )
    return [
        AssignReplicas(group, list(held), [*held, *([] if node in held else [node])])
        for group, held in _holders(now).items()
    ]


async def leaving(client: Operator, node: NodeId) -> list[AssignReplicas]:
    """What to decide so that `node`, dead or alive, holds nothing: what other nodes can take goes to them, and of the
    rest there is one replica less. Raises InvalidArgument, also if nobody else holds the data, or a rebalance is under
    way."""
    now = await client.refresh_topology(confirmed=True, timeout=ASK_SECONDS)
    _check_known(now, node)
    check_over(now.rebalance)  # what it moves would be taken for what no other node can take
    plan = await client.plan_rebalance(await without(client, node))
    moves = [move for move in plan.moves if isinstance(move, MoveReplicas)]
    taken = {move.group: move.after for move in moves if node not in move.after}
    return _without_node(now, node, taken, await _silent(client, now))


async def without(client: Operator, node: NodeId) -> Wish:
    """That a node holds nothing: of one that does not answer, others get the replicas."""
    if await _answers(client, node):
        return Wish(drain=(node,), balance=False)
    return Wish(lost=(node,), balance=False)


async def _silent(client: Operator, now: Topology) -> set[NodeId]:
    """The nodes that do not answer."""
    nodes = list(now.addresses())
    answers = await asyncio.gather(*(_answers(client, node) for node in nodes))
    return {node for node, answering in zip(nodes, answers, strict=True) if not answering}


async def _answers(client: Operator, node: NodeId) -> bool:
    try:
        await client.describe_node(node, timeout=ASK_SECONDS)
    except NeedleError:
        return False
    return True


def _check_known(now: Topology, node: NodeId) -> None:
    known = now.node(node)
    if known is None or known.state is NodeState.REMOVED:
        raise invalid("node", node, f"a node of this cluster: {', '.join(now.addresses())}")


def _without_node(
    now: Topology, node: NodeId, taken: Mapping[GroupId, Sequence[NodeId]], silent: Collection[NodeId]
) -> list[AssignReplicas]:
    """taken: who is to hold what `node` holds and other nodes can take. silent: who does not answer."""
    found, holders = [], _holders(now)
    for group, held in holders.items():
        rest = _rest(now.holders(group), node, silent)
        if node in held and group in taken:
            rest = list(taken[group])
        elif node in held and group == CATALOG_GROUP:  # it may be on fewer nodes than the shards are
            spare = {one: None for others in holders.values() for one in others if one not in held}
            rest += sorted(spare, key=lambda one: one in silent)[: len(held) - len(rest)]
            if len(rest) > 2 and len(rest) % 2 == 0:  # see catalog_nodes
                rest.remove(max(reversed(rest), key=lambda one: one in silent))
        if not rest:
            raise InvalidArgument(f"{node} is the only node that holds the data of {group_name(group)}")
        found.append(AssignReplicas(group, list(held), rest))
    return found


def _rest(held: Holders | None, node: NodeId, silent: Collection[NodeId]) -> list[NodeId]:
    """Who holds a group without a node that may have it not yet: who is only giving it up keeps it in its place."""
    assert held is not None
    back = [one for one in held.leaving if one != node and one not in silent][:1]
    return [kept for one in held.wanted for kept in (back if one == node else [one])]


def _holders(now: Topology) -> dict[GroupId, tuple[NodeId, ...]]:
    """Which nodes hold the catalog and each shard, by the catalog's last word."""
    groups = [CATALOG_GROUP, *(shard_group(info.shard) for info in now.serving)]
    return {group: held.wanted for group in groups if (held := now.holders(group)) is not None}


async def sized(client: Operator, decisions: Sequence[AssignReplicas]) -> list[MoveReplicas]:
    """What decisions would have move, by the sizes of now."""
    stats = await client.get_stats(timeout=ASK_SECONDS)
    moves = [
        MoveReplicas(group=one.group, before=tuple(one.before), after=tuple(one.after), documents=0, bytes=0)
        for one in decisions
        if one.before != one.after
    ]
    return [with_size(move, stats) for move in moves]


async def raise_factor(client: Operator, decisions: Sequence[AssignReplicas]) -> None:
    """Where an operator has said how many replicas there are to be, a later plan would take the new ones back."""
    now = await client.refresh_topology(confirmed=True, timeout=ASK_SECONDS)
    count = min((len(one.after) for one in decisions if one.group != CATALOG_GROUP), default=0)
    count = min(count, len(taking(now)))  # others, as one that is to be emptied, keep what they have
    if now.replicas and now.replicas < count <= REPLICAS_MAX:
        await client.change_catalog(SetReplication(count), timeout=ASK_SECONDS)


async def carry_out(client: Operator, decisions: Sequence[AssignReplicas], timeout: float) -> list[int]:
    """Decide all of it, then wait for one after the other. The shards that it was about."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout

    def left() -> float:
        return max(1.0, deadline - loop.time())

    for one in decisions:
        if one.before != one.after:
            await client.change_catalog(one, timeout=left())
    for one in decisions:
        if one.group == CATALOG_GROUP:
            await client.set_catalog_nodes(one.after, timeout=left())
        else:
            await client.set_replicas(one.group - 1, one.after, timeout=left())
    return sorted(one.group - 1 for one in decisions if one.group != CATALOG_GROUP)
