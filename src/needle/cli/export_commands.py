"""`needle scan | export`: documents read out page by page, on the terminal or into a file for `needle insert`."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import needle
from needle.base.model import Document
from needle.cli.common import (
    DEFAULT_CLUSTER,
    Cluster,
    Collection,
    Fields,
    Json,
    Slice,
    Timeout,
    brief,
    console,
    filter_option,
    notes,
    paths_option,
    print_json,
    run,
    slice_option,
    table,
    visible,
)
from needle.cli.outputs import Export
from needle.client import ScanPage

Where = Annotated[str | None, typer.Option("--where", help='Only documents that match: \'{"lang": "en"}\'.')]

Consistent = Annotated[
    bool, typer.Option("--consistent", help="Show each shard as it was at one moment, however long it takes.")
]
OrderBy = Annotated[
    str | None, typer.Option("--order-by", metavar="FIELD", help="In the order of a field of the metadata.")
]
Descending = Annotated[bool, typer.Option("--descending", help="From the greatest value of --order-by.")]


def scan(
    where: Where = None,
    fields: Fields = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Documents at most.")] = 20,
    cursor: Annotated[str | None, typer.Option("--cursor", help="Go on behind an earlier page, which told it.")] = None,
    order_by: OrderBy = None,
    descending: Descending = False,
    slice_: Slice = None,
    consistent: Consistent = False,
    with_vectors: Annotated[bool, typer.Option("--with-vectors", help="With --json: the vectors too.")] = False,
    collection: Collection = "default",
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Json = False,
) -> None:
    """List documents in the order of their ids, or of a field."""
    condition = filter_option("--where", where)
    paths, share = paths_option(fields), slice_option(slice_)

    async def work(client: needle.Client) -> ScanPage:
        found: list[Document] = []
        at = cursor
        while True:
            page = await client.scan_page(
                condition,
                cursor=at,
                limit=min(1000, limit - len(found)),
                with_vectors=with_vectors and json,
                fields=paths,
                order_by=order_by,
                descending=descending,
                slice=share,
                consistent=consistent and at == cursor,
                collection=collection,
                timeout=timeout,
            )
            found += page.documents
            at = page.cursor
            if at is None or len(found) >= limit:
                return ScanPage(documents=found, cursor=at)

    page = run(cluster, work)
    if json:
        print_json(page)
        return
    rows = table("id", "version", "metadata")
    for document in page.documents:
        rows.add_row(visible(document.id), str(document.version), brief(document.metadata, 400))
    console.print(rows)
    if page.cursor is not None:
        notes.print(f"there are more: --cursor {page.cursor}", markup=False, soft_wrap=True)


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="Where to: a .jsonl or .parquet file.")],
    where: Where = None,
    order_by: OrderBy = None,
    descending: Descending = False,
    slice_: Slice = None,
    consistent: Consistent = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    collection: Collection = "default",
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Json = False,
) -> None:
    """Write a collection's documents into a file that `needle insert` reads.

    A document that is there all the time is written exactly once; one that changes meanwhile as it is when it is read,
    or not at all. With --consistent every shard's documents are those of one moment, when the export began; it ends
    with an error if it takes longer than limits.pinned_scan_seconds. The file appears under its name when it is whole.
    When documents expire is in it, too, and their named vectors.
    """
    condition, share = filter_option("--where", where), slice_option(slice_)

    async def read(client: needle.Client, named: list[str], done: Callable[[Document], None]) -> None:
        order = dict[str, Any](order_by=order_by, descending=descending, slice=share, vectors=named or None)
        scan = client.scan(
            condition, with_vectors=True, **order, consistent=consistent, collection=collection, timeout=timeout
        )
        async with aclosing(scan):  # what is kept for it is given back also where the file cannot be written
            async for document in scan:
                done(document)

    async def write(client: needle.Client, named: list[str], made: Export) -> float:
        total = await client.count(condition, collection=collection, timeout=timeout)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        started = time.perf_counter()
        with Progress(*columns, console=notes, disable=json) as progress:
            task = progress.add_task(file.name, total=total // share[1])  # a share holds about as many

            def done(document: Document) -> None:
                made.add(document)
                progress.advance(task)

            await read(client, named, done)
            made.finish()
        return time.perf_counter() - started

    async def work(client: needle.Client) -> tuple[int, float]:
        described = await client.describe_collection(collection, timeout=timeout)
        named = list(described.vectors)
        with Export(file, replace=force, or_never=described.ttl is not None, named=named) as made:
            seconds = await write(client, named, made)
            return made.count, seconds

    Export.check(file, replace=force)
    count, seconds = run(cluster, work)
    if json:
        print_json({"exported": count, "file": str(file), "seconds": round(seconds, 3)})
    else:
        documents_ = "1 document" if count == 1 else f"{count} documents"
        notes.print(f"{documents_} in {seconds:.1f} s, {count / max(seconds, 1e-9):,.0f} a second", markup=False)
