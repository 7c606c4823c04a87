"""`needle maintenance enter | exit | status`: nodes that lead nothing while somebody works on them."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import msgspec
import typer

import needle
from needle.base.errors import InvalidArgument, NeedleError, Unavailable
from needle.base.ids import NodeId
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, Timeout, console, notes, print_json, run, table
from needle.routing.topology import NodeInfo, NodeState

LOOK_SECONDS = 0.2
Node = Annotated[str, typer.Argument(metavar="NODE", help="The node's id, as in `needle status`.")]


class Resting(msgspec.Struct, frozen=True, kw_only=True):
    """A node, and what it leads. answers: whether it does; then `leads` is what it says itself."""

    node: NodeId
    maintenance: bool
    answers: bool
    leads: list[int]


def enter(node: Node, cluster: Cluster = DEFAULT_CLUSTER, timeout: Timeout = 10.0) -> None:
    """Move leadership off a node and keep it off, also after its restart; the node still replicates and votes."""
    run(cluster, lambda client: client.enter_maintenance_mode(node, timeout=timeout))
    notes.print(f"{node} is in maintenance; `needle maintenance exit {node}` ends it", markup=False)


def exit_(node: Node, cluster: Cluster = DEFAULT_CLUSTER, timeout: Timeout = 10.0) -> None:
    """Bring a node back after maintenance; waits until it answers and has caught up."""

    async def work(client: needle.Client) -> None:
        deadline, said = time.monotonic() + timeout, ""
        while True:
            try:
                return await client.exit_maintenance_mode(node, timeout=max(0.01, deadline - time.monotonic()))
            except Unavailable as error:  # it was started a moment ago
                if time.monotonic() + LOOK_SECONDS > deadline:
                    raise
                if error.message != said:
                    notes.print(f"{error.message}; waiting", markup=False, soft_wrap=True)
                said = error.message
                await asyncio.sleep(LOOK_SECONDS)

    run(cluster, work)
    notes.print(f"{node} is back", markup=False)


def status(
    node: Annotated[str | None, typer.Argument(metavar="[NODE]", help="Only this node; default: all.")] = None,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 5.0,
    json: Json = False,
) -> None:
    """Show which nodes are in maintenance, by the catalog's last word, and which shards each still leads."""
    found = run(cluster, lambda client: _look(client, node, timeout))
    if json:
        print_json(found)
        return
    rows = table("node", "state", "leads")
    for one in found:
        state = "in maintenance" if one.maintenance else "in service"
        leads = ", ".join(map(str, one.leads)) or "none"
        rows.add_row(one.node, state if one.answers else f"{state}, does not answer", leads if one.answers else "?")
    console.print(rows)


async def _look(client: needle.Client, node: str | None, timeout: float) -> list[Resting]:
    now = await client.refresh_topology(confirmed=True, timeout=timeout)
    nodes = [info for info in now.nodes if info.state is not NodeState.REMOVED and node in (None, info.id)]
    if not nodes:
        raise InvalidArgument(
            f"{node} is no node of this cluster; nodes are {', '.join(now.addresses())}", field="node"
        )
    replicas = await client.cluster_status(timeout=timeout)

    async def one(info: NodeInfo) -> Resting:
        try:
            await client.describe_node(info.id, timeout=timeout)
        except NeedleError:
            return Resting(node=info.id, maintenance=bool(info.maintenance), answers=False, leads=[])
        mine = [r for r in replicas if r.node == info.id and r.status is not None and r.status.state == "Leader"]
        return Resting(
            node=info.id, maintenance=bool(info.maintenance), answers=True, leads=[replica.shard for replica in mine]
        )

    return list(await asyncio.gather(*map(one, nodes)))
