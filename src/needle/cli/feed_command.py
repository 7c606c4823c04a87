"""`needle changes` and `needle watch`: what changes in a collection, or near a vector, as it is committed."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

import needle
from needle.base.errors import invalid
from needle.cli.common import (
    DEFAULT_CLUSTER,
    Cluster,
    Collection,
    Timeout,
    brief,
    filter_option,
    notes,
    print_json,
    run,
    visible,
)
from needle.cli.inputs import read_query_vector
from needle.client import Change
from needle.client.embedding import WORDLLAMA
from needle.client.feed import Changes

_ENDS = ("reset", "ready")

Where = Annotated[
    str | None, typer.Option("--where", help="JSON of a filter: as if there were only documents that match.")
]
Limit = Annotated[int, typer.Option("--limit", min=0, help="End after so many changes; 0 for never.")]
WithVectors = Annotated[bool, typer.Option("--with-vectors", help="With --json: the vectors too.")]
VectorNames = Annotated[
    list[str] | None,
    typer.Option("--vector-name", metavar="NAME", help="With --json: this named vector, too; may be given again."),
]
VectorName = Annotated[
    str | None,
    typer.Option("--vector-name", help="Near by this named vector of documents, not the one without a name."),
]
Lines = Annotated[bool, typer.Option("--json", help="Print a JSON object a line, with the token behind it.")]


def changes(
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="Name of the collection.")] = "default",
    since: Annotated[
        str,
        typer.Option("--since", help="now; start: all documents first; or a token that --json told: behind that."),
    ] = "now",
    where: Where = None,
    limit: Limit = 0,
    with_vectors: WithVectors = False,
    vector_name: VectorNames = None,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Lines = False,
) -> None:
    """Print each committed change of a collection, once, as it comes; Ctrl-C ends it.

    A line with "reset" says to forget all documents; those that there are follow, up to "ready" (docs/changes.md).
    """

    wanted = filter_option("--where", where)

    async def work(client: needle.Client) -> None:
        vectors = with_vectors and json
        named = vector_name if json else None
        feed = client.changes(
            collection, since=since, filter=wanted, with_vectors=vectors, vectors=named, timeout=timeout
        )
        await _tell(feed, f"changes of {visible(collection)}", limit, json=json)

    run(cluster, work)


def watch(
    words: Annotated[
        str | None,
        typer.Argument(metavar="WORDS", help="Near to what, in words, where the collection names a model."),
    ] = None,
    vector: Annotated[
        str | None, typer.Option("--vector", help="Near to the vector in this .npy file; - reads standard input.")
    ] = None,
    like: Annotated[
        str | None, typer.Option("--like", metavar="ID", help="Near to the vector that this document has now.")
    ] = None,
    max_distance: Annotated[float | None, typer.Option("--max-distance", help="At most so far.")] = None,
    min_score: Annotated[float | None, typer.Option("--min-score", help="With a score of at least this.")] = None,
    vector_name: VectorName = None,
    since: Annotated[str, typer.Option("--since", help="now; or a token that --json told: behind that.")] = "now",
    where: Where = None,
    limit: Limit = 0,
    with_vectors: WithVectors = False,
    collection: Collection = "default",
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Lines = False,
) -> None:
    """Print each document that comes near, and that leaves, as it is committed; Ctrl-C ends it.

    What is near already `needle search` finds. "reset" says that some may have been missed (docs/changes.md).
    """
    if [words, vector, like].count(None) != 2:
        raise typer.BadParameter("give words, --vector or --like", param_hint="WORDS")
    wanted, query = filter_option("--where", where), None if vector is None else read_query_vector(vector)
    if words is not None:
        WORDLLAMA.load()  # whoever lacks it hears so before the cluster is asked

    async def work(client: needle.Client) -> None:
        near = query
        if like is not None:
            near = await _vector_of(client, like, vector_name, collection, timeout)
        feed = client.watch(
            collection, near, text=words, max_distance=max_distance, min_score=min_score, vector_name=vector_name,
            filter=wanted, since=since, with_vectors=with_vectors and json, timeout=timeout,
        )  # fmt: skip
        await _tell(feed, f"what comes near in {visible(collection)}", limit, json=json)

    run(cluster, work)


async def _vector_of(client: needle.Client, like: str, name: str | None, collection: str, timeout: float) -> Any:
    names = None if name is None else [name]
    found = await client.get(like, collection=collection, with_vectors=True, vectors=names, timeout=timeout)
    if found is None:
        raise invalid("like", like, "the id of a document that there is")
    if name is None:
        return found.vector
    if (vector := (found.vectors or {}).get(name)) is None:
        raise invalid("like", like, f"the id of a document that has a vector {name!r}")
    return vector


async def _tell(feed: Changes, what: str, limit: int, *, json: bool) -> None:
    told = 0
    async with feed:
        if not json:
            notes.print(f"{what}; Ctrl-C ends it", markup=False)
        async for change in feed:
            _print(change, feed.token, json=json)
            if change.kind not in _ENDS:
                told += 1
                if told == limit:
                    return


def _print(change: Change, token: str, *, json: bool) -> None:
    if json:
        told: dict[str, object] = {"kind": change.kind}
        if change.kind not in _ENDS:
            told |= {"id": change.id, "version": change.version, "shard": change.shard, "metadata": change.metadata}
        if change.distance is not None:
            told["distance"] = change.distance
        if change.vector is not None:
            told["vector"] = change.vector.tolist()
        if change.vectors is not None:
            told["vectors"] = {name: one.tolist() for name, one in change.vectors.items()}
        print_json(told | {"token": token})
    elif change.kind in _ENDS:
        sys.stdout.write(f"{change.kind}\n")
    else:
        metadata = "" if change.metadata is None else f"  {brief(change.metadata, 400)}"
        distance = "" if change.distance is None else f"  distance {change.distance:.4f}"
        sys.stdout.write(f"{change.kind:7}{visible(change.id)}  version {change.version}{distance}{metadata}\n")
    sys.stdout.flush()
