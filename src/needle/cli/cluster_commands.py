"""`needle status | leader | step-down | force-election | maintenance`: what the nodes do, and changing it."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

import needle
from needle.base.config import check_range
from needle.base.errors import NeedleError, NoQuorum, Unavailable
from needle.cli import shard_commands
from needle.cli.common import (
    DEFAULT_CLUSTER,
    Cluster,
    Json,
    Timeout,
    addresses,
    as_json,
    console,
    notes,
    print_json,
    run,
    state_of,
    table,
)
from needle.cli.conditions import Condition, NodeView, conditions, lag_of, leader_of

STATUS_TIMEOUT = 2.0
Shard = Annotated[
    int | None, typer.Option("--shard", help="Of a cluster with several shards: the number of the one that is meant.")
]
Node = Annotated[str, typer.Argument(metavar="NODE", help="The node's id, as in `needle status`.")]


async def look(client: needle.Client, known: list[str], timeout: float = STATUS_TIMEOUT) -> list[NodeView]:
    """What every node of the cluster says, asked in parallel: those in `known` and those that they name."""
    names = {address: node for node, address in client.nodes().items()}
    views = await _ask(client, list(dict.fromkeys([*known, *names])), timeout)
    leader = leader_of(views)
    names |= {peer.address: peer.id for peer in leader.peers} if leader is not None else {}
    asked = {view.address for view in views}
    views += await _ask(client, [address for address in names if address not in asked], timeout)
    statuses = [view.status for view in views if view.status is not None]
    newest = max(statuses, key=lambda status: status.commit_index, default=None)
    members = [*newest.voters, *newest.learners] if newest is not None else list(names.values())
    named: dict[str, NodeView] = {}
    for view in views:
        if view.status is None:
            view = NodeView(node=names.get(view.address, view.node), address=view.address, error=view.error)
            if view.node not in members and view.address not in known:
                continue  # it was removed from the cluster; nodes remember its address
        if view.status is not None or view.node not in named:  # a node may be known by two addresses
            named[view.node] = view
    return sorted(named.values(), key=lambda view: view.node)


async def _ask(client: needle.Client, known: list[str], timeout: float) -> list[NodeView]:
    async def ask(address: str) -> NodeView:
        try:
            status = await client.node_status(address, timeout=timeout)
        except NeedleError as error:
            return NodeView(node=address, address=address, error=error.message)
        return NodeView(node=status.node_id, address=address, status=status)

    return list(await asyncio.gather(*(ask(address) for address in known)))


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option("--every", help="Seconds between two looks with --watch.")] = 1.0,
    cluster: Cluster = DEFAULT_CLUSTER,
    json: Json = False,
) -> None:
    """Show every node's state and the alert conditions that hold now. Exit code 1 if a critical one holds.

    Of a sharded cluster: every replica of every shard, what is not well, and how even the shards are.
    """
    check_range("--every", every, 0.1, 3600)
    known = addresses(cluster)

    async def once(client: needle.Client) -> tuple[dict[str, object], RenderableType, bool]:
        """As JSON, as a table, and whether something critical holds."""
        if client.has_catalog:
            health, replicas, critical = await shard_commands.look(client, known)
            shown = shard_commands.status_table(health, replicas)
            return shard_commands.status_json(health, replicas), shown, critical
        return _shown(await look(client, known))

    async def again(client: needle.Client) -> None:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                found, shown, _ = await once(client)
                if json:
                    print_json(found)
                else:
                    live.update(shown, refresh=True)
                await asyncio.sleep(every)

    if watch:
        run(cluster, again, even_if_down=True)
    try:
        found, shown, critical = run(cluster, once, even_if_down=True)
    except NoQuorum:  # no node says what kind of cluster this is: that is its status
        found, shown, critical = _shown([NodeView(node=at, address=at, error="it does not answer") for at in known])
    if json:
        print_json(found)
    else:
        console.print(shown)
    if critical:
        raise typer.Exit(1)


def _shown(views: list[NodeView]) -> tuple[dict[str, object], RenderableType, bool]:
    critical = any(condition.severity == "critical" for condition in conditions(views))
    return _status_json(views), _status_table(views), critical


def _status_json(views: list[NodeView]) -> dict[str, object]:
    leader = leader_of(views)
    nodes = []
    for view in views:
        lag = lag_of(view.node, views)
        shown = {"lag_entries": lag[0], "lag_ms": lag[1]} if lag is not None else {}
        nodes.append({**as_json(view), **shown})
    return {"leader": leader.node_id if leader else None, "nodes": nodes, "conditions": as_json(conditions(views))}


def _status_table(views: list[NodeView]) -> RenderableType:
    rows = table("node", "address", "state", "term", "commit", "applied", "lag", "documents", "lease")
    for view in views:
        if view.status is None:
            rows.add_row(view.node, view.address, Text("unreachable", style="bold red"))
            continue
        status = view.status
        lag = lag_of(view.node, views)
        rows.add_row(
            view.node,
            view.address,
            state_of(status),
            str(status.current_term),
            str(status.commit_index),
            str(status.last_applied),
            "?" if lag is None else f"{lag[0]}, {lag[1]:.0f} ms",
            str(status.documents),
            f"{status.lease_remaining * 1000:.0f} ms" if status.lease_remaining > 0 else "",
        )
    return Group(rows, *(_condition_line(condition) for condition in conditions(views)))


def _condition_line(condition: Condition) -> Text:
    style = "bold red" if condition.severity == "critical" else "yellow"
    return Text.assemble((condition.severity.upper(), style), f" {condition} - {condition.action}")


def leader(shard: Shard = None, cluster: Cluster = DEFAULT_CLUSTER, json: Json = False) -> None:
    """Print the leader's node id. Exit code 1 if there is none."""

    async def work(client: needle.Client) -> str | None:
        found = await client.shard_leader(shard)
        if found is None:
            return None
        try:  # what others believe may be old: ask the node itself
            status = await client.node_status(found, shard=shard, timeout=STATUS_TIMEOUT)
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

    async def work(client: needle.Client) -> str | None:
        return await client.step_down(to, shard=shard, timeout=timeout) or await _led_by_any(client, shard, timeout)

    _report_leader(run(cluster, work), json)


