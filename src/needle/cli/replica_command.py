"""`needle shard replicas`: which nodes hold a shard, or the catalog, by name.

It is one decision of the catalog and no rebalance, so nothing paces, pauses or takes it back; it also goes where a plan
would not, as to a node that does not answer yet. What the catalog would refuse is judged here by the catalog's own
rules, so that --dry-run tells it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Literal

import typer

import needle
from needle.base.errors import NeedleError
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name, shard_group
from needle.base.schema import refuse
from needle.catalog.planning.commands import AT_ONCE
from needle.catalog.planning.running import Seen, now_running
from needle.catalog.state import execute
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, notes, print_json, run
from needle.cli.rebalance_commands import LOOK_SECONDS, DryRun, show_moves
from needle.cli.shard_commands import ShardOrCatalog, which_shard
from needle.client.replacing import with_size
from needle.protocol.catalog_commands import AssignReplicas
from needle.routing.jobs import Running
from needle.routing.planned_moves import MoveReplicas, PreferLeader, size_in_words
from needle.routing.stats import RebalanceStats
from needle.routing.topology import Topology

ASK_SECONDS = 5.0
STATUS_SECONDS = 2.0


def replicas(
    shard: ShardOrCatalog,
    nodes: Annotated[
        list[str], typer.Argument(metavar="NODE", help="All nodes that hold it from now on, preferred leader first.")
    ],
    dry_run: DryRun = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return once it is decided; `needle status` shows how far it is.")
    ] = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait until they hold it.")] = 600.0,
    json: Json = False,
) -> None:
    """Put a shard's replicas, or the catalog's, on these nodes, while it serves; show how far it is until they are.

    A node that is new to it fetches the data first; then it takes the place of one that is not named any more. May be
    repeated after an error, and the cluster goes on without who waits.
    """
    which = which_shard(shard)
    group = CATALOG_GROUP if which == "catalog" else shard_group(which)

    async def work(client: needle.Client) -> None:
        now = await client.refresh_topology(confirmed=True, timeout=min(timeout, ASK_SECONDS))
        command = _judged(now, group, nodes)
        stats = await client.get_stats(timeout=min(timeout, ASK_SECONDS))
        move = with_size(
            MoveReplicas(group=group, before=tuple(command.before), after=tuple(nodes), documents=0, bytes=0), stats
        )
        silent = _silent(move, stats)
        if dry_run:
            _show(move, silent, json)
            return
        if silent:
            notes.print(f"waits for {', '.join(silent)}: no answer now", markup=False)
        if no_wait and which == "catalog":
            await client.set_catalog_nodes(nodes, wait=False, timeout=min(timeout, ASK_SECONDS))
        elif no_wait:
            await client.set_replicas(int(which), nodes, wait=False, timeout=min(timeout, ASK_SECONDS))
        else:
            await _followed(client, which, move, timeout, json)
        if json:
            sizes = {"documents": move.documents, "bytes": move.bytes}
            print_json({"shard": shard, "nodes": nodes, **sizes, "is_complete": not no_wait})
        else:
            what = "is to be" if no_wait else "is"
            notes.print(f"{group_name(group)} {what} on {', '.join(nodes)}", markup=False)

    run(cluster, work)


def _judged(now: Topology, group: GroupId, nodes: list[str]) -> AssignReplicas:
    """The decision. Raises what the catalog would say to it."""
    held = now.holders(group)
    if held is None:
        known = ", ".join(str(info.shard) for info in now.serving)
        raise refuse("SHARD", "catalog" if group == CATALOG_GROUP else group - 1, f"one of {known}, or catalog")
    command = AssignReplicas(group, list(held.wanted), nodes)
    result = execute(now, now.version + 1, command)[1]
    if isinstance(result, NeedleError):
        raise result
    return command


def _silent(move: MoveReplicas, stats: RebalanceStats) -> list[NodeId]:
    """Those that are to get the data, and do not answer."""
    return [node for node in move.added if (load := stats.nodes.get(node)) is None or not load.alive]


def _show(move: MoveReplicas, silent: list[NodeId], json: bool) -> None:
    moves: list[MoveReplicas | PreferLeader] = []
    if move.added or move.removed:
        moves.append(move)
    elif move.before != move.after:
        moves.append(PreferLeader(group=move.group, before=move.before, after=move.after))
    show_moves(moves, json, AT_ONCE)
    if silent:
        notes.print(f"waits: {', '.join(silent)} does not answer, so it begins only then", markup=False)


async def _followed(
    client: needle.Client, which: int | Literal["catalog"], move: MoveReplicas, timeout: float, json: bool
) -> None:
    """Until it is done; a line whenever something changes. Raises as `Client.set_replicas`."""
    if which == "catalog":
        work = asyncio.ensure_future(client.set_catalog_nodes(move.after, timeout=timeout))
    else:
        work = asyncio.ensure_future(client.set_replicas(which, move.after, timeout=timeout))
    last, deadline = "", time.monotonic() + timeout
    try:
        while not work.done() and time.monotonic() < deadline:
            if not json and (line := await _progress(client, which, move)) and line != last:
                notes.print(line, markup=False, soft_wrap=True)
                last = line
            await asyncio.wait([work], timeout=LOOK_SECONDS)
        await work
    finally:
        work.cancel()


async def _progress(client: needle.Client, which: int | Literal["catalog"], move: MoveReplicas) -> str:
    """How far it is, in a line; "" while nobody says."""
    group = move.group
    try:
        status = await (
            client.catalog_status(timeout=STATUS_SECONDS)
            if which == "catalog"
            else client.status(which, timeout=STATUS_SECONDS)
        )
    except NeedleError:  # an election, maybe; it is looked at again, and the call itself tells what is lasting
        return ""
    seen = Seen(
        topology=client.topology(),
        voters={group: frozenset(status.voters)},
        learners={group: frozenset(status.learners)},
        copied={},
        fetched={group: status.fetched},
    )
    (one,) = now_running([Running(id=0, move=move, nodes=move.added)], seen)
    copied = f", {size_in_words(one.copied)} of {size_in_words(move.bytes)} copied" if move.bytes else ""
    why = f"; {status.waits_for}" if status.waits_for else ""
    return f"{one.phase}: {move.in_words()}{copied}{why}"
