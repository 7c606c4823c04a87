"""Changing who is in a group: who comes must be who it was, and a majority of the new voters must answer.

It must not know what a state machine stores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from needle.base.errors import InvalidArgument, NeedleError, OutcomeUnknown
from needle.base.ids import GroupId, NodeId, group_name
from needle.multiraft.engine import Engine
from needle.multiraft.group import Group
from needle.multiraft.reads import not_leader
from needle.raft import membership
from needle.raft.messages import ConfChange
from needle.raft.state import LEADER


async def change_members(
    engine: Engine, group: GroupId, voters: Sequence[NodeId], learners: Sequence[NodeId], timeout: float, term: int
) -> None:
    """See `Host.change_membership`."""
    replica = engine.serving(group)
    deadline = engine.clock.monotonic() + timeout
    await _meet_new(engine, replica, [*voters, *learners])
    await _hear_majority(engine, replica, voters, deadline)
    raft, now = replica.raft, engine.clock.monotonic()
    if term and raft.term != term:
        raise not_leader(group, raft.leader)
    target = (tuple(sorted(set(voters))), tuple(sorted(set(learners))))
    index, term = raft.propose_conf_change(ConfChange(voters=target[0], learners=target[1]), now)
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    replica.proposals.add(index, term, future, deadline)
    engine.wake(replica)
    await future

    def late() -> NeedleError:
        return OutcomeUnknown(f"the membership change of {group_name(group)} was not finished in time", group=group)

    await replica.conditions.until(lambda: not raft.conf.voters_outgoing, deadline, late)
    if (tuple(sorted(raft.conf.voters)), tuple(sorted(raft.conf.learners))) != target:
        raise OutcomeUnknown(f"another membership change of {group_name(group)} overtook this one", group=group)


async def _meet_new(engine: Engine, replica: Group, wanted: Sequence[NodeId]) -> None:
    """On a leader: the nodes that are no members yet are who they were when they were last heard. A name is not used
    again for another data directory."""
    members = membership.members(replica.raft.conf)
    new = [node for node in wanted if node not in members]
    for node, why in zip(new, await asyncio.gather(*map(engine.lives.meet, new)), strict=True):
        if why:
            raise InvalidArgument(
                f"node {node} cannot be added: {why}. A name is used for one data directory only; start the node "
                "with an empty directory and a new name",
                field="node",
            )


async def _hear_majority(engine: Engine, replica: Group, voters: Sequence[NodeId], deadline: float) -> None:
    """On a leader: a majority of `voters` answers now. With another set nothing could be committed any more, not even
    the way back. A leader that has just begun has heard nobody yet, so it waits a little."""
    raft, within, needed = replica.raft, engine.config.election_timeout, len(set(voters)) // 2 + 1

    def silent() -> list[NodeId]:
        return membership.silent(raft.progress(), engine.node_id, voters, engine.clock.monotonic(), within)

    def late() -> NeedleError:
        together = ", ".join(sorted(set(voters)))
        return InvalidArgument(
            f"{group_name(replica.id)} could not work with the voters {together}: {needed} of them must answer, "
            f"and {', '.join(silent())} did not within {within:g} s. Start them, or leave them out; "
            f"a new node is added as a learner first",
            field="voters",
        )

    def enough() -> bool:
        return raft.role is not LEADER or len(set(voters)) - len(silent()) >= needed

    engine.wake(replica)
    await replica.conditions.until(enough, min(deadline, engine.clock.monotonic() + 2 * within), late)
