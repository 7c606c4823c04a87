"""`needle collections`: list, create, drop, describe, alter, index, unindex; `needle alias`: list, set, remove."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

import needle
from needle.base.collection_sizes import CollectionSize, IndexProgress
from needle.base.dtypes import DType
from needle.base.errors import InvalidArgument, NeedleError
from needle.base.model import INDEX_WORDS, CollectionSpec, IndexParams, Metric, VectorSpec
from needle.base.text import LANGUAGES
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, console, notes, print_json, run, table
from needle.client import CollectionDescription
from needle.client.values import check_index

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the collection.")]


def collections(context: typer.Context, cluster: Cluster = DEFAULT_CLUSTER, json: Json = False) -> None:
    """List the collections with how many documents they hold and their sizes; create or drop one."""
    if context.invoked_subcommand is not None:
        return

    async def work(client: needle.Client) -> list[CollectionDescription] | list[CollectionSpec]:
        try:
            return await client.describe_collections()
        except NeedleError as error:
            if not error.retryable:
                raise
            notes.print(f"documents and sizes are not known now: {error.message}", markup=False)
            return await client.collections()

    found = run(cluster, work)
    if json:
        print_json(found)
        return
    rows = table("collection", "dimensions", "metric", "documents", "data", "index files", "field indexes", "index")
    for one in found:
        counts = ["?", *_sizes(None)]
        if isinstance(one, CollectionDescription):
            counts = [str(one.documents), *_sizes(one.size)]
        rows.add_row(one.name, str(one.dimensions), str(one.metric), *counts, _in_words(one.index))
    console.print(rows)


def _sizes(size: CollectionSize | None) -> list[str]:
    """Of data, index files and field indexes; ? if a shard did not say."""
    if size is None:
        return ["?", "?", "?"]
    return [_bytes(size.document_bytes + size.vector_bytes), _bytes(size.index_bytes), _bytes(size.field_index_bytes)]


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _in_words(index: IndexParams) -> str:
    return f"{index.built} ef_search={index.ef_search}"


def _of_files(index: IndexParams, found: IndexProgress) -> list[tuple[str, str]]:
    """What is to be said of files that are not of the index that the collection is to have, and of the last switch."""
    rows = []
    if set(found.now) - {index.built} or found.wanted:
        percent = 100 * found.done // max(1, found.vectors)
        rows.append(("index now", f"{', '.join(found.now)}; {percent} % of {found.vectors} vectors are built again"))
    if found.recall_after is not None and found.recall_before is not None:
        by = f"by {found.queries} queries at the last change, {found.recall_before:.3f} before it"
        rows.append(("recall", f"{found.recall_after:.3f} ({by})"))
    return rows


Sparse = Annotated[
    list[str] | None,
    typer.Option("--sparse", metavar="FIELD", help="A field that is a sparse vector; may be given several times."),
]


Like = Annotated[
    str | None,
    typer.Option(
        "--like", metavar="OTHER", help="A collection or alias whose settings it gets where none is named here."
    ),
]


def create(
    name: Name,
    dimensions: Annotated[
        int | None,
        typer.Option("--dimensions", min=1, help="Length of the vectors; to be named without --like and --model."),
    ] = None,
    metric: Annotated[
        Metric | None,
        typer.Option("--metric", help="How distance is measured: cosine if none is named, hamming for bits."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--index", metavar="KIND[:PRESET]", help=f"Of its vectors: {INDEX_WORDS}. (hnsw)")
    ] = None,
    m: Annotated[int | None, typer.Option("--m", help="Links of a vector in a graph (16).")] = None,
    ef_construction: Annotated[
        int | None, typer.Option("--ef-construction", help="Effort of building a graph (100).")
    ] = None,
    ef_search: Annotated[int | None, typer.Option("--ef-search", help="Effort of a search (64).")] = None,
    ttl: Annotated[
        float | None,
        typer.Option("--ttl", help="Seconds after its last write at which a document is deleted; with --like 0: none."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="Whose vectors of texts it holds, as wordllama; with --like '': none."
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="FIELD", help="By which text `--keywords` finds; with --like '': none."),
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", help=f"Of --text (english): {', '.join(LANGUAGES)}.")
    ] = None,
    dtype: Annotated[DType | None, typer.Option("--dtype", help="As which numbers vectors are kept (float32).")] = None,
    sparse: Sparse = None,
    like: Like = None,
    cluster: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Create an empty collection."""
    if dimensions is None and like is None and not model:
        raise typer.BadParameter("give --dimensions, a --model, or a collection to be --like")
    said = {"m": m, "ef_construction": ef_construction, "ef_search": ef_search}
    given = {name: value for name, value in said.items() if value is not None}

    async def work(client: needle.Client) -> None:
        index = await _index(client, kind, given, like)
        field = _text(text, language)
        await client.create_collection(
            name, dimensions=dimensions, metric=metric, index=index, ttl=ttl, model=model, dtype=dtype, text=field,
            sparse=sparse, like=like,
        )  # fmt: skip

    run(cluster, work)
    notes.print(f"created {name}", markup=False)


async def _index(
    client: needle.Client, kind: str | None, given: dict[str, int], like: str | None
) -> IndexParams | None:
    """Of a new collection; None: as usual, or as that of the other."""
    base = check_index(kind)
    if like is not None and kind is None and given:
        base = (await client.describe_collection(like)).index
    return msgspec.structs.replace(base, **given) if given or kind else None


