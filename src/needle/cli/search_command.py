"""`needle search`: by meaning, by a vector or like a document, by words, by a sparse vector, or by several at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import typer
from rich.table import Table

import needle
from needle.base.model import Hit, ReadMode
from needle.cli.common import (
    DEFAULT_CLUSTER,
    Cluster,
    Collection,
    Fields,
    Json,
    Timeout,
    brief,
    console,
    filter_option,
    notes,
    paths_option,
    print_json,
    run,
    table,
    visible,
)
from needle.cli.explained import explained, remarks
from needle.cli.inputs import read_query_vector
from needle.client.embedding import WORDLLAMA

SPARSE = '{"splade": {"indices": [3, 7], "values": [0.5, 1.2]}}'
Sparse = Annotated[
    str | None,
    typer.Option("--sparse", metavar="JSON", help=f"By a sparse vector: '{SPARSE}'."),
]
GroupBy = Annotated[
    str | None, typer.Option("--group-by", help="A field: the nearest of each of the K nearest values.")
]
Diversify = Annotated[
    float | None, typer.Option("--diversify", help="Hits that are unlike each other: 0 not at all, 1 most.")
]
OrderBy = Annotated[
    str | None, typer.Option("--order-by", help="Show the hits in the order of this field; see --descending.")
]
Like = Annotated[
    str | None, typer.Option("--like", metavar="ID", help="Search by the vector of this document, without itself.")
]
Offset = Annotated[int, typer.Option("--offset", min=0, help="Leave out the nearest so many.")]
MaxDistance = Annotated[float | None, typer.Option("--max-distance", help="Leave out hits that are farther.")]
Words = Annotated[
    str | None, typer.Argument(metavar="WORDS", help="What to look for, in words, where the collection names a model.")
]
VectorFile = Annotated[
    str | None, typer.Option("--vector", help="Search by the vector in this .npy file; - reads standard input.")
]
VectorName = Annotated[
    str | None, typer.Option("--vector-name", help="Search this named vector of the documents, not the one without.")
]
Keywords = Annotated[
    str | None, typer.Option("--keywords", help="Find documents that have these words, where there is a text.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="NEAR,WORDS",
        help="Of a search by several: how much the ranks by nearness, --keywords and --sparse count; as 1,0.5.",
    ),
]
Pool = Annotated[
    int | None,
    typer.Option("--pool", min=1, help="With --diversify, or of each list of a search by several: its size."),
]
EfSearch = Annotated[int, typer.Option("--ef-search", min=0, help="Effort of the index; 0: what the collection says.")]
MinScore = Annotated[float | None, typer.Option("--min-score", help="Leave out hits that score less.")]


def search(
    words: Words = None,
    vector: VectorFile = None,
    keywords: Keywords = None,
    sparse: Sparse = None,
    like: Like = None,
    vector_name: VectorName = None,
    weights: Weights = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many hits.")] = 10,
    offset: Offset = 0,
    mode: Annotated[ReadMode, typer.Option("--mode", help="What the read promises.")] = ReadMode.STRONG,
    filter: Annotated[str | None, typer.Option("--filter", help='Condition on metadata: \'{"lang": "en"}\'.')] = None,
    fields: Fields = None,
    max_distance: MaxDistance = None,
    min_score: MinScore = None,
    group_by: GroupBy = None,
    group_size: Annotated[int, typer.Option("--group-size", min=1, help="How many of each with --group-by.")] = 1,
    diversify: Diversify = None,
    pool: Pool = None,
    order_by: OrderBy = None,
    descending: Annotated[bool, typer.Option("--descending", help="From the greatest value of --order-by.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Score every vector instead of using the index.")] = False,
    ef_search: EfSearch = 0,
    explain: Annotated[bool, typer.Option("--explain", help="Also show how each shard found them.")] = False,
    collection: Collection = "default",
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Find the documents nearest to words by their meaning, to a vector or to a document, those that have words, or
    those that a sparse vector finds.

    With several of these all are asked, and their hits become one list by their ranks, which are shown: by nearness, by
    --keywords, and by --sparse."""
    narrow = {
        "max_distance": max_distance, "min_score": min_score, "group_by": group_by, "group_size": group_size,
        "diversify": diversify, "order_by": order_by, "descending": descending,
    }  # fmt: skip
    lists = _lists([words, vector, like], keywords, sparse)
    few = filter_option("--sparse", sparse, SPARSE)
    where = {"mode": mode, "collection": collection, "timeout": timeout, "text": words, "like": like, "sparse": few}
    shown = {
        "offset": offset, "fields": paths_option(fields), "exact": exact, "explain": explain,
        "vector_name": vector_name, "pool": pool, "ef_search": ef_search,
    }  # fmt: skip
    asked = _fusion(narrow, weights, lists) if lists > 1 else _no_fusion(narrow, weights)
    condition, query = filter_option("--filter", filter), None if vector is None else read_query_vector(vector)
    if words is not None:
        WORDLLAMA.load()  # whoever lacks it hears so before the cluster is asked
    hits, seconds = run(cluster, _asking(lists > 1, query, keywords, k, condition, where | shown | asked))
    if json:
        print_json({"hits": hits, "explained": hits.explained} if explain else hits)
    else:
        _show(hits, group_by, mode, seconds, explain=explain, scores=keywords is not None or sparse is not None)


