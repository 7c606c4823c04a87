"""`needle node weight | zone`: what share of the replicas a node takes, and which other nodes it fails with.

Each prints what it would move with --dry-run; of a node's own setting, which only the node knows, by its word.
Invariant: the change and the rebalance that follows are one entry of the catalog, so where the second is refused
nothing is changed.
"""

from __future__ import annotations

from typing import Annotated

import typer

import needle
from needle.base.config import refuse
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, Timeout, notes
from needle.cli.rebalance_commands import Batch, DryRun, Moves, NoWait, Throttle, carry_out, not_emptied, pace
from needle.routing.plans import Plan, Wish

Node = Annotated[str, typer.Argument(metavar="NODE", help="The node's id, as in `needle node list`.")]


def weight(
    node: Node,
    weight: Annotated[
        str, typer.Argument(metavar="WEIGHT", help="Its share beside others', 0 for none; or 'own' for its setting.")
    ],
    dry_run: DryRun = False,
    moves: Moves = 10,
    batch: Batch = 1000,
    throttle: Throttle = 0.1,
    no_wait: NoWait = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Say how large a node's share of the replicas is, whatever its own settings say, then rebalance accordingly."""
    try:
        share = None if weight == "own" else float(weight)
    except ValueError:
        raise refuse("WEIGHT", weight, "a number from 0 to 1000, or own") from None
    config, own = pace(moves, batch, throttle), share

    async def planned(client: needle.Client) -> Plan:
        nonlocal own
        own = (await client.describe_node(node, timeout=timeout)).weight if share is None else share
        return await client.plan_rebalance(Wish(weights={node: own}), timeout=timeout)

    async def start(client: needle.Client) -> int:
        id_ = await client.rebalance_by_weight(node, share, config, timeout=timeout)
        notes.print(f"the weight of {node} is {'its own' if share is None else weight} from now on", markup=False)
        return id_

    def refused(made: Plan) -> str:
        return not_emptied(made) if own == 0 else made.missing()

    carry_out(cluster, planned, start, config, dry_run, no_wait, json, refused)


def zone(
    node: Node,
    zone: Annotated[str | None, typer.Argument(metavar="ZONE", help="Its failure domain, such as its rack.")] = None,
    own: Annotated[bool, typer.Option("--own", help="The zone in its own settings counts again.")] = False,
    dry_run: DryRun = False,
    moves: Moves = 10,
    batch: Batch = 1000,
    throttle: Throttle = 0.1,
    no_wait: NoWait = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Say which zone a node is in, whatever its own settings say, then rebalance, so that no two replicas of a shard
    share a zone without need."""
    if own == (zone is not None):
        raise refuse("ZONE", zone or "nothing", "either ZONE or --own")
    config = pace(moves, batch, throttle)

    async def planned(client: needle.Client) -> Plan:
        said = (await client.describe_node(node, timeout=timeout)).zone if zone is None else zone
        return await client.plan_rebalance(Wish(zones={node: said}), timeout=timeout)

    async def start(client: needle.Client) -> int:
        id_ = await client.rebalance_by_zone(node, zone, config, timeout=timeout)
        notes.print(f"the zone of {node} is {'its own' if own else zone} from now on", markup=False)
        return id_

    carry_out(cluster, planned, start, config, dry_run, no_wait, json)
