"""`needle backup create | list | verify | prune`, and `needle restore`."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import msgspec
import typer
from rich.progress import Progress, TextColumn, TimeElapsedColumn

import needle
from needle import backup as backups
from needle.base.instants import micros
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, Timeout, console, notes, print_json, run, table

Target = Annotated[str, typer.Argument(metavar="TARGET", help="A directory, or s3://bucket/prefix.")]
Backup = Annotated[str | None, typer.Option("--backup", help="The id of a backup, as `needle backup list` shows it.")]


def _shown(json: bool) -> Progress:
    return Progress(TextColumn("{task.description}"), TimeElapsedColumn(), console=notes, disable=json)


def create(
    target: Target,
    rate: Annotated[
        float, typer.Option("--rate", min=0, help="Megabytes a second that are read at most; 0 for no bound.")
    ] = 0.0,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Json = False,
) -> None:
    """Make a backup of all collections while the cluster serves. Only what the target lacks is written there."""
    store, started = backups.open_store(target), time.perf_counter()

    async def work(client: needle.Client) -> backups.Made:
        total = 0
        with _shown(json) as shown:
            task = shown.add_task("0 documents")

            def progress(documents: int, shipped: int) -> None:
                nonlocal total
                total += documents
                shown.update(task, description=f"{total} documents, {shipped / 1e6:,.1f} MB written")

            return await backups.create(client, store, rate=rate * 1e6, timeout=timeout, progress=progress)

    made = run(cluster, work)
    seconds = time.perf_counter() - started
    if json:
        print_json(
            {
                "backup": made.manifest.id,
                "documents": made.manifest.documents,
                "read_bytes": made.read,
                "written_bytes": made.shipped,
                "digests": {one.spec.name: one.digest for one in made.manifest.collections},
                "seconds": round(seconds, 3),
            }
        )
        return
    notes.print(
        f"backup {made.manifest.id}: {made.manifest.documents} documents, {made.read / 1e6:,.1f} MB read, "
        f"{made.shipped / 1e6:,.1f} MB written, in {seconds:.1f} s",
        markup=False,
    )


def list_(
    target: Target,
    newer_than: Annotated[
        float | None,
        typer.Option("--newer-than", min=0, help="Exit code 1 unless a whole backup began within so many hours."),
    ] = None,
    json: Json = False,
) -> None:
    """List the backups at a target, the oldest first."""
    found = backups.list_backups(backups.open_store(target))
    if json:
        print_json(found)
    else:
        rows = table("backup", "began", "documents", "size", "collections")
        for one in found:
            size, names = f"{one.bytes / 1e6:,.1f} MB", ", ".join(one.collections) or "none"
            cells = ("", "", "", one.damage) if one.damage else (one.began, str(one.documents), size, names)
            rows.add_row(one.id, *cells)
        console.print(rows)
    if newer_than is not None:
        whole = [micros(one.began) or 0 for one in found if not one.damage]
        if time.time() * 1e6 - max(whole, default=0) > newer_than * 3.6e9:
            notes.print(f"no backup began within {newer_than:g} hours", markup=False)
            raise typer.Exit(1)


def verify(target: Target, backup: Backup = None, json: Json = False) -> None:
    """Read every file of the backups at a target and compute all digests anew; no cluster is needed.

    Exit code 1 if a file is missing or damaged: each is named.
    """
    found = backups.verify(backups.open_store(target), backup)
    if json:
        print_json(found)
    else:
        for problem in found.problems:
            console.print(problem, markup=False, soft_wrap=True)
        notes.print(
            f"{found.backups} backups, {found.pieces} files of {found.bytes / 1e6:,.1f} MB: "
            f"{len(found.problems) or 'no'} problems",
            markup=False,
        )
    if found.problems:
        raise typer.Exit(1)


def prune(
    target: Target,
    keep: Annotated[int, typer.Option("--keep", min=1, help="So many backups stay, the newest.")],
    json: Json = False,
) -> None:
    """Delete older backups, and files that no backup needs."""
    gone, files = asyncio.run(backups.prune(backups.open_store(target), keep))
    if json:
        print_json({"deleted": gone, "files": files})
    else:
        notes.print(f"{len(gone)} backups deleted, and {files} files that no other one needs", markup=False)


def restore(
    target: Target,
    backup: Backup = None,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Json = False,
) -> None:
    """Bring a backup back, by default the newest, into a new cluster of any number of nodes and shards.

    Every collection is read back and must have the digest that the backup recorded. What was broken off goes on when
    the command is run again.
    """
    store, started = backups.open_store(target), time.perf_counter()

    async def work(client: needle.Client) -> backups.Restored:
        total = 0
        with _shown(json) as shown:
            task = shown.add_task("0 documents")

            def progress(documents: int) -> None:
                nonlocal total
                total += documents
                shown.update(task, description=f"{total} documents")

            return await backups.restore(client, store, backup, timeout=timeout, progress=progress)

    done = run(cluster, work)
    seconds = time.perf_counter() - started
    if json:
        print_json({**msgspec.structs.asdict(done), "seconds": round(seconds, 3)})
    else:
        notes.print(
            f"backup {done.backup} is restored: {done.documents} documents in {seconds:.1f} s; every collection has "
            "the digest that the backup recorded",
            markup=False,
        )