def _asking(
    by_both: bool, query: Any, keywords: str | None, k: int, condition: Any, options: dict[str, Any]
) -> Callable[[needle.Client], Coroutine[Any, Any, tuple[needle.Hits, float]]]:
    """What the search is, and the seconds that it takes."""

    async def work(client: needle.Client) -> tuple[needle.Hits, float]:
        started = time.perf_counter()
        if by_both:
            hits = await client.hybrid_search(query, keywords, k, condition, **options)
        else:
            hits = await client.search(query, k, condition, keywords=keywords, **options)
        return hits, time.perf_counter() - started

    return work


def _fusion(narrow: dict[str, Any], weights: str | None, lists: int) -> dict[str, Any]:
    """Of a search by several, which has no other narrowing than a filter."""
    usual = {"group_size": 1, "descending": False}
    if given := [name for name, value in narrow.items() if value != usual.get(name)]:
        option = "--" + given[0].replace("_", "-")
        raise typer.BadParameter(f"{option} does not go with a search by several: its hits have ranks only")
    return {"fusion": needle.RRF(weights=_weights(weights, lists))}


def _no_fusion(narrow: dict[str, Any], weights: str | None) -> dict[str, Any]:
    if weights is not None:
        raise typer.BadParameter(
            "--weights are those of a search by several: give --keywords or --sparse beside what is to be near"
        )
    return narrow


def _lists(near: list[str | None], keywords: str | None, sparse: str | None) -> int:
    """By how many of nearness, words and sparse vectors is searched."""
    given, scores = len(near) - near.count(None), (keywords is not None) + (sparse is not None)
    if given > 1 or not given + scores:
        raise typer.BadParameter(
            "give either words, --vector FILE, or --like ID; or --keywords WORDS or --sparse JSON, alone or beside one"
        )
    return given + scores


def _weights(given: str | None, lists: int) -> tuple[float, ...]:
    """What the numbers have to be, the client says."""
    try:
        weights = (1.0,) * lists if given is None else tuple(map(float, given.split(",")))
    except ValueError:
        weights = ()
    if len(weights) != lists:
        raise typer.BadParameter(f"--weights are {lists} numbers, such as {','.join(['1'] * lists)}, not {given}")
    return weights


def _show(
    hits: needle.Hits, group_by: str | None, mode: ReadMode, seconds: float, *, explain: bool, scores: bool
) -> None:
    console.print(_table_of(hits, group_by, scores=scores))
    if explain:
        console.print(explained(hits.explained))
        for one in remarks(hits.explained):
            notes.print(one, markup=False)
    found = "1 hit" if len(hits) == 1 else f"{len(hits)} hits"
    notes.print(f"{found}, {mode} read, {seconds * 1000:.1f} ms", markup=False)


def _table_of(hits: needle.Hits, group_by: str | None, *, scores: bool) -> Table:
    ranked = any(hit.ranks is not None for hit in hits)
    names = [*([group_by] if group_by else []), "score" if scores else "distance", *(["ranks"] if ranked else [])]
    rows = table(*names, "id", "metadata")
    for hit in hits:
        told = brief(hit.metadata, 200) if hit.metadata is not None else ""
        rows.add_row(
            *([brief(hit.group, 80)] if group_by else []),
            f"{hit.score if scores else hit.distance:.4f}",
            *([_ranks(hit)] if ranked else []),
            visible(hit.id),
            told,
        )
    return rows


def _ranks(hit: Hit) -> str:
    return " ".join("-" if rank is None else str(rank) for rank in hit.ranks or ())