def _text(field: str | None, language: str | None) -> dict[str, str] | str | None:
    if language is not None and not field:
        raise typer.BadParameter("--language is that of a --text")
    return {"field": field, "language": language} if field and language else field


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


def describe(name: Name, cluster: Cluster = DEFAULT_CLUSTER, json: Json = False) -> None:
    """Show what a collection is like, how many documents it holds, how large it is, and its aliases."""

    async def work(client: needle.Client) -> CollectionDescription:
        return await client.describe_collection(name)

    found = run(cluster, work)
    if json:
        print_json(found)
        return
    rows = table("", "")
    for label, text in (
        ("name", found.name),
        ("aliases", ", ".join(found.aliases) or "none"),
        ("dimensions", str(found.dimensions)),
        ("metric", str(found.metric)),
        ("dtype", str(found.dtype)),
        ("index", _in_words(found.index)),
        *(_of_files(found.index, found.size.index) if found.size is not None else ()),
        ("model", found.model or "none"),
        ("text", "none" if found.text is None else f"{found.text.field} ({found.text.language})"),
        ("ttl", "none" if found.ttl is None else f"{found.ttl:g} s"),
        ("documents", str(found.documents)),
        *(
            (f"of these in shard {shard}", f"{count} ({_in_all(found.sizes.get(shard))})")
            for shard, count in sorted(found.shards.items())
        ),
        ("sizes", _in_all(found.size)),
        *((f"vector {vector}", _vector_in_words(one)) for vector, one in sorted(found.vectors.items())),
        *((f"sparse vector {field}", f"{one.state}, {_bytes(one.bytes)}") for field, one in found.sparse.items()),
        *((f"index of {path}", f"{one.state}, {_bytes(one.bytes)}") for path, one in sorted(found.fields.items())),
    ):
        rows.add_row(label, text)
    console.print(rows)


def _vector_in_words(one: VectorSpec) -> str:
    return f"{one.dimensions} dimensions, {one.metric}, {one.dtype}, {_in_words(one.index)}"


def _in_all(size: CollectionSize | None) -> str:
    data, files, fields = _sizes(size)
    return f"data {data}, index files {files}, field indexes {fields}"


def alter(
    name: Name,
    ef_search: Annotated[int | None, typer.Option("--ef-search", min=1, help="Effort of a search.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--index",
            metavar="KIND[:PRESET]",
            help=f"{INDEX_WORDS}. Built in the background, then used; `describe` shows how far it is.",
        ),
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option(
            "--ttl",
            min=0,
            help="Seconds after its last write at which a document is deleted; 0 for never. Of new writes.",
        ),
    ] = None,
    vector: Annotated[
        str | None, typer.Option("--vector-name", help="--index and --ef-search are of this named vector.")
    ] = None,
    cluster: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Change a collection. What is not named here cannot be changed: make another one, and use an alias."""
    given = {"index": kind, "ef_search": ef_search}
    change: dict[str, Any] = given if vector is None else {"vectors": {vector: given}}

    async def work(client: needle.Client) -> None:
        await client.alter_collection(name, ttl=ttl, **change)

    run(cluster, work)
    notes.print(f"altered {name if vector is None else f'{vector} of {name}'}", markup=False)


Field = Annotated[str, typer.Argument(metavar="FIELD", help="Path of metadata: a.b for a field inside another.")]


def index(name: Name, field: Field, cluster: Cluster = DEFAULT_CLUSTER) -> None:
    """Keep an index of a field of metadata, also after a restart. `describe` tells when it is ready."""

    async def work(client: needle.Client) -> None:
        await client.create_field_index(name, field)

    run(cluster, work)
    notes.print(f"{field} of {name} is being indexed", markup=False)


def unindex(name: Name, field: Field, cluster: Cluster = DEFAULT_CLUSTER) -> None:
    """Keep an index of a field only while searches filter on it."""

    async def work(client: needle.Client) -> None:
        await client.drop_field_index(name, field)

    run(cluster, work)
    notes.print(f"the index of {field} of {name} is no longer declared", markup=False)


Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="The other name.")]


def set_alias(alias: Alias, name: Name, cluster: Cluster = DEFAULT_CLUSTER) -> None:
    """Make ALIAS another name of a collection, or let it lead to another one than before."""

    async def work(client: needle.Client) -> None:
        await client.set_alias(alias, name)

    run(cluster, work)
    notes.print(f"{alias} is {name}", markup=False)


def remove_alias(alias: Alias, cluster: Cluster = DEFAULT_CLUSTER) -> None:
    """Remove an alias; its collection stays."""

    async def work(client: needle.Client) -> None:
        await client.remove_alias(alias)

    run(cluster, work)
    notes.print(f"removed {alias}", markup=False)


def list_aliases(cluster: Cluster = DEFAULT_CLUSTER, json: Json = False) -> None:
    """List the aliases and their collections."""

    async def work(client: needle.Client) -> dict[str, str]:
        return await client.aliases()

    found = run(cluster, work)
    if json:
        print_json(found)
        return
    rows = table("alias", "collection")
    for alias, name in found.items():
        rows.add_row(alias, name)
    console.print(rows)
