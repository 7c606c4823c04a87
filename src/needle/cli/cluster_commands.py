"""`needle leader | step-down | force-election`: who leads, and changing it."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Annotated

import typer

import needle
from needle.base.errors import Forbidden, NeedleError, Unavailable, invalid
from needle.cli.common import (
    DEFAULT_CLUSTER,
    Cluster,
    Json,
    Timeout,
    notes,
    print_json,
    run,
)
from needle.routing.meant import not_made

STATUS_TIMEOUT = 2.0
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        help="Of a cluster with several shards: the number of the one that is meant. `catalog` for its group.",
    ),
]


def _which(shard: str | None) -> int | str | None:
    """Raises InvalidArgument."""
    if shard is None or shard == "catalog":
        return shard
    if not re.fullmatch("-?[0-9]{1,9}", shard):
        raise invalid("shard", shard, "the number of a shard, or catalog")
    return int(shard)


def leader(shard: Shard = None, cluster: Cluster = DEFAULT_CLUSTER, json: Json = False) -> None:
    """Print the leader's node id. Exit code 1 if there is none."""
    which = _which(shard)

    async def work(client: needle.Client) -> str | None:
        found = await client.leader(which)
        if not client.topology().shards:
            raise not_made()
        if found is None:
            return None
        try:  # what others believe may be old: ask the node itself
            status = await client.node_status(found, shard=which, timeout=STATUS_TIMEOUT)
        except Forbidden:
            raise
        except NeedleError:
            return None
        return found if status.state == "Leader" else None

    found = run(cluster, work)
    if json:
        print_json({"leader": found})
    elif found is not None:
        typer.echo(found)
    if found is None:
        raise Unavailable("no node leads")


def step_down(
    to: Annotated[str | None, typer.Option("--to", help="The node to lead next; default: the most caught-up.")] = None,
    shard: Shard = None,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Hand leadership to another node without losing a write in flight."""
    which = _which(shard)

    async def work(client: needle.Client) -> str | None:
        return await client.step_down(to, shard=which, timeout=timeout) or await _led_by_any(client, which, timeout)

    _report_leader(run(cluster, work), json)


def force_election(
    node: Annotated[
        str | None, typer.Argument(metavar="NODE", help="The node that campaigns; default: one that does not lead.")
    ] = None,
    shard: Shard = None,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Have a node start an election now. Safe at any time: a leader that a majority hears stays."""
    which = _which(shard)

    async def work(client: needle.Client) -> str | None:
        await client.force_new_election(node, shard=which, timeout=timeout)
        return await _led_by_any(client, which, timeout)

    _report_leader(run(cluster, work), json)


async def _led_by_any(client: needle.Client, shard: int | str | None, timeout: float) -> str | None:
    """The leader's id as soon as there is one; None when there is none within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    found = await client.leader(shard)
    while found is None and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
        found = await client.leader(shard)
    return found


def _report_leader(found: str | None, json: bool) -> None:
    if found is None:
        raise Unavailable("no node leads yet")
    if json:
        print_json({"leader": found})
    else:
        notes.print(f"{found} leads", markup=False)
