"""`needle cluster replication-factor`: how many replicas each shard has."""

from __future__ import annotations

from typing import Annotated

import typer

import needle
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, Timeout, notes, print_json, run
from needle.cli.rebalance_commands import Batch, DryRun, Moves, NoWait, Throttle, carry_out, pace
from needle.client.replication import not_replicated
from needle.routing.plans import Plan
from needle.routing.replication import told_of
from needle.routing.topology import Topology


def replication_factor(
    replicas: Annotated[
        int | None,
        typer.Argument(metavar="N", help="Replicas of each shard, 1 to 7. Left out: print what it is."),
    ] = None,
    dry_run: DryRun = False,
    moves: Moves = 10,
    batch: Batch = 1000,
    throttle: Throttle = 0.1,
    no_wait: NoWait = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Say how many replicas each shard has, then rebalance: replicas are added, or those that are too many go."""
    if replicas is None:
        _show(cluster, timeout, json)
        return
    number, config = replicas, pace(moves, batch, throttle)
    seen = Topology()

    async def planned(client: needle.Client) -> Plan:
        nonlocal seen
        seen = await client.refresh_topology(confirmed=True, timeout=timeout)
        return await client.plan_replication_factor(number, timeout=timeout)

    def refused(made: Plan) -> str:
        return not_replicated(seen, number, made)

    async def start(client: needle.Client) -> int | None:
        id_ = await client.set_replication_factor(number, config, timeout=timeout)
        if not json:
            told = [f"each shard is to have {number} replicas from now on", told_of(number)]
            notes.print("\n".join(filter(None, told)), markup=False, soft_wrap=True)
        return id_

    carry_out(cluster, planned, start, config, dry_run, no_wait, json, refused)


def _show(cluster: str, timeout: float, json: bool) -> None:
    async def work(client: needle.Client) -> Topology:
        return await client.refresh_topology(confirmed=True, timeout=timeout)

    now = run(cluster, work)
    others = {info.shard: len(info.wanted) for info in now.serving if len(info.wanted) != now.replication_factor}
    if json:
        print_json({"replication_factor": now.replication_factor, "others": {str(k): n for k, n in others.items()}})
        return
    typer.echo(now.replication_factor)
    for shard, count in others.items():
        if now.replicas or count < now.replication_factor:
            what = "`needle rebalance` changes that where it can"
        else:  # nobody has said a number: see the planner
            what = f"plans keep them; `needle cluster replication-factor {count}` says so for all"
        notes.print(f"shard {shard} has {count}: {what}", markup=False)
