"""`needle import`: documents of files and other databases into a collection, compared with their source at the end."""

from __future__ import annotations

import os
import time
from contextlib import closing
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

import needle
from needle.base.dtypes import DType, VectorForm
from needle.base.errors import CollectionNotFound, InvalidArgument
from needle.base.model import Metric
from needle.cli.common import (
    DEFAULT_CLUSTER,
    Cluster,
    Collection,
    Json,
    Timeout,
    console,
    notes,
    print_json,
    run,
    table,
    visible,
)
from needle.cli.imports.comparing import kinds_of
from needle.cli.imports.copying import Report, Target, check_no_others, compare, copy
from needle.cli.imports.opening import open_source
from needle.cli.imports.source import KEY_VARIABLE, Asked, Source
from needle.cli.inputs import check_record
from needle.client.naming import CollectionDescription


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A .jsonl, .npy, .parquet or .arrow file; or chroma:, qdrant:, lancedb:, milvus: or faiss: before a "
            "path; or chroma:, qdrant: or pgvector: before a URL.",
        ),
    ],
    from_collection: Annotated[
        str | None, typer.Option("--from-collection", metavar="NAME", help="Which of the source's, if it has several.")
    ] = None,
    vector: Annotated[
        str | None, typer.Option("--vector", metavar="NAME", help="Which vector, if documents have several.")
    ] = None,
    id: Annotated[
        str | None,
        typer.Option("--id", metavar="NAME", help="LanceDB, pgvector: the column of ids, if not the usual one."),
    ] = None,
    ids: Annotated[
        str | None, typer.Option("--ids", metavar="FILE", help="faiss: the vectors' ids, one a line, or a .npy file.")
    ] = None,
    metric: Annotated[
        Metric | None, typer.Option("--metric", help="Of a new collection whose source names none; else cosine.")
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="The collection may hold other documents, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    batch: Annotated[int, typer.Option("--batch", min=1, max=10_000, help="Documents read at once.")] = 500,
    collection: Collection = "default",
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Json = False,
) -> None:
    """Copy a file's or another database's documents into a collection, and compare both afterwards.

    The collection is created if it is not there. What is in it already as in the source is not written again: after an
    interruption the same command goes on. A document that is there and different is replaced. A collection that holds
    documents under other ids is refused before anything is written, without --add. Exit code 1 if the comparison finds
    a difference. The source's API key, or the password of its database, is taken from NEEDLE_SOURCE_API_KEY.
    """
    key = os.environ.get(KEY_VARIABLE) or None
    with closing(open_source(Asked(source, from_collection, vector, id, ids, key, batch))) as opened:
        plan, report = _imported(opened, source, collection, cluster, metric, add, dry_run, timeout, json)
    if json:
        print_json(plan if report is None else {**plan, "verified": report})
    elif report is not None:
        _show(report)
    if report is not None and report.differences:
        raise typer.Exit(1)


def _imported(
    opened: Source,
    source: str,
    collection: str,
    cluster: str,
    metric: Metric | None,
    add: bool,
    dry_run: bool,
    timeout: float,
    quiet: bool,
) -> tuple[dict[str, Any], Report | None]:
    """What was planned and done, and what the comparison found; None if nothing was to be done."""
    shape = opened.shape
    if metric is not None and shape.metric is not None and metric != shape.metric:
        raise InvalidArgument(f"--metric {metric}: the source has {shape.metric}", field="--metric")
    wanted = metric or shape.metric or Metric.COSINE

    async def work(client: needle.Client) -> tuple[dict[str, Any], Report | None]:
        there = await _there(client, collection, timeout)
        _check_fits(there, opened, metric or shape.metric)
        used = wanted if there is None else there.metric
        plan = _plan(opened, collection, there, used)
        if not quiet:
            _show_plan(source, plan)
        named = {} if there is None else {name: one.metric for name, one in there.vectors.items()}
        target = Target(client, collection, used, timeout, named)
        held = there is not None and there.documents > 0
        if held and not add:
            await _checked(opened, target, quiet)
        if dry_run:
            return plan, None
        if there is None:
            await client.create_collection(
                collection, dimensions=shape.dimensions, metric=used, if_absent=True, timeout=timeout
            )
        copied = await _copied(opened, target, check=held, add=add, quiet=quiet)
        return {**plan, **copied[0]}, copied[1]

    return run(cluster, work)


async def _there(client: needle.Client, collection: str, timeout: float) -> CollectionDescription | None:
    try:
        return await client.describe_collection(collection, timeout=timeout)
    except CollectionNotFound:
        return None


