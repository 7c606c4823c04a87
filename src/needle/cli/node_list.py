"""`needle node list`: every node, what it holds, and what is wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rich.text import Text

import needle
from needle.base.errors import DeadlineExceeded, LostState, NeedleError, NoQuorum
from needle.base.ids import NodeId
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, as_json, console, notes, print_json, run, table
from needle.client.client import Client
from needle.client.health import lost_nodes
from needle.routing.replication import taking
from needle.routing.topology import NodeInfo, NodeState, Topology

STATUS_TIMEOUT = 2.0


def list_(cluster: Cluster = DEFAULT_CLUSTER, json: Json = False) -> None:
    """List the nodes, also those that joined and hold nothing yet."""

    async def work(client: needle.Client) -> tuple[Topology, dict[NodeId, str], dict[NodeId, int]]:
        now = await _known(client)
        return now, *await conditions_of(client, now)

    now, conditions, knows = run(cluster, work)
    held = {info.id: [shard.shard for shard in now.hosted_by(info.id)] for info in now.nodes}
    if json:
        print_json(
            [
                {
                    **as_json(info),
                    "condition": conditions[info.id],
                    "shards": held[info.id],
                    "catalog": info.id in now.catalog,
                    "version": knows[info.id],
                    "cluster_version": now.cluster_version,
                }
                for info in now.nodes
            ]
        )
        return
    rows = table("node", "address", "zone", "weight", "version", "state", "catalog", "shards")
    for info in now.nodes:
        shards = ", ".join(map(str, held[info.id])) or "none"
        catalog = "yes" if info.id in now.catalog else ""
        wrong = conditions[info.id]
        at_rest = f"{info.state}, maintenance" if info.maintenance else str(info.state)
        state = Text(wrong, style="bold red") if wrong else at_rest
        rows.add_row(info.id, info.address, info.zone, f"{info.weight:g}", str(knows[info.id]), state, catalog, shards)
    console.print(rows)
    console.print(f"the cluster is at version {now.cluster_version} of commands and formats", soft_wrap=True)
    if idle := usable_without_shards(now):
        notes.print(without_shards(now, idle), markup=False, soft_wrap=True)


async def _known(client: Client) -> Topology:
    """What the catalog confirms; without a leader of it, when who is down is the question, what a node knows."""
    try:
        return await client.refresh_topology(confirmed=True, timeout=STATUS_TIMEOUT)
    except (NoQuorum, DeadlineExceeded) as error:
        now = client.topology()
        if not now.nodes:
            raise
        notes.print(f"note: as the nodes that answer knew it last: {error.message}", markup=False, soft_wrap=True)
        return now


def usable_without_shards(now: Topology) -> list[NodeId]:
    """The nodes that hold no shard and would get some; not those that are to be emptied, or have weight 0."""
    return [node for node in taking(now) if not now.hosted_by(node)]


def without_shards(now: Topology, idle: Sequence[NodeId]) -> str:
    """That these nodes hold no shard, and what helps. Where all shards are on the same nodes, what a rebalance brings
    may be nothing."""
    note = f"note: no shard is on {', '.join(idle)}: `needle rebalance` brings "
    if len({frozenset(info.wanted) for info in now.serving}) > 1:
        return note + "replicas there"
    return f"{note}what evens nodes out, which may be nothing; `needle node add {idle[0]} --everywhere` every shard"


async def conditions_of(client: Client, now: Topology) -> tuple[dict[NodeId, str], dict[NodeId, int]]:
    """What is wrong with each node by its own word and by that of others: "Lost", "unreachable", or "" for nothing; and
    the version of commands and formats up to which each can read them, as it says now or said last."""

    async def ask(info: NodeInfo) -> tuple[str, int]:
        if info.state is NodeState.REMOVED:
            return "", info.knows
        try:
            who = await client.describe_node(info.address, timeout=STATUS_TIMEOUT)
        except LostState:
            return "Lost", info.knows
        except NeedleError:
            return "unreachable", info.knows
        return "Lost" if who.lost else "", who.knows

    replicas, found = await asyncio.gather(
        client.cluster_status(timeout=STATUS_TIMEOUT), asyncio.gather(*map(ask, now.nodes))
    )
    lost = lost_nodes(replicas)
    ids = [info.id for info in now.nodes]
    wrong = {id_: "Lost" if id_ in lost else told for id_, (told, _) in zip(ids, found, strict=True)}
    return wrong, {id_: knows for id_, (_, knows) in zip(ids, found, strict=True)}
