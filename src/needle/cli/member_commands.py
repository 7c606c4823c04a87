"""`needle members`: which nodes hold the cluster's data, adding one, and taking one out.

For clusters of which every node holds every shard, as nodes with `cluster_nodes` found them. Where shards are on some
of the nodes each, `needle cluster replicas` says on which.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated

import typer

import needle
from needle.base.errors import DeadlineExceeded, InvalidArgument
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, shard_group
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, console, notes, print_json, run, table
from needle.protocol.catalog_commands import AssignReplicas
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
        if node not in now.addresses() and now.node(node) is None:
            nodes = ", ".join(now.addresses())
            notes.print(f"{node} has not joined yet (nodes are {nodes}); waiting up to {timeout:g} s", markup=False)
        while node not in now.addresses():
            if now.node(node) is not None:
                raise InvalidArgument(f"{node} was removed from this cluster, and its name is not used again")
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"{node} has not joined this cluster within {timeout:g} s, so nothing was changed; start it with "
                    f"--join and the address of a node; nodes are {', '.join(now.addresses())}"
                )
            await asyncio.sleep(LOOK_SECONDS)
            now = await _confirmed(client)
        await _hold(client, with_node(now, node), deadline)

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
            await _hold(client, without_node(now, node), deadline)
        await client.remove_node(node, timeout=max(1.0, deadline - time.monotonic()))

    run(cluster, work)
    notes.print(f"{node} is no longer a member; stop it and delete its data directory", markup=False)


def with_node(now: Topology, node: NodeId) -> list[AssignReplicas]:
    """What to decide so that `node` holds the catalog and every shard, beside those that do. The order of each shard's
    replicas stays: the first one is its preferred leader."""
    _check_everywhere(now, node)
    return [
        AssignReplicas(group, list(held), [*held, *([] if node in held else [node])])
        for group, held in _holders(now).items()
    ]


def without_node(now: Topology, node: NodeId) -> list[AssignReplicas]:
    """What to decide so that `node` holds nothing. The catalog, which may be on fewer nodes than the shards are, gets
    another one in its place where there is one. Raises InvalidArgument if nobody else holds the data."""
    _check_everywhere(now, node)
    found, holders = [], _holders(now)
    for group, held in holders.items():
        rest = [one for one in held if one != node]
        if group == CATALOG_GROUP and node in held:
            spare = {one: None for others in holders.values() for one in others if one not in held}
            rest += list(spare)[: len(held) - len(rest)]
        if not rest:
            raise InvalidArgument(f"{node} is the only node that holds the data")
        found.append(AssignReplicas(group, list(held), rest))
    return found


def _holders(now: Topology) -> dict[GroupId, tuple[NodeId, ...]]:
    """Which nodes hold the catalog and each shard, by the catalog's last word."""
    groups = [CATALOG_GROUP, *(shard_group(info.shard) for info in now.serving)]
    return {group: held.wanted for group in groups if (held := now.holders(group)) is not None}


def _check_everywhere(now: Topology, node: NodeId) -> None:
    """Raises InvalidArgument if shards are on different nodes. `node` does not count: some may have it already."""
    if len({frozenset(info.wanted) - {node} for info in now.serving}) > 1:
        raise InvalidArgument(
            "the shards of this cluster are on different nodes each: `needle cluster replicas` says which nodes hold "
            "one, `needle cluster remove` forgets a node that holds none"
        )


async def _hold(client: needle.Client, decisions: Sequence[AssignReplicas], deadline: float) -> None:
    """Decide all of it first, which the cluster then goes on with by itself, and wait for one after the other."""

    def left() -> float:
        return max(1.0, deadline - time.monotonic())

    for one in decisions:
        if one.before != one.after:
            await client.change_catalog(one, timeout=left())
    for one in decisions:
        if one.group == CATALOG_GROUP:
            await client.set_catalog_nodes(one.after, timeout=left())
        else:
            await client.set_replicas(one.group - 1, one.after, timeout=left())
