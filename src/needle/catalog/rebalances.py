"""What the catalog's commands about a rebalance make of it. Pure; `state` executes them.

Invariants: one rebalance at a time; a step is taken only from the very state that it was judged by (`revision`), so of
two coordinators, or of one and an operator, the later one is refused and looks again; a step and the decision that it
begins are one entry, so a coordinator that dies leaves no move that its successor does not know.
"""

from __future__ import annotations

import msgspec

from needle.base.config import check_range
from needle.base.errors import InvalidArgument, invalid
from needle.base.ids import GroupId, NodeId, shard_group
from needle.catalog.planning.commands import command_of
from needle.catalog.planning.rebalance import STUCK_MAX, cancel, check_invariants, pause, resume, takers
from needle.protocol.catalog_commands import (
    AskRebalance,
    AssignReplicas,
    CancelMove,
    CatalogCommand,
    RemoveNode,
    StartRebalance,
    StepRebalance,
)
from needle.routing.jobs import Job, JobState, Running, check_over
from needle.routing.planned_moves import Move, MoveRange, MoveReplicas, PreferLeader
from needle.routing.plans import REPLICAS_MAX, WISHED_MAX
from needle.routing.topology import NodeState, Topology

WHY_CHARS_MAX = 2000
COUNT_MAX = 1 << 60
"""Of documents and bytes: the sum of some is an integer that can be sent."""

CHECKED = 2
"""The cluster's version from which on a rebalance is not done while nodes that are to be emptied hold something: nodes
of the release before take its coordinator's word."""

_ASK = {"pause": pause, "resume": resume, "cancel": cancel}
_replace = msgspec.structs.replace


def started(now: Topology, index: int, command: StartRebalance) -> Job:
    """A new one. Raises InvalidArgument while another one is not over."""
    check_over(now.rebalance)
    wish = command.wish
    wish.check()
    if wish.split is not None and wish.split.into != len(now.shards):
        raise invalid("into", wish.split.into, f"the next number, {len(now.shards)}")
    for node in wish.lost if command.healing else ():
        info = now.node(node)
        if info is None or info.maintenance or not (now.hosted_by(node) or node in now.catalog):
            raise InvalidArgument(f"{node} holds nothing that could be lost, or is in maintenance", field="lost")
    return Job(id=index, wish=wish, config=command.config, healing=command.healing)


def asked(now: Topology, command: AskRebalance) -> Job:
    """What people make of it. Raises InvalidArgument if it is another one, or cannot become that."""
    job = _current(now, command.job)
    made = _ASK[command.ask](job)
    return job if made is job else _replace(made, revision=job.revision + 1)


def stepped(now: Topology, index: int, command: StepRebalance) -> tuple[Job, list[CatalogCommand]]:
    """What a coordinator makes of it, and what the catalog decides with it. Raises InvalidArgument if the coordinator
    did not know the last state of it."""
    job, made = _current(now, command.made.id), command.made
    if job.revision != command.revision:
        raise InvalidArgument(f"rebalance {job.id} was changed meanwhile: revision {job.revision}", field="revision")
    if job.over:
        raise InvalidArgument(f"rebalance {job.id} is {job.state}", field="state")
    if (made.wish, made.config, made.healing) != (job.wish, job.config, job.healing) or made.running != tuple(
        one for one in job.running if one in made.running
    ):
        raise invalid("made", made.id, "the same wish and limits, and of what is running the same or less")
    _check_numbers(made, command.start)
    _check_done(now, made)
    running, decisions = made.running, list[CatalogCommand]()
    if command.give_up:
        running, taken_back = _given_up(now, running, command.give_up)
        decisions.append(taken_back)
    if command.start is not None:
        if made.state is not JobState.RUNNING:
            raise invalid("state", str(made.state), f"{JobState.RUNNING} for a move to begin")
        nodes = takers(command.start, _holders(now))[0]
        running = (*running, Running(id=index, move=command.start, nodes=nodes))
        check_invariants(running, made.config.max_concurrent_moves)
        decisions.append(command_of(command.start, command.nonce, command.epoch, made.config))
    if made.state is JobState.DONE and made.wish.replace is not None:  # refused while it holds anything
        decisions.append(RemoveNode(made.wish.replace.old))
    made = _replace(made, running=running, why=made.why[:WHY_CHARS_MAX], revision=job.revision + 1)
    return made, decisions


def _check_done(now: Topology, made: Job) -> None:
    """Raises InvalidArgument if a node that is to be emptied got something after the coordinator's look."""
    if made.state is not JobState.DONE or made.wish.by_hand or now.cluster_version < CHECKED:
        return
    for info in now.nodes:
        if info.state is NodeState.DRAINING and (now.hosted_by(info.id) or info.id in now.catalog):
            raise InvalidArgument(f"{info.id} is to be emptied, and was given a replica meanwhile", field="before")


def _check_numbers(made: Job, start: Move | None) -> None:
    """Bounds of what comes over the network: sums of these are encoded again, and looked at by each round."""
    for name in ("moved_documents", "moved_bytes", "planned_bytes", "moves"):
        check_range(name, getattr(made, name), 0, COUNT_MAX)
    check_range("stuck", made.stuck, 0, STUCK_MAX)
    if start is None:
        return
    check_range("documents", start.documents, 0, COUNT_MAX)
    check_range("bytes", start.bytes, 0, COUNT_MAX)
    if isinstance(start, MoveReplicas | PreferLeader):
        check_range("before", len(start.before), 1, WISHED_MAX)
        check_range("after", len(start.after), 1, REPLICAS_MAX)
    if isinstance(start, MoveReplicas):
        check_range("why", len(start.why), 0, WHY_CHARS_MAX)


def _current(now: Topology, job: int) -> Job:
    known = now.rebalance
    if ended := next((one for one in now.ended if one.id == job), None):
        raise InvalidArgument(f"rebalance {job} is {ended.state}, and another one was started", field="rebalance")
    if known is None or known.id != job:
        there = "there is none" if known is None else f"the last one is {known.id}"
        raise InvalidArgument(f"rebalance {job} is not known any more: {there}", field="rebalance")
    return known


def _given_up(
    now: Topology, running: tuple[Running, ...], id_: int
) -> tuple[tuple[Running, ...], AssignReplicas | CancelMove]:
    """Of replicas: back to the nodes of before, as far as they are the cluster's still. Of ranges: it runs on until its
    source has said whether it was decided."""
    one = next((one for one in running if one.id == id_), None)
    if one is not None and isinstance(one.move, MoveRange):
        return running, CancelMove(one.id)
    if one is None or not isinstance(one.move, MoveReplicas):
        raise invalid("give_up", id_, "a move of replicas or key ranges that is running")
    there, held = now.addresses(), now.holders(one.move.group)
    after = held.wanted if held is not None and set(held.wanted) == set(one.move.after) else one.move.after
    back = [node for node in one.move.before if node in there]
    return tuple(other for other in running if other is not one), AssignReplicas(one.move.group, list(after), back)


def _holders(now: Topology) -> dict[GroupId, tuple[NodeId, ...]]:
    groups = (shard_group(info.shard) for info in now.serving)
    return {group: known.all for group in groups if (known := now.holders(group)) is not None}