def force_election(
    node: Annotated[
        str | None, typer.Argument(metavar="[NODE]", help="The node that campaigns; default: one that does not lead.")
    ] = None,
    shard: Shard = None,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Have a node start an election now. Safe at any time: a leader that a majority hears stays."""

    async def work(client: needle.Client) -> str | None:
        await client.force_new_election(node, shard=shard, timeout=timeout)
        return await _led_by_any(client, shard, timeout)

    _report_leader(run(cluster, work), json)


async def _led_by_any(client: needle.Client, shard: int | None, timeout: float) -> str | None:
    """The leader's id as soon as there is one; None when there is none within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    found = await client.shard_leader(shard)
    while found is None and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
        found = await client.shard_leader(shard)
    return found


def _report_leader(found: str | None, json: bool) -> None:
    if found is None:
        raise Unavailable("no node leads yet")
    if json:
        print_json({"leader": found})
    else:
        notes.print(f"{found} leads", markup=False)


def maintenance_enter(node: Node, cluster: Cluster = DEFAULT_CLUSTER, timeout: Timeout = 10.0) -> None:
    """Move leadership off a node and keep it off; the node still replicates and votes."""
    _maintenance(node, True, cluster, timeout)
    notes.print(f"{node} is in maintenance; `needle maintenance exit {node}` ends it", markup=False)


def maintenance_exit(node: Node, cluster: Cluster = DEFAULT_CLUSTER, timeout: Timeout = 10.0) -> None:
    """Bring a node back after maintenance, once it has caught up."""
    _maintenance(node, False, cluster, timeout)
    notes.print(f"{node} is back", markup=False)


def _maintenance(node: str, on: bool, cluster: str, timeout: float) -> None:
    async def work(client: needle.Client) -> None:
        change = client.enter_maintenance_mode if on else client.exit_maintenance_mode
        await change(node, timeout=timeout)

    run(cluster, work)
