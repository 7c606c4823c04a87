"""Asking every replica of every shard how it is: what clients and nodes judge a cluster's health from."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

from needle.base.errors import Forbidden, LostState, NeedleError
from needle.base.ids import NodeId, shard_group
from needle.base.model import RaftStatus
from needle.client.directory import Caller
from needle.client.health import ReplicaStatus
from needle.protocol import calls
from needle.protocol.calls import StatusCall
from needle.routing.plans import CATALOG
from needle.routing.topology import Topology


async def ask_replicas(
    caller: Caller,
    topology: Topology,
    timeout: float,
    shards: Collection[int] | None = None,
    *,
    hot: bool = False,
    parts: bool = False,
    for_client: bool = False,
) -> list[ReplicaStatus]:
    """Every replica as its own node sees it, in order of shards; all are asked at once, none for longer than
    `timeout`. shards: only theirs. hot: also which keys are called. parts: also where ids lie, see StatusCall.
    for_client: raises Forbidden if a node says so, for such a node runs; nodes, which prove who they are, go on without
    the answer."""
    asked = [(info.shard, info.replicas) for info in topology.shards if shards is None or info.shard in shards]
    return await _ask(caller, topology, timeout, asked, hot=hot, parts=parts, for_client=for_client)


async def ask_catalog(
    caller: Caller, topology: Topology, timeout: float, *, for_client: bool = True
) -> list[ReplicaStatus]:
    """The same of the catalog's replicas, whose shard is CATALOG."""
    return await _ask(caller, topology, timeout, [(CATALOG, topology.catalog)], for_client=for_client)


async def _ask(
    caller: Caller,
    topology: Topology,
    timeout: float,
    asked: Iterable[tuple[int, Iterable[NodeId]]],
    *,
    hot: bool = False,
    parts: bool = False,
    for_client: bool = False,
) -> list[ReplicaStatus]:
    refused: list[Forbidden] = []

    async def one(shard: int, node: NodeId) -> ReplicaStatus:
        address = topology.address_of(node) or ""
        try:
            body = calls.encode(StatusCall(shard_group(shard), hot=hot, parts=parts))
            status = calls.decode(await caller.call(address, calls.STATUS, body, timeout), RaftStatus)
        except LostState as error:
            lost = error.message
            return ReplicaStatus(shard=shard, node=node, address=address, status=None, error=lost, lost=lost)
        except NeedleError as error:
            if isinstance(error, Forbidden):
                refused.append(error)
            return ReplicaStatus(shard=shard, node=node, address=address, status=None, error=error.message)
        if status.node_id != node:
            told = f"node {status.node_id} answers there: one of them has moved, and the catalog has not heard of it"
            return ReplicaStatus(shard=shard, node=node, address=address, status=None, error=told)
        return ReplicaStatus(shard=shard, node=node, address=address, status=status)

    found = await asyncio.gather(*(one(shard, node) for shard, nodes in asked for node in nodes))
    if for_client and refused:
        raise refused[0]
    return list(found)
