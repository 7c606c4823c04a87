"""`needle patch | delete | count`: what changes, deletes or counts documents without their vectors."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import needle
from needle.base.errors import InvalidArgument
from needle.base.model import ReadMode, WriteResult
from needle.cli.common import (
    DEFAULT_CLUSTER,
    Cluster,
    Collection,
    Json,
    Timeout,
    brief,
    console,
    filter_option,
    notes,
    print_json,
    run,
    table,
)

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of documents.")]
Where = Annotated[
    str | None, typer.Option("--where", help='Instead of ids: all documents that match, \'{"lang": "en"}\'.')
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With --where: only say how many documents match.")]
IfMatches = Annotated[
    str | None, typer.Option("--if-matches", help="Only if the documents match this filter as they are stored.")
]
Pairs = list[str] | None


def patch(
    ids: Ids = None,
    where: Where = None,
    set_: Annotated[
        Pairs, typer.Option("--set", metavar="PATH=VALUE", help="Set a field; VALUE is JSON, or else text.")
    ] = None,
    unset: Annotated[Pairs, typer.Option("--unset", metavar="PATH", help="Take a field away.")] = None,
    append: Annotated[Pairs, typer.Option("--append", metavar="PATH=VALUE", help="Append a value to an array.")] = None,
    remove: Annotated[
        Pairs, typer.Option("--remove", metavar="PATH=VALUE", help="Take a value out of an array.")
    ] = None,
    expires_at: Annotated[
        str | None,
        typer.Option("--expires-at", help="When the documents are deleted, as 2030-01-01T00:00:00Z; or never."),
    ] = None,
    if_version: Annotated[int | None, typer.Option("--if-version", min=1, help="Only at this version.")] = None,
    if_matches: IfMatches = None,
    dry_run: DryRun = False,
    collection: Collection = "default",
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Json = False,
) -> None:
    """Change fields of documents' metadata, by ids or by a filter. Vectors stay."""
    _one_of(ids, where)
    if where is not None and (if_version is not None or if_matches is not None):
        raise typer.BadParameter("--if-version and --if-matches go with ids; --where is a condition itself")
    change: dict[str, Any] = {
        "set": dict(map(_pair, set_ or ())),
        "unset": unset or (),
        "append": _listed(append),
        "remove": _listed(remove),
        "expires_at": expires_at,
    }
    condition, matches = filter_option("--where", where), filter_option("--if-matches", if_matches)

    async def work(client: needle.Client) -> WriteResult:
        if condition is not None:
            if dry_run:
                return await client.patch_where(
                    condition, **change, dry_run=True, collection=collection, timeout=timeout
                )
            total = await client.count(condition, collection=collection, timeout=timeout)
            with _progress("patched", total, json) as on_progress:
                return await client.patch_where(
                    condition, **change, on_progress=on_progress, collection=collection, timeout=timeout
                )
        return await client.patch(
            ids or [], **change, if_version=if_version, if_matches=matches, collection=collection, timeout=timeout
        )

    _dry(dry_run, where)
    _told(run(cluster, work).count, "patched", dry_run, json)


def delete(
    ids: Ids = None,
    where: Where = None,
    if_matches: IfMatches = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --where: do not ask.")] = False,
    collection: Collection = "default",
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Json = False,
) -> None:
    """Delete documents by ids or by a filter; an id that is not there is no error."""
    _one_of(ids, where)
    _dry(dry_run, where)
    if where is not None and if_matches is not None:
        raise typer.BadParameter("--if-matches goes with ids; --where is a condition itself")
    condition, matches = filter_option("--where", where), filter_option("--if-matches", if_matches)

    async def counted(client: needle.Client) -> int:
        return await client.count(condition, collection=collection, timeout=timeout)

    async def work(client: needle.Client) -> int:
        if condition is not None:
            total = await counted(client)
            with _progress("deleted", total, json) as on_progress:
                done = await client.delete_where(
                    condition, on_progress=on_progress, collection=collection, timeout=timeout
                )
            return done.count
        return (await client.delete(ids or [], if_matches=matches, collection=collection, timeout=timeout)).count

    if dry_run:
        _told(run(cluster, counted), "deleted", dry_run, json)
        return
    if condition is not None and not yes:
        count = run(cluster, counted)
        if not typer.confirm(f"Delete {_documents(count)} of collection {collection}?", err=True):
            raise InvalidArgument("nothing was deleted")
    deleted = run(cluster, work)
    if ids and not json:
        notes.print(f"deleted {deleted} of {len(ids)}")
    else:
        _told(deleted, "deleted", dry_run, json)


