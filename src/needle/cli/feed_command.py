"""`needle changes`: what changes in a collection, as it is committed."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import needle
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Timeout, brief, filter_option, notes, print_json, run, visible
from needle.client import Change

_ENDS = ("reset", "ready")


def changes(
    collection: Annotated[str, typer.Argument(help="Name of the collection.")] = "default",
    since: Annotated[
        str,
        typer.Option("--since", help="now; start: all documents first; or a token that --json told: behind that."),
    ] = "now",
    where: Annotated[
        str | None, typer.Option("--where", help="JSON of a filter: as if there were only documents that match.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="End after so many changes; 0 for never.")] = 0,
    with_vectors: Annotated[bool, typer.Option("--with-vectors", help="With --json: the vectors too.")] = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 30.0,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line, with the token behind it.")] = False,
) -> None:
    """Print each committed change of a collection, once, as it comes; Ctrl-C ends it.

    A line with "reset" says to forget all documents; those that there are follow, up to "ready" (docs/changes.md).
    """

    wanted = filter_option("--where", where)

    async def work(client: needle.Client) -> None:
        told = 0
        vectors = with_vectors and json
        feed = client.changes(collection, since=since, filter=wanted, with_vectors=vectors, timeout=timeout)
        async with feed:
            if not json:
                notes.print(f"changes of {visible(collection)}; Ctrl-C ends it", markup=False)
            async for change in feed:
                _print(change, feed.token, json=json)
                told += change.kind not in _ENDS
                if told == limit:
                    return

    run(cluster, work)


def _print(change: Change, token: str, *, json: bool) -> None:
    if json:
        told: dict[str, object] = {"kind": change.kind}
        if change.kind not in _ENDS:
            told |= {"id": change.id, "version": change.version, "shard": change.shard, "metadata": change.metadata}
        if change.vector is not None:
            told["vector"] = change.vector.tolist()
        print_json(told | {"token": token})
    elif change.kind in _ENDS:
        sys.stdout.write(f"{change.kind}\n")
    else:
        metadata = "" if change.metadata is None else f"  {brief(change.metadata, 400)}"
        sys.stdout.write(f"{change.kind:7}{visible(change.id)}  version {change.version}{metadata}\n")
    sys.stdout.flush()
