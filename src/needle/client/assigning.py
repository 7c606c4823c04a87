"""Telling the catalog which nodes hold a group's replicas, and waiting until they do.

Invariant: it may be repeated; what was decided goes on without who asked for it. It must not know how replicas move.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from needle.base.errors import DeadlineExceeded, InvalidArgument, NeedleError, Unavailable
from needle.base.ids import GroupId, NodeId, group_name
from needle.client.shards import ClusterShards
from needle.client.values import check_ids
from needle.protocol.catalog_commands import AssignReplicas
from needle.routing.meant import HOW_MADE

LOOK_SECONDS = 0.2
ASK_SECONDS = 2.0


async def assign(
    shards: ClusterShards, group: GroupId, nodes: Iterable[NodeId], timeout: float, *, wait: bool = True
) -> None:
    """Have `nodes`, the preferred leader first, hold the replicas of a group; and wait until they and no others do,
    unless `wait` is False.

    Raises InvalidArgument for nodes that the cluster does not have, or when another command assigns others meanwhile;
    DeadlineExceeded when it takes longer than `timeout` seconds, with what it waits for: the cluster goes on with it.
    """
    wanted, loop = check_ids(nodes, "nodes", "a list of ids of nodes"), asyncio.get_running_loop()
    deadline = loop.time() + timeout
    holders = (await shards.confirmed(timeout)).holders(group)
    if holders is None:
        raise Unavailable(f"{group_name(group)} is not there yet: {HOW_MADE}")
    command = AssignReplicas(group, list(holders.wanted), wanted)
    decided = (await shards.command(command, max(0.001, deadline - loop.time()))).version
    while wait and (waits_for := await _lacking(shards, group, wanted, decided)):
        if loop.time() >= deadline:
            raise DeadlineExceeded(
                f"{group_name(group)} is assigned to {', '.join(wanted)}, and they do not all hold it after "
                f"{timeout:g} s: {waits_for}. The cluster goes on with it; the same call waits again",
                group=group,
            )
        await asyncio.sleep(LOOK_SECONDS)


async def _lacking(shards: ClusterShards, group: GroupId, wanted: list[NodeId], decided: int) -> str:
    """Why it is not done yet; "" when it is. decided: the catalog's version since when these nodes should hold it."""
    now = await shards.refresh(shards.topology().version + 1, LOOK_SECONDS)
    holders = now.holders(group)
    if holders is None or now.version < decided:
        return "this client does not know yet what the catalog has decided last"
    if sorted(holders.wanted) != sorted(wanted):
        raise InvalidArgument(
            f"{group_name(group)} was assigned to {', '.join(wanted)}, and meanwhile, by another command, to "
            f"{', '.join(holders.wanted)}",
            field="nodes",
        )
    try:
        status = await shards.group(group - 1).leaders_status(ASK_SECONDS)
    except NeedleError as error:
        return error.message
    if sorted(status.voters) == sorted(wanted) and not status.learners and not holders.leaving:
        return ""
    if status.waits_for:
        return status.waits_for
    return f"its voters are {', '.join(status.voters)}, its learners {', '.join(status.learners) or 'none'}"
