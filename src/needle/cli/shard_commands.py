"""`needle cluster`: making one out of running nodes, its nodes, and who holds what."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer
from rich.text import Text

import needle
from needle.base.config import parse_node, refuse
from needle.base.errors import LostState, NeedleError
from needle.base.ids import NodeId
from needle.base.model import Metric
from needle.cli.common import (
    DEFAULT_CLUSTER,
    Cluster,
    Json,
    Timeout,
    as_json,
    console,
    notes,
    print_json,
    run,
    table,
)
from needle.cli.status import Look, look, status_json
from needle.client.client import Client
from needle.client.health import lost_nodes
from needle.connecting import DEFAULT_CLUSTER_ID
from needle.routing.strategy import parse_strategy
from needle.routing.topology import NodeInfo, NodeState, Topology
from needle.server.catalog.founding import uneven
from needle.server.cluster_api import ClusterConfig, DistributedCluster

STATUS_TIMEOUT = 2.0


def create(
    nodes: Annotated[
        list[str],
        typer.Argument(metavar="NODE...", help="Running nodes, name=host:port, in the order shards are placed."),
    ],
    shards: Annotated[int, typer.Option("--shards", help="How many parts the documents are spread over.")] = 4,
    replicas: Annotated[int, typer.Option("--replicas", help="Copies of each shard, each on its own node.")] = 3,
    strategy: Annotated[
        str, typer.Option("--strategy", help="consistent_hash, hash, range, custom:FIELD[,FIELD], or router:NAME.")
    ] = "consistent_hash",
    virtual_nodes: Annotated[
        int, typer.Option("--virtual-nodes", help="Points of each shard on the ring of consistent_hash.")
    ] = 100,
    boundary: Annotated[
        list[str] | None,
        typer.Option("--boundary", help="With range sharding: first id of each shard except shard 0. Repeat in order."),
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option("--dimensions", help="Create the collection 'default' with vectors of this length.")
    ] = None,
    metric: Annotated[
        str, typer.Option("--metric", help="Metric of the default collection: cosine, l2 or dot.")
    ] = Metric.COSINE,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait until every shard has a leader.")] = 60.0,
    json: Json = False,
) -> None:
    """Make a cluster out of running nodes that were started without `cluster_nodes`. May be repeated after an error."""
    config = ClusterConfig(
        shard_count=shards,
        replication_factor=replicas,
        virtual_nodes_per_shard=virtual_nodes,
        strategy=parse_strategy("--strategy", strategy),
        boundaries=tuple(boundary or ()),
        dimensions=dimensions,
        metric=metric,
        cluster_id=os.environ.get("NEEDLE_CLUSTER_ID", DEFAULT_CLUSTER_ID),
    )
    parsed = [parse_node(node, "NODE") for node in nodes]

    async def work() -> Look:
        cluster = DistributedCluster(config)
        try:
            for name, address in parsed:
                await cluster.add_node(name, address)
            await cluster.start(timeout)
            return await look(await cluster.client(), [])
        finally:
            await cluster.stop()

    seen = asyncio.run(work())
    if json:
        print_json(status_json(seen))
        return
    health = seen.health
    names = ",".join(address for _, address in parsed[:3])
    led = sum(shard.leader is not None for shard in health.shards.values())
    made = f"{shards} shards on {len(parsed)} nodes, {led} with a leader; export NEEDLE_CLUSTER={names}"
    notes.print(made, markup=False, soft_wrap=True)
    unevenly = uneven(config.settings, config.boundaries)
    for warning in [*health.warnings, *([unevenly] if unevenly else [])]:
        notes.print(f"note: {warning}", markup=False)


def replicas(
    shard: Annotated[str, typer.Argument(metavar="SHARD", help="The shard's number, or 'catalog'.")],
    nodes: Annotated[
        list[str], typer.Argument(metavar="NODE...", help="All nodes that hold it from now on, preferred leader first.")
    ],
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait until they hold it.")] = 600.0,
    json: Json = False,
) -> None:
    """Put a shard's replicas, or the catalog's, on these nodes, while it serves; wait until they are there.

    A node that is new to it fetches the data first; then it takes the place of one that is not named any more. May be
    repeated after an error, and the cluster goes on without who waits.
    """
    if shard != "catalog" and not (shard.isascii() and shard.isdecimal()):
        raise refuse("SHARD", shard, "the number of a shard, or catalog")

    async def work(client: needle.Client) -> None:
        if shard == "catalog":
            await client.set_catalog_nodes(nodes, timeout=timeout)
        else:
            await client.set_replicas(int(shard), nodes, timeout=timeout)

    run(cluster, work)
    if json:
        print_json({"shard": shard, "nodes": nodes})
    else:
        name = "the catalog" if shard == "catalog" else f"shard {shard}"
        notes.print(f"{name} is on {', '.join(nodes)}", markup=False)


def remove(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node's id, as in `needle cluster nodes`.")],
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
) -> None:
    """Forget a node that holds nothing any more. Its id is never used again."""

    async def work(client: needle.Client) -> None:
        await client.remove_node(node, timeout=timeout)

    run(cluster, work)
    notes.print(f"{node} is no longer a node of this cluster; stop it and delete its data directory", markup=False)


def nodes(cluster: Cluster = DEFAULT_CLUSTER, json: Json = False) -> None:
    """List the nodes, also those that joined and hold nothing yet."""

    async def work(client: needle.Client) -> tuple[Topology, dict[NodeId, str]]:
        now = await client.refresh_topology(confirmed=True, timeout=STATUS_TIMEOUT)
        return now, await conditions_of(client, now)

    now, conditions = run(cluster, work)
    held = {info.id: [shard.shard for shard in now.hosted_by(info.id)] for info in now.nodes}
    if json:
        print_json(
            [
                {
                    **as_json(info),
                    "condition": conditions[info.id],
                    "shards": held[info.id],
                    "catalog": info.id in now.catalog,
                }
                for info in now.nodes
            ]
        )
        return
    rows = table("node", "address", "zone", "weight", "state", "catalog", "shards")
    for info in now.nodes:
        shards = ", ".join(map(str, held[info.id])) or "none"
        catalog = "yes" if info.id in now.catalog else ""
        wrong = conditions[info.id]
        state = Text(wrong, style="bold red") if wrong else str(info.state)
        rows.add_row(info.id, info.address, info.zone, f"{info.weight:g}", state, catalog, shards)
    console.print(rows)
    idle = [info.id for info in now.nodes if not held[info.id] and info.state is not NodeState.REMOVED]
    if idle:
        notes.print(
            f"note: no shard is on {', '.join(idle)}: shards are placed when the cluster is made; "
            "`needle cluster rebalance` brings replicas to nodes that came later",
            markup=False,
            soft_wrap=True,
        )


async def conditions_of(client: Client, now: Topology) -> dict[NodeId, str]:
    """What is wrong with each node by its own word and by that of others: "Lost", "unreachable", or "" for nothing."""

    async def ask(info: NodeInfo) -> str:
        if info.state is NodeState.REMOVED:
            return ""
        try:
            return "Lost" if (await client.describe_node(info.address, timeout=STATUS_TIMEOUT)).lost else ""
        except LostState:
            return "Lost"
        except NeedleError:
            return "unreachable"

    replicas, found = await asyncio.gather(
        client.cluster_status(timeout=STATUS_TIMEOUT), asyncio.gather(*map(ask, now.nodes))
    )
    lost = lost_nodes(replicas)
    return {info.id: "Lost" if info.id in lost else wrong for info, wrong in zip(now.nodes, found, strict=True)}
