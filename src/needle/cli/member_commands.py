"""`needle members`: which nodes vote, adding one, removing one, and one that has another address."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer

import needle
from needle.base.config import parse_node
from needle.base.errors import DeadlineExceeded, InvalidArgument, NeedleError, Unavailable
from needle.base.model import RaftStatus
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, console, notes, print_json, run, table

LOOK_SECONDS = 0.1
ANSWER_SECONDS = 5.0
START_SECONDS = 10.0
Wait = Annotated[float, typer.Option("--timeout", min=1, help="Seconds for the whole change.")]


async def _status(client: needle.Client) -> RaftStatus:
    """Of the one group whose members these are. Raises InvalidArgument for a sharded cluster."""
    if client.has_catalog:
        raise InvalidArgument(
            "a sharded cluster has no members: its catalog says which nodes hold which shard; `needle cluster nodes` "
            "lists them, and `needle serve --join` adds one"
        )
    return await client.status()


def members(context: typer.Context, cluster: Cluster = DEFAULT_CLUSTER, json: Json = False) -> None:
    """List the voters and learners; add, move or remove a node."""
    if context.invoked_subcommand is not None:
        return

    async def work(client: needle.Client) -> RaftStatus:
        return await _status(client)

    status = run(cluster, work)
    if json:
        print_json({"voters": status.voters, "learners": status.learners})
        return
    rows = table("node", "member as")
    for node in status.voters:
        rows.add_row(node, "voter")
    for node in status.learners:
        rows.add_row(node, "learner")
    console.print(rows)


def add(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The new node as name=host:port.")],
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Wait = 600.0,
) -> None:
    """Add a running node that was started with `--wait`: as a learner, then, once it has caught up, as a voter."""
    name, address = parse_node(node, "NODE")

    async def work(client: needle.Client) -> None:
        deadline = time.monotonic() + timeout
        status = await _status(client)
        if name in status.voters:
            raise InvalidArgument(f"{name} is a voter already")
        added = name not in status.learners
        if added:
            await _check_there(client, name, address, "with `needle serve --wait`")
            await client.change_membership(
                status.voters, [*status.learners, name], addresses={name: address}, timeout=timeout
            )
        notes.print(f"{name} is a learner; waiting until it has caught up", markup=False)
        while not _caught_up(status := await client.status(), name):
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"{name} has not caught up within {timeout:g} s; "
                    + ("it is no learner any more" if added and await _undone(client, name) else "it stays a learner")
                )
            await asyncio.sleep(LOOK_SECONDS)
        learners = [learner for learner in status.learners if learner != name]
        await client.change_membership([*status.voters, name], learners, timeout=timeout)

    run(cluster, work)
    notes.print(f"{name} is a voter", markup=False)


async def _check_there(client: needle.Client, name: str, address: str, how: str) -> None:
    """Raises unless that node answers at that address, or does in a moment because it is just being started: as a
    learner that is not there it would be waited for. how: it is to be started."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            status = await client.node_status(address, timeout=ANSWER_SECONDS)
            break
        except NeedleError as error:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{name} does not answer at {address}, so nothing was changed; start it there first, {how}: "
                    f"{error.message}"
                ) from error
        await asyncio.sleep(LOOK_SECONDS)
    if status.node_id != name:
        raise InvalidArgument(f"the node at {address} is {status.node_id}, not {name}", field="node")


async def _undone(client: needle.Client, name: str) -> bool:
    """Take the learner away again; whether that was done."""
    try:
        status = await client.status(timeout=ANSWER_SECONDS)
        learners = [learner for learner in status.learners if learner != name]
        await client.change_membership(status.voters, learners, timeout=ANSWER_SECONDS)
    except NeedleError:
        return False
    return True


def _caught_up(status: RaftStatus, name: str) -> bool:
    return any(peer.id == name and peer.match_index > 0 and peer.lag_entries == 0 for peer in status.peers)


def move(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node and its new address as name=host:port.")],
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Wait = 60.0,
) -> None:
    """Tell the others the new address of a member, which was restarted there with its data directory."""
    name, address = parse_node(node, "NODE")

    async def work(client: needle.Client) -> None:
        status = await _status(client)
        if name not in [*status.voters, *status.learners]:
            raise InvalidArgument(f"{name} is not a member; members are {', '.join(status.voters + status.learners)}")
        await _check_there(client, name, address, "with its data directory")
        await client.change_membership(status.voters, status.learners, addresses={name: address}, timeout=timeout)

    run(cluster, work)
    notes.print(f"{name} is at {address} now", markup=False)


def remove(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node's id; it may be dead.")],
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Wait = 60.0,
) -> None:
    """Take a node out of the cluster forever; its name is not used again."""

    async def work(client: needle.Client) -> None:
        status = await _status(client)
        if node not in [*status.voters, *status.learners]:
            raise InvalidArgument(f"{node} is not a member; members are {', '.join(status.voters + status.learners)}")
        if status.voters == [node]:
            raise InvalidArgument(f"{node} is the only voter")
        voters = [voter for voter in status.voters if voter != node]
        learners = [learner for learner in status.learners if learner != node]
        await client.change_membership(voters, learners, timeout=timeout)

    run(cluster, work)
    notes.print(f"{node} is no longer a member; stop it and delete its data directory", markup=False)
