"""`needle collections add-vector` and `drop-vector`: the named vectors that documents may have; `add-sparse` and
`drop-sparse`: the fields of theirs that are sparse vectors."""

from __future__ import annotations

from typing import Annotated

import typer

import needle
from needle.base.dtypes import DType
from needle.base.errors import InvalidArgument
from needle.base.model import INDEX_WORDS, Metric, VectorSpec, metrics_of
from needle.cli.collection_commands import Name
from needle.cli.common import DEFAULT_CLUSTER, Cluster, notes, run
from needle.client.values import check_index

Field = Annotated[str, typer.Argument(metavar="FIELD", help="Field of metadata.")]
Vector = Annotated[str, typer.Argument(metavar="VECTOR", help="Name of the vector.")]


def add_vector(
    name: Name,
    vector: Vector,
    dimensions: Annotated[int, typer.Option("--dimensions", min=1, help="Length of these vectors.")],
    metric: Annotated[
        Metric | None,
        typer.Option("--metric", help="How distance is measured: cosine if none is named, hamming for bits."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--index", metavar="KIND[:PRESET]", help=f"Of these vectors: {INDEX_WORDS}. (hnsw)")
    ] = None,
    dtype: Annotated[DType, typer.Option("--dtype", help="As which numbers these vectors are kept.")] = DType.FLOAT32,
    cluster: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Let documents have a further vector, of this name. Those that are there get it when they are updated."""
    spec = VectorSpec(
        dimensions=dimensions, metric=metric or metrics_of(dtype)[0], index=check_index(kind), dtype=dtype
    )

    async def work(client: needle.Client) -> None:
        await client.add_vector(name, vector, spec)

    run(cluster, work)
    notes.print(f"documents of {name} may have a vector {vector} now", markup=False)


def drop_vector(
    name: Name,
    vector: Vector,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    cluster: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Take a named vector from all documents of a collection; all else of them stays."""
    if not yes and not typer.confirm(f"Take vector {vector} from all documents of {name}?", err=True):
        raise InvalidArgument("nothing was dropped")

    async def work(client: needle.Client) -> None:
        await client.drop_vector(name, vector)

    run(cluster, work)
    notes.print(f"dropped {vector} of {name}", markup=False)


def add_sparse(name: Name, field: Field, cluster: Cluster = DEFAULT_CLUSTER) -> None:
    """Find documents of a collection by the sparse vectors in a field of their metadata."""

    async def work(client: needle.Client) -> None:
        await client.add_sparse(name, field)

    run(cluster, work)
    notes.print(f"documents of {name} are found by the sparse vectors in {field} now", markup=False)


def drop_sparse(name: Name, field: Field, cluster: Cluster = DEFAULT_CLUSTER) -> None:
    """Find no documents by the sparse vectors in a field any more; the field stays."""

    async def work(client: needle.Client) -> None:
        await client.drop_sparse(name, field)

    run(cluster, work)
    notes.print(f"{field} of {name} is a field as any other now", markup=False)
