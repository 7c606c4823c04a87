"""`needle backup create | archive | list | verify | prune | forget`, and `needle restore`."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import typer
from rich.progress import Progress, TextColumn, TimeElapsedColumn

import needle
from needle import backup as backups
from needle.base.instants import micros
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, Timeout, console, notes, print_json, run, table
from needle.cli.interrupting import run_alone, run_with, until_signal
from needle.cli.restore_progress import RestoreProgress

Target = Annotated[str, typer.Argument(metavar="TARGET", help="A directory, or s3://bucket/prefix.")]
Backup = Annotated[str | None, typer.Option("--backup", help="The id of a backup, as `needle backup list` shows it.")]
Scratch = Annotated[
    str | None, typer.Option("--scratch", help="A directory with room for all documents twice, for --at and --index.")
]
Indexes = Annotated[
    bool, typer.Option("--indexes/--no-indexes", help="Use index files that came along, for as many shards as then.")
]
WaitIndex = Annotated[
    bool, typer.Option("--wait-index/--no-wait-index", help="End when searches use index files, as they did before.")
]
Archive = Annotated[
    str | None, typer.Option("--archive", help="Which cluster's, if several are archived at the target.")
]
At = Annotated[
    str | None,
    typer.Option("--at", help="Out of the archive, as it was at this instant, such as 2026-11-26T14:03:06Z."),
]
AtIndexes = Annotated[
    list[str] | None, typer.Option("--index", help="The same at an index of the log: SHARD:INDEX, for each shard.")
]
Alone = Annotated[str | None, typer.Option("--collection", "-c", help="This collection alone; there may be others.")]
CalledThen = Annotated[
    str | None, typer.Option("--as", metavar="NAME", help="What that collection is to be called, if not as it was.")
]


def _shown(json: bool) -> Progress:
    return Progress(TextColumn("{task.description}"), TimeElapsedColumn(), console=notes, disable=json)


def create(
    target: Target,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            min=0,
            help="Megabytes a second that are read at most; 0 for no bound. Without it, it gives way to other callers.",
        ),
    ] = None,
    indexes: Annotated[
        bool,
        typer.Option("--indexes/--no-indexes", help="Take index files along: a restore need not build them."),
    ] = True,
    begin: Annotated[
        bool, typer.Option("--begin", help="Begin at an empty target, though the cluster has been backed up elsewhere.")
    ] = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Json = False,
) -> None:
    """Make a backup of all collections while the cluster serves. Only what the target lacks is written there.

    Where the cluster has been backed up before, an empty target is refused: its disk may not be mounted.
    """
    store, started = backups.open_store(target), time.perf_counter()

    async def work(client: needle.Client) -> backups.Made:
        total = 0
        with _shown(json) as shown:
            task = shown.add_task("0 documents")

            def progress(documents: int, shipped: int) -> None:
                nonlocal total
                total += documents
                shown.update(task, description=f"{total} documents, {shipped / 1e6:,.1f} MB written")

            bytes_a_second = None if rate is None else rate * 1e6
            return await backups.create(
                client, store, rate=bytes_a_second, indexes=indexes, timeout=timeout, progress=progress, begin=begin
            )

    made = run_with(store, cluster, work)
    _show_made(made, time.perf_counter() - started, json)


def _show_made(made: backups.Made, seconds: float, json: bool) -> None:
    if json:
        print_json(
            {
                "backup": made.manifest.id,
                "documents": made.manifest.documents,
                "read_bytes": made.read,
                "written_bytes": made.shipped,
                "indexes": made.indexes,
                "left_out": made.left_out,
                "told": made.told,
                "digests": {one.spec.name: one.digest for one in made.manifest.collections},
                "seconds": round(seconds, 3),
            }
        )
        return
    notes.print(
        f"backup {made.manifest.id}: {made.manifest.documents} documents, {made.indexes} index files, "
        f"{made.read / 1e6:,.1f} MB read, "
        f"{made.shipped / 1e6:,.1f} MB written, in {seconds:.1f} s",
        markup=False,
    )
    for line in made.left_out:
        notes.print(f"no index files of {line}", markup=False, soft_wrap=True)
    if not made.told:
        notes.print("the cluster could not be told of it: its alert goes by the backup before", markup=False)


def forget(cluster: Cluster = DEFAULT_CLUSTER, timeout: Timeout = 30.0) -> None:
    """Have the cluster expect no backups, and no archive of its logs, until it is told of the next one: no alert."""

    async def work(client: needle.Client) -> None:
        await client.forget_backups(timeout=timeout)

    run(cluster, work)
    notes.print("the cluster expects no backups and no archive until the next one", markup=False)


def archive(
    target: Target,
    every: Annotated[
        float, typer.Option("--every", min=0.5, help="Seconds after which a write is at the target at the latest.")
    ] = 5.0,
    base_hours: Annotated[
        float, typer.Option("--base-hours", min=0.01, help="Hours between two copies of a shard's whole state.")
    ] = 24.0,
    index_minutes: Annotated[
        float,
        typer.Option("--index-minutes", min=0, help="Minutes between two copies of new index files; 0 for none."),
    ] = 60.0,
    begin: Annotated[
        bool, typer.Option("--begin", help="Begin an archive here, though the cluster has been archived elsewhere.")
    ] = False,
    cluster: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Archive the log of every shard until SIGTERM or Ctrl-C: `needle restore --at` brings back any instant of it.

    Needs a key of the role admin. Run again, it goes on where the target says. While no node answers it waits, and says
    so; and where the cluster is archived, and nothing of that is at the target, which may not be mounted.
    """
    store = backups.open_store(target)

    async def work(client: needle.Client) -> None:
        stopped = until_signal(store)
        notes.print(f"archiving the logs of all shards to {target}", markup=False)
        await backups.archive(
            client, store, every=every, base_every=base_hours * 3600, indexes_every=index_minutes * 60,
            until=stopped.wait, begin=begin,
        )  # fmt: skip
        notes.print("stopped: what was written until now is at the target", markup=False)

    run(cluster, work, patient=True)