def count(
    where: Annotated[
        str | None, typer.Option("--where", help='Count only documents that match: \'{"lang": "en"}\'.')
    ] = None,
    mode: Annotated[ReadMode, typer.Option("--mode", help="What the read promises.")] = ReadMode.STRONG,
    collection: Collection = "default",
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Json = False,
) -> None:
    """Print how many documents a collection holds, or how many match a filter."""
    condition = filter_option("--where", where)

    async def work(client: needle.Client) -> int:
        return await client.count(condition, mode=mode, collection=collection, timeout=timeout)

    found = run(cluster, work)
    print_json({"count": found} if json else found)


def facet(
    field: Annotated[str, typer.Argument(metavar="FIELD", help="A field of metadata, such as lang or author.name.")],
    where: Annotated[
        str | None, typer.Option("--where", help='Count only documents that match: \'{"lang": "en"}\'.')
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many values, the most frequent first.")] = 10,
    mode: Annotated[ReadMode, typer.Option("--mode", help="What the read promises.")] = ReadMode.STRONG,
    collection: Collection = "default",
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Json = False,
) -> None:
    """Show how many documents have each value of a field."""
    condition = filter_option("--where", where)

    async def work(client: needle.Client) -> needle.Facet:
        return await client.facet(field, condition, limit=limit, mode=mode, collection=collection, timeout=timeout)

    found = run(cluster, work)
    if json:
        print_json(found)
        return
    rows = table("documents", field)
    for one in found.values:
        rows.add_row(str(one.count), brief(one.value, 200))
    console.print(rows)
    values = "1 value" if found.distinct == 1 else f"{found.distinct} values"
    notes.print(f"{values} in {_documents(found.documents)}, {found.without} without one", markup=False)


@contextmanager
def _progress(done: str, total: int, json: bool) -> Iterator[Callable[[int], None]]:
    """A bar that whoever calls what this gives moves on. Others write meanwhile, so the total is about right."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes, disable=json) as progress:
        task = progress.add_task(done, total=total)
        yield lambda count: progress.update(task, completed=count)


def _one_of(ids: list[str] | None, where: str | None) -> None:
    if bool(ids) == (where is not None):
        raise typer.BadParameter("give either ids or --where FILTER")


def _dry(dry_run: bool, where: str | None) -> None:
    if dry_run and where is None:
        raise typer.BadParameter("--dry-run goes with --where")


def _pair(text: str) -> tuple[str, Any]:
    """PATH=VALUE."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise typer.BadParameter(f"{text!r} is no PATH=VALUE, such as year=2024 or author.name=Ada")
    try:
        return path, jsonlib.loads(value)
    except RecursionError:
        raise typer.BadParameter(f"the value of {path!r} is JSON that is nested too deep") from None
    except ValueError:
        return path, value


def _listed(pairs: Pairs) -> dict[str, list[Any]]:
    """The values of each path, which may be named several times."""
    found: dict[str, list[Any]] = {}
    for path, value in map(_pair, pairs or ()):
        found.setdefault(path, []).append(value)
    return found


def _documents(count: int) -> str:
    return "1 document" if count == 1 else f"{count} documents"


def _told(count: int, done: str, dry_run: bool, json: bool) -> None:
    if json:
        print_json({"matching": count} if dry_run else {done: count})
    else:
        notes.print(f"{_documents(count)} {'would be ' if dry_run else ''}{done}")
