"""What happens while a cluster grows and shrinks, step by step, by the committed logs: for faults that come just then.

Pure: it compares what was before and after an entry. Steps of moves of key ranges are told as their logs take them, the
rest as the catalog and the groups' configurations say. It must not know faults.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

import msgspec

from needle.base.ids import CATALOG_GROUP, GroupId, shard_group
from needle.protocol.move_commands import (
    Confirm,
    Forget,
    Freeze,
    GiveUp,
    Import,
    MoveCommand,
    Own,
    PrepareMove,
    Release,
    Thaw,
)
from needle.raft.messages import ConfState
from needle.routing.jobs import Running
from needle.routing.planned_moves import MoveRange
from needle.routing.topology import MoveState, Topology

STEPS: Final = tuple(
    step.__name__ for step in (PrepareMove, Import, Freeze, Thaw, Confirm, Release, Own, GiveUp, Forget)
)
STATES: Final = tuple(f"move {state}" for state in MoveState)
REPLICAS: Final = ("assigned", "learner", "joint", "voters", "confirmed")
REBALANCE: Final = ("begun", "ended", "job", "founded", "retired")
ALL: Final = (*STEPS, *STATES, *REPLICAS, *REBALANCE)


class Happening(msgspec.Struct, frozen=True):
    """what: one of ALL. source, target: the groups that it is about; the same one, where only one is. move: the
    catalog's id of a move of key ranges, 0 for anything else."""

    what: str
    source: GroupId
    target: GroupId
    move: int = 0


def step_of(now: Topology, group: GroupId, command: MoveCommand) -> Happening:
    """A log took a step of a move."""
    info, name = now.move(command.move), type(command).__name__
    if info is None:
        return Happening(name, group, group, command.move)
    return Happening(name, shard_group(info.source), shard_group(info.target), command.move)


def configured(group: GroupId, conf: ConfState) -> Happening:
    """A group has other members."""
    what = "joint" if conf.voters_outgoing else "learner" if conf.learners else "voters"
    return Happening(what, group, group)


def changes(before: Topology, now: Topology, groups: Collection[GroupId]) -> Iterator[Happening]:
    """What one entry of the catalog's log changed. groups: that serve."""
    yield from _of_moves(before, now)
    yield from _of_replicas(before, now, groups)
    yield from _of_shards(before, now)
    yield from _of_job(before, now)


def _of_moves(before: Topology, now: Topology) -> Iterator[Happening]:
    for info in now.moves:
        was = before.move(info.id)
        if was is None or was.state is not info.state:
            yield Happening(f"move {info.state}", shard_group(info.source), shard_group(info.target), info.id)


def _of_replicas(before: Topology, now: Topology, groups: Collection[GroupId]) -> Iterator[Happening]:
    for group in groups:
        was, held = before.holders(group), now.holders(group)
        if was is None or held is None or was == held:
            continue
        yield Happening("confirmed" if was.leaving and not held.leaving else "assigned", group, group)


def _of_shards(before: Topology, now: Topology) -> Iterator[Happening]:
    for info in now.shards[len(before.shards) :]:
        yield Happening("founded", shard_group(info.shard), shard_group(info.shard))
    for old, new in zip(before.shards, now.shards, strict=False):
        if new.retired and not old.retired:
            yield Happening("retired", shard_group(new.shard), shard_group(new.shard))


def _of_job(before: Topology, now: Topology) -> Iterator[Happening]:
    job, was = now.rebalance, before.rebalance
    if job is None or job == was:
        return
    known = was.running if was is not None and was.id == job.id else ()
    yield from (_running("begun", one) for one in job.running if one not in known)
    yield from (_running("ended", one) for one in known if one not in job.running)
    if was is None or was.state is not job.state:
        yield Happening("job", CATALOG_GROUP, CATALOG_GROUP)


def _running(what: str, one: Running) -> Happening:
    if isinstance(one.move, MoveRange):
        return Happening(what, shard_group(one.move.source), shard_group(one.move.target), one.id)
    group = min(one.move.groups)
    return Happening(what, group, group)
