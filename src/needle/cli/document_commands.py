"""`needle insert | get`: documents in and out."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import needle
from needle.base.dtypes import VectorForm
from needle.base.errors import CollectionNotFound, InvalidArgument, NeedleError
from needle.base.model import Document
from needle.cli.common import (
    DEFAULT_CLUSTER,
    Cluster,
    Collection,
    Json,
    Timeout,
    brief,
    console,
    notes,
    print_json,
    run,
    table,
    visible,
)
from needle.cli.inputs import (
    Embed,
    Record,
    check_record,
    count_records,
    may_hold_text,
    read_records,
    span,
)
from needle.client.arrow_tables import instant
from needle.client.embedding import WORDLLAMA, check_takes

T = TypeVar("T")

Ids = Annotated[list[str], typer.Argument(metavar="ID", help="Ids of documents.")]
BATCH_BYTES = 512 * 1024
BATCHES_IN_FLIGHT = 4
SOON_SECONDS = 5.0


def insert(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", exists=True, dir_okay=False, help="Documents: a .jsonl, .npy, .parquet or .arrow file."
        ),
    ],
    id_prefix: Annotated[
        str, typer.Option("--id-prefix", help="Prefix for ids made from the row numbers of a .npy file.")
    ] = "",
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=10_000, help="Maximum number of documents per write.")
    ] = 500,
    ttl: Annotated[
        float | None, typer.Option("--ttl", min=0.001, help="Seconds from now at which the documents are deleted.")
    ] = None,
    expires_at: Annotated[
        str | None,
        typer.Option("--expires-at", help="When the documents are deleted, as 2030-01-01T00:00:00Z; or never."),
    ] = None,
    collection: Collection = "default",
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Json = False,
) -> None:
    """Insert or replace the documents of a file.

    .jsonl: one object a line with "id" and "vector" (or "text", which is embedded where the collection names a model),
    and perhaps "vectors" with named ones; other keys become metadata. .npy: a 2-d array, ids are row numbers. .parquet,
    .arrow: columns id and vector, and vector:NAME for each named one; others become metadata.

    What `needle export` wrote comes back as it was, also when documents expire, if neither --ttl nor --expires-at says
    otherwise; those that have expired by now are left out.
    """
    if ttl is not None and expires_at is not None:
        raise typer.BadParameter("give --ttl or --expires-at, not both")
    until = expires_at if ttl is None else datetime.now(UTC) + timedelta(seconds=ttl)
    total, left_out = count_records(file), Counter[str]()

    async def work(client: needle.Client) -> tuple[int, float]:
        embed = await embedding(client, file, collection)
        records = read_records(file, embed, id_prefix, batch)
        batches = by_bytes(records if until is not None else _without_expired(records, left_out))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=notes, disable=json) as progress:
            task = progress.add_task(file.name, total=total)
            started = time.perf_counter()
            inserted = await insert_all(
                client, batches, collection, timeout, lambda count: progress.advance(task, count), until
            )
            return inserted, time.perf_counter() - started

    inserted, seconds = run(cluster, work)
    if json:
        print_json({"inserted": inserted, "expired": left_out["expired"], "seconds": round(seconds, 3)})
    else:
        count = "1 document" if inserted == 1 else f"{inserted} documents"
        notes.print(f"{count} in {seconds:.1f} s, {inserted / max(seconds, 1e-9):,.0f} a second")
        if left_out["expired"]:
            notes.print(f"left out, for they have expired: {left_out['expired']}")


async def embedding(client: needle.Client, file: Path, collection: str) -> Callable[[], Embed]:
    """Of the texts of a file, if it has any, for a collection that names a model."""
    specs = {spec.name: spec for spec in await client.collections()} if may_hold_text(file) else {}
    aliases = await client.aliases() if specs else {}

    def embed() -> Embed:
        if (spec := specs.get(aliases.get(collection, collection))) is None:
            raise CollectionNotFound(f"there is no collection {collection!r}", collection=collection)
        check_takes(spec, WORDLLAMA)
        return WORDLLAMA.embed

    return embed


def _without_expired(batches: Iterator[list[Record]], left_out: Counter[str]) -> Iterator[list[Record]]:
    """Without documents whose own instant has passed, or will have by the time they arrive: a leader refuses these."""
    for records in batches:
        now = int(1e6 * (datetime.now(UTC) + timedelta(seconds=SOON_SECONDS)).timestamp())
        kept = [one for one in records if one.expires_at in (None, "never") or instant(one.expires_at) > now]
        left_out["expired"] += len(records) - len(kept)
        if kept:
            yield kept


def by_bytes(batches: Iterator[list[Record]]) -> Iterator[list[Record]]:
    """Split batches whose vectors exceed BATCH_BYTES, so that log entries stay small."""
    for records in batches:
        rows = max(1, BATCH_BYTES // max(1, *(one.vector_bytes for one in records)))
        for start in range(0, len(records), rows):
            yield records[start : start + rows]


async def insert_all(
    client: needle.Client,
    batches: Iterator[list[Record]] | AsyncIterator[list[Record]],
    collection: str,
    timeout: float,
    done: Callable[[int], None],
    expires_at: datetime | str | None = None,
) -> int:
    """Insert every batch, a few in flight, `done(count)` after each; returns how many documents were acknowledged.

    The last of several documents with one id wins, as if they were inserted one by one: batches that share an id do
    not overtake each other. An error says how many documents were acknowledged before it, and names the line of a
    document that is refused, or the lines of its batch.
    """
    inserted = 0
    in_flight: set[str] = set()
    changed = asyncio.Condition()

    async def next_batch() -> dict[str, Record] | None:
        async with changed:
            taken = await anext(batches, []) if isinstance(batches, AsyncIterator) else next(batches, [])
            records = {record.id: record for record in taken}
            await changed.wait_for(lambda: in_flight.isdisjoint(records))
            in_flight.update(records)
            return records or None

    async def worker() -> None:
        nonlocal inserted
        while records := await taking.run(next_batch):
            items = [(record.id, record.vector, record.metadata) for record in records.values()]
            try:
                taken = list(records.values())
                until, named = _instants(taken) if expires_at is None else expires_at, _named(taken)
                more: dict[str, Any] = {"named_vectors": named} if named else {}
                await client.insert_batch(items, expires_at=until, collection=collection, timeout=timeout, **more)
            except InvalidArgument as error:
                await _name_the_refused(client, collection, list(records.values()), error)
            inserted += len(items)
            done(len(items))
            async with changed:
                in_flight.difference_update(records)
                changed.notify_all()

    taking = _OneAtATime()
    failures: list[NeedleError] = []
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(BATCHES_IN_FLIGHT):
                group.create_task(worker())
    except* NeedleError as errors:
        failures += _leaves(errors)
    if failures:
        first = failures[0]
        raise type(first)(f"{first.message} (acknowledged before: {inserted})", **first.details)
    return inserted


def _instants(records: list[Record]) -> list[str | None] | None:
    """Of documents of a file that says when they expire."""
    found = [record.expires_at for record in records]
    return found if any(found) else None


def _named(records: list[Record]) -> dict[str, list[NDArray[np.float32] | None]]:
    """By the name of each vector that some of them have."""
    names = {name: None for record in records for name in record.named}
    return {name: [record.named.get(name) for record in records] for name in names}


async def _name_the_refused(
    client: needle.Client, collection: str, records: list[Record], error: InvalidArgument
) -> NoReturn:
    """Raise `error`, why a batch was refused, with the line of the document that is wrong, or those of the batch."""
    known = None
    with suppress(NeedleError):  # who refuses knows better than who does not answer
        known = await client.describe_collection(collection)
    for record in records:
        check_record(
            record, *((None, None) if known is None else (VectorForm(known.dimensions, known.dtype), known.vectors))
        )
    raise type(error)(f"{span(records)}: {error.message}", **error.details) from error


class _OneAtATime:
    """Runs coroutines one after the other, so that batches are taken in the order of the file."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def run(self, take: Callable[[], Awaitable[T]]) -> T:
        async with self._lock:
            return await take()