def list_(
    target: Target,
    newer_than: Annotated[
        float | None,
        typer.Option("--newer-than", min=0, help="Exit code 1 unless a whole backup began within so many hours."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", help="Show the index of each shard's log at this instant, for `needle restore --index`."),
    ] = None,
    archive: Archive = None,
    json: Json = False,
) -> None:
    """List the backups at a target, the oldest first, and from when to when, and which indexes of the shards' logs, are
    archived there."""
    store, instant = backups.open_store(target), _instant(at)
    if instant is not None:
        _show_indexes(backups.indexes_at(store, instant, archive=archive), json)
        return
    found, archives = backups.list_backups(store), backups.list_archives(store)
    if json:
        print_json({"backups": found, "archives": archives})
    else:
        rows = table("backup", "began", "documents", "size", "collections")
        for one in found:
            size, names = f"{one.bytes / 1e6:,.1f} MB", ", ".join(one.collections) or "none"
            cells = ("", "", "", one.damage) if one.damage else (one.began, str(one.documents), size, names)
            rows.add_row(one.id, *cells)
        console.print(rows)
        for archived in archives:
            span = f"from {archived.since} to {archived.until}" if archived.until else "nothing can be restored yet"
            console.print(
                f"archive {archived.cluster}: {span}, {archived.shards} shards, {archived.bytes / 1e6:,.1f} MB",
                markup=False,
            )
            for shard, (first, last) in archived.indexes.items():
                console.print(f"  shard {shard}: index {first} to {last}", markup=False)
            for gap in archived.gaps:
                console.print(f"  {gap}", markup=False)
    if newer_than is not None:
        whole = [micros(one.began) or 0 for one in found if not one.damage]
        if time.time() * 1e6 - max(whole, default=0) > newer_than * 3.6e9:
            notes.print(f"no backup began within {newer_than:g} hours", markup=False)
            raise typer.Exit(1)


def _show_indexes(found: dict[int, int], json: bool) -> None:
    if json:
        print_json({"indexes": found})
    else:
        console.print(" ".join(f"--index {shard}:{index}" for shard, index in found.items()), soft_wrap=True)


def verify(
    target: Target,
    backup: Backup = None,
    checksums_only: Annotated[
        bool,
        typer.Option("--checksums-only", help="Do not apply archived logs: compare checksums of files only."),
    ] = False,
    scratch: Annotated[
        str | None,
        typer.Option("--scratch", help="A directory with room for twice the largest shard, for archived logs."),
    ] = None,
    json: Json = False,
) -> None:
    """Read every file at a target, compute all digests of backups again, and apply archived logs again, to compare with
    the digests that their shards had; no cluster is needed.

    Exit code 1 if a file is missing or damaged, or a digest differs: each is named.
    """
    with _shown(json) as shown:
        task = shown.add_task("reading files")
        found = backups.verify(
            backups.open_store(target), backup, checksums_only=checksums_only, scratch=scratch,
            told=lambda text: shown.update(task, description=text),
        )  # fmt: skip
    if json:
        print_json(found)
    else:
        for problem in found.problems:
            console.print(problem, markup=False, soft_wrap=True)
        for one in found.compared:
            notes.print(_compared(one), markup=False, soft_wrap=True)
        notes.print(
            f"{found.backups} backups, {found.pieces} files of {found.bytes / 1e6:,.1f} MB: "
            f"{len(found.problems) or 'no'} problems",
            markup=False,
        )
    if found.problems:
        raise typer.Exit(1)


def _compared(one: backups.ComparedShard) -> str:
    """In words."""
    upto = f"the last at index {one.proven} of {one.last}" if one.proven else f"index {one.last} was reached"
    return (
        f"archive {one.cluster}, shard {one.shard}: {one.entries} entries applied on {one.states} states, "
        f"{one.digests} digests of its leaders compared, {upto}"
    )


def prune(
    target: Target,
    keep: Annotated[int | None, typer.Option("--keep", min=1, help="So many backups stay, the newest.")] = None,
    archive_hours: Annotated[
        float | None,
        typer.Option("--archive-hours", min=0.01, help="Of archived logs stays what leads to the last so many hours."),
    ] = None,
    drop_archive: Annotated[
        str | None,
        typer.Option("--drop-archive", help="Delete all that is archived of this former cluster, as list shows it."),
    ] = None,
    json: Json = False,
) -> None:
    """Delete older backups, older parts of the archive, and files that nothing needs any more."""
    if keep is None and archive_hours is None and drop_archive is None:
        raise typer.BadParameter("give --keep, --archive-hours or --drop-archive")
    store = backups.open_store(target)
    gone, files = run_alone(
        store, lambda: backups.prune(store, keep, archive_hours=archive_hours, drop_archive=drop_archive)
    )
    if json:
        print_json({"deleted": gone, "files": files})
    else:
        notes.print(f"{len(gone)} backups deleted, and {files} files that nothing needs", markup=False)


def _instant(at: str | None) -> int | None:
    """In microseconds since 1970."""
    found = None if at is None else micros(at)
    if at is not None and found is None:
        raise typer.BadParameter("--at takes an instant with its zone, such as 2026-11-26T14:03:06Z")
    return found


def _indexes(given: list[str]) -> dict[int, int]:
    """SHARD:INDEX of each shard; for a cluster of one shard its index alone."""
    found = [text.rpartition(":") for text in given]
    try:
        return {int(shard or 0): int(index) for shard, _, index in found}
    except ValueError:
        raise typer.BadParameter("--index takes SHARD:INDEX, once for each shard") from None


def restore(
    target: Target,
    backup: Backup = None,
    at: At = None,
    index: AtIndexes = None,
    archive: Archive = None,
    collection: Alone = None,
    as_: CalledThen = None,
    indexes: Indexes = True,
    scratch: Scratch = None,
    wait_index: WaitIndex = True,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Json = False,
) -> None:
    """Bring a backup back, by default the newest, or an instant, into a new cluster of any number of nodes and shards;
    or one collection of it, under its name or another one, into a cluster that serves.

    Every collection is read back and must have the digest that was recorded. What was broken off goes on when the
    command is run again. Where index files do not come along, as with another number of shards, it waits until they
    are built.
    """
    store, started, instant = backups.open_store(target), time.perf_counter(), _instant(at)
    if sum(given is not None for given in (backup, at, index or None)) > 1:
        raise typer.BadParameter("give one of --backup, --at and --index")
    if as_ is not None and collection is None:
        raise typer.BadParameter("--as is a name for the collection that --collection names: give both")

    whole = instant is None and not index

    async def work(client: needle.Client) -> backups.Restored:
        with _shown(json) as shown:
            counting = RestoreProgress(shown)
            if whole:
                return await backups.restore(
                    client, store, backup, collection=collection, name=as_, indexes=indexes, timeout=timeout,
                    progress=counting.written, total=counting.total,
                )  # fmt: skip
            return await backups.restore_at(
                client, store, instant, indexes=_indexes(index) if index else None, archive=archive,
                collection=collection, name=as_, index_files=indexes, scratch=scratch, timeout=timeout,
                told=counting.say, progress=counting.written, total=counting.total,
            )  # fmt: skip

    async def all_of_it(client: needle.Client) -> float:
        done = await work(client)
        seconds = time.perf_counter() - started
        source = f"backup {done.backup}" if whole else f"what there was at {at or index}"
        _told_of(done, _what(source, collection, as_), seconds, json)
        if wait_index:
            await _wait_indexed(client, done, timeout, json)
        return seconds

    seconds = run_with(store, cluster, all_of_it)
    if wait_index and not json:
        notes.print(
            f"searches are as fast as before, {time.perf_counter() - started - seconds:.1f} s later", markup=False
        )


def _what(source: str, collection: str | None, name: str | None) -> str:
    return source if collection is None else f"collection {collection}, as {name or collection}, of {source}"


async def _wait_indexed(client: needle.Client, done: backups.Restored, timeout: float, json: bool) -> None:
    with _shown(json) as shown:
        counting = RestoreProgress(shown)
        await backups.wait_indexed(client, done.digests, timeout=timeout, progress=counting.indexed)


def _told_of(done: backups.Restored, what: str, seconds: float, json: bool) -> None:
    if json:
        print_json({**msgspec.structs.asdict(done), "seconds": round(seconds, 3)})
        return
    notes.print(
        f"{what} is restored: {done.documents} documents in {seconds:.1f} s; every collection has "
        "the digest that was recorded",
        markup=False,
    )
    if done.indexed:
        notes.print(f"{done.indexed} of them are searched by index files that came along", markup=False)
    if done.indexed_named:
        notes.print(f"so are {done.indexed_named} named vectors", markup=False)
    for line in done.built:
        notes.print(f"built again is the index of {line}", markup=False, soft_wrap=True)
