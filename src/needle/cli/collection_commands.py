"""`needle collections`: list, create, drop."""

from __future__ import annotations

from typing import Annotated

import typer

import needle
from needle.base.errors import InvalidArgument
from needle.base.model import CollectionSpec, IndexParams, Metric
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, console, notes, print_json, run, table

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the collection.")]


def collections(context: typer.Context, cluster: Cluster = DEFAULT_CLUSTER, json: Json = False) -> None:
    """List the collections, create or drop one."""
    if context.invoked_subcommand is not None:
        return

    async def work(client: needle.Client) -> list[CollectionSpec]:
        return list(await client.collections())

    specs = run(cluster, work)
    if json:
        print_json(specs)
        return
    rows = table("collection", "dimensions", "metric", "index")
    for spec in specs:
        index = f"HNSW m={spec.index.m} ef_construction={spec.index.ef_construction} ef_search={spec.index.ef_search}"
        rows.add_row(spec.name, str(spec.dimensions), str(spec.metric), index)
    console.print(rows)


def create(
    name: Name,
    dimensions: Annotated[int, typer.Option("--dimensions", min=1, help="Length of the vectors.")],
    metric: Annotated[Metric, typer.Option("--metric", help="How distance is measured.")] = Metric.COSINE,
    m: Annotated[int, typer.Option("--m", help="HNSW: links of a vector.")] = 16,
    ef_construction: Annotated[int, typer.Option("--ef-construction", help="HNSW: effort of building.")] = 100,
    ef_search: Annotated[int, typer.Option("--ef-search", help="HNSW: effort of a search.")] = 64,
    cluster: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Create an empty collection."""
    index = IndexParams(m=m, ef_construction=ef_construction, ef_search=ef_search)

    async def work(client: needle.Client) -> None:
        await client.create_collection(name, dimensions=dimensions, metric=metric, index=index)

    run(cluster, work)
    notes.print(f"created {name}", markup=False)


def drop(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    cluster: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Delete a collection and every document in it."""
    if not yes and not typer.confirm(f"Delete collection {name} and all its documents?", err=True):
        raise InvalidArgument("nothing was dropped")

    async def work(client: needle.Client) -> None:
        await client.drop_collection(name)

    run(cluster, work)
    notes.print(f"dropped {name}", markup=False)