def _leaves(group: BaseExceptionGroup[NeedleError]) -> list[NeedleError]:
    found: list[NeedleError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def get(
    ids: Ids,
    collection: Collection = "default",
    with_vectors: Annotated[bool, typer.Option("--with-vectors", help="Show the vectors too.")] = False,
    vector_name: Annotated[
        list[str] | None,
        typer.Option("--vector-name", metavar="NAME", help="Show this named vector, too; may be given again."),
    ] = None,
    cluster: Cluster = DEFAULT_CLUSTER,
    json: Json = False,
) -> None:
    """Show documents by id (a strong read). Exit code 1 if one is missing."""
    named = list(dict.fromkeys(vector_name or ()))

    async def work(client: needle.Client) -> list[Document]:
        more: dict[str, Any] = {"vectors": named} if named else {}
        return list(await client.get_many(ids, collection=collection, with_vectors=with_vectors, **more))

    documents = run(cluster, work)
    if json:
        print_json(documents)
    else:
        expire = any(document.expires_at for document in documents)
        vectors = [*(["vector"] if with_vectors else []), *named]
        rows = table("id", "version", *(["expires at"] if expire else []), "metadata", *vectors)
        for document in documents:
            until = [document.expires_at or "never"] if expire else []
            row = [visible(document.id), str(document.version), *until, brief(document.metadata, 400)]
            held = [(document.vectors or {}).get(name) for name in named]
            shown = [*([document.vector] if with_vectors else []), *held]
            rows.add_row(*row, *("" if one is None else _brief_vector(one) for one in shown))
        console.print(rows)
    missing = sorted(set(ids) - {document.id for document in documents})
    if missing:
        notes.print(f"not there: {', '.join(missing)}", markup=False)
        raise typer.Exit(1)


def _brief_vector(vector: NDArray[np.float32]) -> str:
    shown = ", ".join(f"{value:.3f}" for value in vector[:4])
    return f"[{shown}{', ...' if len(vector) > 4 else ''}] ({len(vector)})"
