"""`needle bulk-load`: Parquet into a new collection, built by workers and handed to the cluster by reference."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

import needle
from needle.base.model import Metric
from needle.cli.bulk.engines import EngineName
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, console, notes, print_json, run
from needle.system import usable_cores

if TYPE_CHECKING:
    from needle.cli.bulk.job import Work
    from needle.cli.bulk.loading import Asked, Loaded

OWN_DIRECTORY = ".needle-bulk"


def bulk_load(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A Parquet file, a directory of them, or s3://bucket/prefix.")
    ],
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="Made if it is not there; never written to.")],
    engine: Annotated[
        EngineName, typer.Option("--engine", help="Processes of this machine, or tasks of Ray (RAY_ADDRESS).")
    ] = EngineName.LOCAL,
    workers: Annotated[
        int, typer.Option("--workers", min=0, max=1024, help="Processes; 0 for as many as there are cores.")
    ] = 0,
    work: Annotated[
        str | None,
        typer.Option("--work", metavar="DIR", help="Room for all files, which Ray's machines share; or .needle-bulk."),
    ] = None,
    metric: Annotated[Metric | None, typer.Option("--metric", help="Of a collection that is made.")] = None,
    alias: Annotated[
        str | None, typer.Option("--alias", metavar="NAME", help="Have this alias lead to the collection at the end.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the files in the directory of --work.")] = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds for the load of one shard.")] = 600.0,
    json: Json = False,
) -> None:
    """Load Parquet into a new collection: workers build each shard's files, and one log entry a shard names them.

    The documents of a shard appear at once. The same command goes on after an interruption, and a load that is done is
    not done again. The collection must never have been written to; no key ranges may move meanwhile. While a shard
    takes its documents, writes and strong reads of all collections in it wait (docs/bulk-loading.md).
    """
    from needle.cli.bulk.loading import Asked
    from needle.cli.bulk.pieces import pieces_of

    pieces, dimensions = pieces_of(source)
    name = collection.replace("%", "%25").replace("/", "%2F")  # so it leads to no other place
    directory = Path(work or OWN_DIRECTORY) / f"load-{name}"  # --work may be a directory with other files
    asked = Asked(collection, pieces, dimensions, metric, str(directory.absolute()), timeout, alias)
    started = time.perf_counter()
    with _held(asked.directory, own=work is None) as files:
        loaded = _loaded(asked, engine, workers or usable_cores(), alias, cluster, quiet=json)
        if not keep:
            files.end()
    seconds = time.perf_counter() - started
    if json:
        print_json({**loaded._asdict(), "seconds": round(seconds, 3)})
        return
    console.print(
        f"{loaded.documents} documents in {loaded.shards} shards, {loaded.sent / 1e6:,.1f} MB sent, {loaded.log} bytes "
        f"in the log, {seconds:.1f} s"
    )
    for address, why in loaded.lacking.items():
        notes.print(f"{address} fetches its files from the others: {why}", markup=False)


@contextmanager
def _held(directory: str, *, own: bool) -> Iterator[Work]:
    """The directory of a load, while nobody else works in it. own: that it is in was made by this command, too. Raises
    InvalidArgument."""
    from needle.cli.bulk.job import Work
    from needle.cli.inputs import refuse

    files = Work(directory)
    try:
        with files.held():
            yield files
    except OSError as error:
        raise refuse(directory, f"the directory of --work cannot be used: {error}") from None
    finally:
        if own:
            with suppress(OSError):  # of another load that goes on, or was broken off
                os.rmdir(OWN_DIRECTORY)


def _loaded(asked: Asked, engine: EngineName, workers: int, alias: str | None, cluster: str, *, quiet: bool) -> Loaded:
    from needle.cli.bulk.engines import engine as engine_of
    from needle.cli.bulk.loading import load

    async def called(client: needle.Client) -> Loaded:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
        with Progress(*columns, TimeElapsedColumn(), console=notes, disable=quiet) as shown:
            tasks: dict[str, TaskID] = {}

            def progress(step: str, done: int, of: int) -> None:
                if step not in tasks:
                    tasks[step] = shown.add_task(step)
                shown.update(tasks[step], completed=done, total=of)

            loaded = await load(client, asked, lambda: engine_of(engine, workers), progress)
        if alias is not None:
            await client.set_alias(alias, asked.collection, timeout=asked.timeout)
        return loaded

    return run(cluster, called)