def _check_fits(there: CollectionDescription | None, source: Source, metric: Metric | None) -> None:
    """Raises InvalidArgument for a collection that cannot hold the source's documents as they are."""
    for name, dimensions in source.shape.named.items():
        _check_named(there, name, dimensions)
    if there is None:
        return
    if there.dimensions != source.shape.dimensions:
        raise InvalidArgument(
            f"the source's vectors have {source.shape.dimensions} numbers; those of collection {there.name} have "
            f"{there.dimensions}",
            field="collection",
        )
    if metric is not None and there.metric != metric:
        raise InvalidArgument(
            f"the source's metric is {metric}; that of collection {there.name} is {there.metric}", field="collection"
        )
    if there.dtype is not DType.FLOAT32:
        raise InvalidArgument(
            f"collection {there.name} keeps vectors as {there.dtype}, which are not those of the source any more: "
            "import into one of float32",
            field="collection",
        )
    if there.ttl is not None:
        raise InvalidArgument(
            f"documents of collection {there.name} expire after {there.ttl:g} s, those of the source do not",
            field="collection",
        )


def _check_named(there: CollectionDescription | None, name: str, dimensions: int) -> None:
    """Of a named vector of the source."""
    spec = None if there is None else there.vectors.get(name)
    if spec is None:
        raise InvalidArgument(
            f"the source has vectors called {name!r}, and the collection has none of that name: `needle collections "
            f"create` it, and `needle collections add-vector` with --dimensions {dimensions}, for the source does not "
            "say what they are like",
            field="collection",
        )
    if spec.dimensions != dimensions or spec.dtype is not DType.FLOAT32:
        raise InvalidArgument(
            f"the source's vectors {name!r} have {dimensions} numbers of float32; those of the collection have "
            f"{spec.dimensions} of {spec.dtype}",
            field="collection",
        )


def _plan(source: Source, collection: str, there: CollectionDescription | None, metric: Metric) -> dict[str, Any]:
    """Raises InvalidArgument for one of the first documents that no collection takes."""
    shape, first = source.shape, next(source.batches(), [])
    for record in first:  # what no collection takes is told by its line, and before one is made
        check_record(record, VectorForm(shape.dimensions))
    return {
        "documents": shape.documents,
        "dimensions": shape.dimensions,
        "metric": metric,
        "collection": collection,
        "creates": there is None,
        "held": 0 if there is None else there.documents,
        "mapping": dict(shape.mapped),
        "metadata": kinds_of(first),
    }


def _show_plan(place: str, plan: dict[str, Any]) -> None:
    state = "which is created" if plan["creates"] else f"which holds {plan['held']} documents"
    count = "documents" if plan["documents"] is None else f"{plan['documents']} documents"
    console.print(f"{visible(place)}: {count} of {plan['dimensions']} dimensions, {plan['metric']}", soft_wrap=True)
    console.print(f"into collection {plan['collection']}, {state}", soft_wrap=True)
    rows = table("source", "here")
    for name, becomes in plan["mapping"].items():
        rows.add_row(visible(name), visible(becomes))
    console.print(rows)
    if plan["metadata"]:
        rows = table("metadata (first documents)", "JSON")
        for name, kinds in plan["metadata"].items():
            rows.add_row(visible(name), kinds)
        console.print(rows)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s")


def _progress(quiet: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=notes, disable=quiet)


async def _checked(source: Source, target: Target, quiet: bool) -> None:
    """Raises InvalidArgument for a collection that holds other documents than the source's."""
    with _progress(quiet) as progress:
        task = progress.add_task("looked at", total=source.shape.documents)
        await check_no_others(source, target, lambda more: progress.advance(task, more))


async def _copied(
    source: Source, target: Target, *, check: bool, add: bool, quiet: bool
) -> tuple[dict[str, Any], Report]:
    with _progress(quiet) as progress:
        task = progress.add_task("copied", total=source.shape.documents)
        started = time.perf_counter()
        copied = await copy(source, target, check=check, done=lambda more: progress.advance(task, more))
        copying = time.perf_counter() - started
        settled = copied.written + copied.there
        task = progress.add_task("compared", total=settled)
        report = await compare(source, target, add=add, done=lambda more: progress.advance(task, more))
    seconds = time.perf_counter() - started
    told = {**copied._asdict(), "copied_seconds": round(copying, 3), "seconds": round(seconds, 3)}
    if not quiet:
        rate = settled / max(copying, 1e-9)
        text = f"{copied.written} documents written, {copied.there} were there: {copying:.1f} s, {rate:,.0f} a second"
        notes.print(text, markup=False)
    if not quiet and copied.replaced:
        text = f"{copied.replaced} of the written took the place of what was there under their ids, and was different"
        notes.print(text, markup=False)
    return told, report


def _show(report: Report) -> None:
    rows = table("", "documents", "digest")
    rows.add_row("source", str(report.source), report.source_digest)
    rows.add_row("collection", str(report.target), report.target_digest)
    console.print(rows)
    if report.sample:
        console.print(f"nearest neighbours of {report.sample} documents agree by {report.neighbours:.3f}")
    if report.other:
        console.print(f"other documents in the collection: {report.other}")
    for one in report.differences:
        console.print(f"DIFFERENT: {visible(one)}", soft_wrap=True)
    if not report.differences:
        console.print("equal")
