"""`needle members`: which nodes hold the cluster's data, adding one, and taking one out.

For clusters of which every node holds every shard, as nodes with `cluster_nodes` found them. Where shards are on some
of the nodes each, `needle cluster replicas` says on which.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer

import needle
from needle.base.errors import DeadlineExceeded, InvalidArgument
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, console, notes, print_json, run, table
from needle.routing.topology import NodeState, Topology

LOOK_SECONDS = 0.1
ASK_SECONDS = 5.0
Wait = Annotated[float, typer.Option("--timeout", min=1, help="Seconds for the whole change.")]


def members(context: typer.Context, cluster: Cluster = DEFAULT_CLUSTER, json: Json = False) -> None:
    """List the nodes that hold the cluster's data; add or remove one."""
    if context.invoked_subcommand is not None:
        return
    now = run(cluster, _confirmed)
    held = {info.id: [shard.shard for shard in now.hosted_by(info.id)] for info in now.nodes}
    found = [info for info in now.nodes if held[info.id] or info.id in now.catalog]
    if json:
        print_json([{"node": info.id, "shards": held[info.id], "catalog": info.id in now.catalog} for info in found])
        return
    rows = table("node", "address", "catalog", "shards")
    for info in found:
        catalog = "yes" if info.id in now.catalog else ""
        rows.add_row(info.id, info.address, catalog, ", ".join(map(str, held[info.id])) or "none")
    console.print(rows)


async def _confirmed(client: needle.Client) -> Topology:
    return await client.refresh_topology(confirmed=True, timeout=ASK_SECONDS)


def add(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The new node's id. It runs, and has joined.")],
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Wait = 600.0,
) -> None:
    """Have a node that was started with `--join` hold every shard, and the catalog. It fetches the data first, then it
    counts; the cluster serves meanwhile, and goes on with it if this command ends."""

    async def work(client: needle.Client) -> None:
        deadline = time.monotonic() + timeout
        now = await _confirmed(client)
        while node not in now.addresses():
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"{node} has not joined this cluster within {timeout:g} s, so nothing was changed; start it with "
                    f"--join and the address of a node; nodes are {', '.join(now.addresses())}"
                )
            await asyncio.sleep(LOOK_SECONDS)
            now = await _confirmed(client)
        held = _holders(now)
        await _hold(client, now, [*held, *([] if node in held else [node])], deadline)

    run(cluster, work)
    notes.print(f"{node} holds every shard", markup=False)


def remove(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node's id; it may be dead.")],
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Wait = 60.0,
) -> None:
    """Take a node out of the cluster forever; its name is not used again."""

    async def work(client: needle.Client) -> None:
        deadline = time.monotonic() + timeout
        now = await _confirmed(client)
        known = now.node(node)
        if known is None:
            raise InvalidArgument(f"{node} is no node of this cluster; nodes are {', '.join(now.addresses())}")
        if known.state is not NodeState.REMOVED and (now.hosted_by(node) or node in now.catalog):
            rest = [one for one in _holders(now) if one != node]
            if not rest:
                raise InvalidArgument(f"{node} is the only node that holds the data")
            await _hold(client, now, rest, deadline)
        await client.remove_node(node, timeout=max(1.0, deadline - time.monotonic()))

    run(cluster, work)
    notes.print(f"{node} is no longer a member; stop it and delete its data directory", markup=False)


def _holders(now: Topology) -> list[str]:
    """The nodes that hold every shard. Raises InvalidArgument if shards are on different ones."""
    if len({frozenset(info.wanted) for info in now.shards}) > 1:
        raise InvalidArgument(
            "the shards of this cluster are on different nodes each: `needle cluster replicas` says which nodes hold "
            "one, `needle cluster remove` forgets a node that holds none"
        )
    return list(now.shards[0].wanted)


async def _hold(client: needle.Client, now: Topology, nodes: list[str], deadline: float) -> None:
    """Have these nodes hold the catalog and every shard, one after the other."""

    def left() -> float:
        return max(1.0, deadline - time.monotonic())

    await client.set_catalog_nodes(nodes, timeout=left())
    for info in now.shards:
        await client.set_replicas(info.shard, nodes, timeout=left())
