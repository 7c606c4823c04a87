"""`needle shard list | add | remove | split | move`: the parts that a cluster's documents are spread over.

What moves something prints the plan with --dry-run instead, and otherwise follows it until it is over; the cluster goes
on without who watches.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import typer

import needle
from needle.base.config import refuse
from needle.base.ids import NodeId
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, Timeout, console, print_json, run, table
from needle.cli.rebalance_commands import Batch, DryRun, Moves, NoWait, Throttle, carry_out, not_whole, pace
from needle.client.health import ShardHealth
from needle.client.rebalancing import wish_to_move, wish_to_split
from needle.routing.plans import Plan, Wish

LIST_TIMEOUT = 2.0
NUMBER_DIGITS_MAX = 9
Shard = Annotated[int, typer.Argument(metavar="SHARD", help="Its number, as in `needle shard list`.")]

ShardOrCatalog = Annotated[str, typer.Argument(metavar="SHARD", help="The shard's number, or 'catalog'.")]


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """nodes: that should hold it, preferred leader first. leaving: that hold it until these do. state, leader,
    documents, share, problems: as in ShardHealth."""

    shard: int
    state: str
    leader: NodeId | None
    nodes: tuple[NodeId, ...]
    leaving: tuple[NodeId, ...]
    documents: int
    share: float
    problems: list[str]


def list_(cluster: Cluster = DEFAULT_CLUSTER, json: Json = False) -> None:
    """List the shards: who holds and leads each, and what it holds. `needle cluster stats` has sizes and calls."""

    async def work(client: needle.Client) -> list[Listed]:
        health = await client.health_check(timeout=LIST_TIMEOUT)
        known = {info.shard: info for info in client.topology().serving}
        return [
            _listed(number, found, known[number].wanted, known[number].leaving)
            for number, found in health.shards.items()
            if number in known
        ]

    shards = run(cluster, work)
    if json:
        print_json(shards)
        return
    rows = table("shard", "state", "leader", "nodes", "documents", "keys")
    for one in shards:
        nodes = ", ".join([*one.nodes, *(f"{node} (leaving)" for node in one.leaving)])
        keys = f"{one.share:.1%}"
        rows.add_row(str(one.shard), one.state, one.leader or "none", nodes, str(one.documents), keys)
    console.print(rows)


def _listed(number: int, found: ShardHealth, nodes: tuple[NodeId, ...], leaving: tuple[NodeId, ...]) -> Listed:
    return Listed(
        shard=number,
        state=found.state,
        leader=found.leader,
        nodes=nodes,
        leaving=leaving,
        documents=found.documents,
        share=found.share,
        problems=found.problems,
    )


def add(
    dry_run: DryRun = False,
    moves: Moves = 10,
    batch: Batch = 1000,
    throttle: Throttle = 0.1,
    no_wait: NoWait = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Have the cluster serve one shard more, with its fair share of the documents, and show how far it is."""
    config = pace(moves, batch, throttle)

    async def planned(client: needle.Client) -> Plan:
        serving = (await client.refresh_topology(confirmed=True, timeout=timeout)).serving
        return await client.plan_rebalance(Wish(shards=len(serving) + 1), timeout=timeout)

    async def start(client: needle.Client) -> int:
        return await client.add_shard(config, timeout=timeout)

    carry_out(cluster, planned, start, config, dry_run, no_wait, json)


def remove(
    shard: Shard,
    dry_run: DryRun = False,
    moves: Moves = 10,
    batch: Batch = 1000,
    throttle: Throttle = 0.1,
    no_wait: NoWait = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Have the other shards take over what a shard holds, then give it up. Its number is not used again."""
    config, wish = pace(moves, batch, throttle), Wish(retire=(shard,))

    async def start(client: needle.Client) -> int:
        return await client.remove_shard(shard, config, timeout=timeout)

    carry_out(
        cluster, lambda client: client.plan_rebalance(wish, timeout=timeout), start, config, dry_run, no_wait, json
    )


def split(
    shard: Shard,
    dry_run: DryRun = False,
    moves: Moves = 10,
    batch: Batch = 1000,
    throttle: Throttle = 0.1,
    no_wait: NoWait = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Have a new shard take over about half of what a shard owns. Nothing of the other shards moves."""
    config = pace(moves, batch, throttle)

    async def planned(client: needle.Client) -> Plan:
        now = await client.refresh_topology(confirmed=True, timeout=timeout)
        return await client.plan_rebalance(wish_to_split(now, shard), timeout=timeout)

    async def start(client: needle.Client) -> int:
        return await client.split_shard(shard, config, timeout=timeout)

    carry_out(cluster, planned, start, config, dry_run, no_wait, json, not_whole)


def move(
    shard: ShardOrCatalog,
    source: Annotated[str, typer.Argument(metavar="FROM", help="A node that holds it; it may be dead.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The node that holds it from now on, in its place.")],
    dry_run: DryRun = False,
    batch: Batch = 1000,
    throttle: Throttle = 0.1,
    no_wait: NoWait = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Move one replica of a shard, or of the catalog, to another node, while it serves. Nothing else moves. A later
    `needle rebalance` may move it on, where that makes the nodes more even."""
    config, which = pace(1, batch, throttle), which_shard(shard)

    async def planned(client: needle.Client) -> Plan:
        return await client.plan_rebalance(wish_to_move(which, source, target), timeout=timeout)

    async def start(client: needle.Client) -> int:
        return await client.move_replica(which, source, target, config, timeout=timeout)

    carry_out(cluster, planned, start, config, dry_run, no_wait, json, not_whole)


def which_shard(shard: str) -> int | Literal["catalog"]:
    """Raises InvalidArgument."""
    if shard == "catalog":
        return "catalog"
    if not (shard.isascii() and shard.isdecimal() and len(shard) <= NUMBER_DIGITS_MAX):
        raise refuse("SHARD", shard, "the number of a shard, or catalog")
    return int(shard)
