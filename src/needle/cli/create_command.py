"""`needle cluster create`: making a cluster out of running nodes."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated

import typer

from needle.base.config import parse_node
from needle.base.model import INDEX_WORDS, Metric
from needle.base.sharding_config import SHARDS, VIRTUAL_NODES
from needle.cli.common import Json, notes, print_json
from needle.cli.status import Look, look, status_json
from needle.connecting import DEFAULT_CLUSTER_ID
from needle.routing.strategy import parse_strategy

if TYPE_CHECKING:
    from needle.server.cluster_api import ClusterConfig

Boundaries = Annotated[
    list[str] | None,
    typer.Option("--boundary", help="With range sharding: first id of each shard except shard 0. Repeat in order."),
]
Index = Annotated[
    str | None,
    typer.Option("--index", metavar="KIND[:PRESET]", help=f"Of the default collection: {INDEX_WORDS}. (hnsw)"),
]


def create(
    nodes: Annotated[
        list[str],
        typer.Argument(metavar="NODE", help="Running nodes, name=host:port, in the order shards are placed."),
    ],
    shards: Annotated[int, typer.Option("--shards", help="How many parts the documents are spread over.")] = SHARDS,
    replicas: Annotated[
        int | None,
        typer.Option("--replicas", help="Copies of each shard, each on its own node. (3, or as many as nodes)"),
    ] = None,
    strategy: Annotated[
        str, typer.Option("--strategy", help="consistent_hash, hash, range, custom:FIELD[,FIELD], or router:NAME.")
    ] = "consistent_hash",
    virtual_nodes: Annotated[
        int, typer.Option("--virtual-nodes", help="Points of each shard on the ring of consistent_hash.")
    ] = VIRTUAL_NODES,
    boundary: Boundaries = None,
    dimensions: Annotated[
        int | None, typer.Option("--dimensions", help="Create the collection 'default' with vectors of this length.")
    ] = None,
    metric: Annotated[
        str, typer.Option("--metric", help="Metric of the default collection: cosine, l2 or dot.")
    ] = Metric.COSINE,
    index: Index = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait until every shard has a leader.")] = 60.0,
    json: Json = False,
) -> None:
    """Make a cluster out of running nodes that were started without `cluster_nodes`. May be repeated after an error."""
    from needle.server.cluster_api import ClusterConfig, DistributedCluster  # half a second, for this command alone

    config = ClusterConfig(
        shard_count=shards,
        replication_factor=replicas,
        virtual_nodes_per_shard=virtual_nodes,
        strategy=parse_strategy("--strategy", strategy),
        boundaries=tuple(boundary or ()),
        dimensions=dimensions,
        metric=metric,
        index=index,
        cluster_id=os.environ.get("NEEDLE_CLUSTER_ID", DEFAULT_CLUSTER_ID),
        cluster_secret=os.environ.get("NEEDLE_CLUSTER_SECRET", ""),  # there are no keys yet
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
    _tell(seen, config, [address for _, address in parsed])


def _tell(seen: Look, config: ClusterConfig, addresses: list[str]) -> None:
    """What was made, and what to know of it."""
    from needle.server.catalog.founding import uneven

    health = seen.health
    names = ",".join(addresses[:3])
    led = sum(shard.leader is not None for shard in health.shards.values())
    count = "1 shard" if config.shard_count == 1 else f"{config.shard_count} shards"
    made = f"{count} on {len(addresses)} nodes, {led} with a leader; export NEEDLE_CLUSTER={names}"
    notes.print(made, markup=False, soft_wrap=True)
    unevenly = uneven(config.settings_with(1), config.boundaries)
    for warning in [*health.warnings, *([unevenly] if unevenly else [])]:
        notes.print(f"note: {warning}", markup=False)
