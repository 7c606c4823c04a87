"""What has become of the moves that a rebalance has started, by what the catalog and the groups' leaders say. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name, shard_group
from needle.routing.jobs import Phase, Running
from needle.routing.planned_moves import MoveRange, MoveReplicas
from needle.routing.ranges import contains
from needle.routing.topology import MoveState, Topology

_PHASE = {
    MoveState.FREEZING: Phase.CATCH_UP,
    MoveState.SWITCHED: Phase.CLEAN_UP,
    MoveState.CANCELLING: Phase.CLEAN_UP,
    MoveState.GIVEN_UP: Phase.CLEAN_UP,
}
_TAKEN_BACK = (MoveState.CANCELLING, MoveState.GIVEN_UP)


HAS_ALL = 0.99
"""With this share of a group a learner only catches up with what is written meanwhile."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """voters, learners: of each group, as its leader has them. fetched: what share of a group each of its learners has,
    0 to 1, as its leader says. copied: documents, by move of key ranges. held: why
    such moves wait, as their drivers say. lacking: what the members of a group lack to be those that the catalog names,
    as its leader says."""

    topology: Topology
    voters: Mapping[GroupId, frozenset[NodeId]]
    learners: Mapping[GroupId, frozenset[NodeId]]
    copied: Mapping[int, int]
    fetched: Mapping[GroupId, Mapping[NodeId, float]] = {}
    held: tuple[str, ...] = ()
    lacking: Mapping[GroupId, str] = {}

    def waiting(self, running: Sequence[Running]) -> tuple[str, ...]:
        """Why what runs does not go on now, as far as those say that make the moves."""
        groups = dict.fromkeys(one.move.group for one in running if isinstance(one.move, MoveReplicas))
        return (*self.held, *(f"{group_name(group)}: {why}" for group in groups if (why := self.lacking.get(group))))


def fate(one: Running, seen: Seen) -> bool | None:
    """True: it is done; False: it is over and was not done, because others decided otherwise; None: it goes on."""
    move = one.move
    if isinstance(move, MoveRange):
        info = seen.topology.move(one.id)
        if info is None:  # forgotten: it has arrived, or was given up
            owned = seen.topology.map.ranges(move.target) if seen.topology.map is not None else []
            return contains(owned, move.ranges)
        return False if info.state is MoveState.GIVEN_UP else None
    if not isinstance(move, MoveReplicas):
        return True  # the catalog's decision is all
    holders = seen.topology.holders(move.group)
    if holders is None or set(holders.wanted) != set(move.after):
        return False
    settled = seen.voters.get(move.group) == frozenset(holders.wanted) and not seen.learners.get(move.group)
    return True if settled and not holders.leaving else None


def now_running(running: Sequence[Running], seen: Seen) -> list[Running]:
    """The same with how far they are."""
    return [_now(one, seen) for one in running]


def _now(one: Running, seen: Seen) -> Running:
    move = one.move
    if isinstance(move, MoveRange):
        info, count = seen.topology.move(one.id), seen.copied.get(one.id, 0)
        if info is None or info.state is not MoveState.COPYING:
            phase = Phase.CLEAN_UP if info is None else _PHASE[info.state]
            back = info is not None and info.state in _TAKEN_BACK
            return msgspec.structs.replace(one, phase=phase, copied=0 if back else move.bytes)
        part = min(1.0, count / move.documents) if move.documents else 0.0
        phase = Phase.COPY if count else Phase.PREPARE
        return msgspec.structs.replace(one, phase=phase, copied=round(part * move.bytes))
    if not isinstance(move, MoveReplicas):
        return msgspec.structs.replace(one, phase=Phase.CLEAN_UP)
    added, there = frozenset(move.added), seen.voters.get(move.group, frozenset())
    if added <= there:
        phase = Phase.CLEAN_UP if there == frozenset(move.after) else Phase.SWITCH
        return msgspec.structs.replace(one, phase=phase, copied=move.bytes)
    known = seen.fetched.get(move.group, {})
    parts = [1.0 if node in there else min(1.0, known.get(node, 0.0)) for node in added]
    phase = Phase.CATCH_UP if min(parts) > HAS_ALL else Phase.COPY
    if not added & (there | seen.learners.get(move.group, frozenset())):
        phase = Phase.PREPARE
    return msgspec.structs.replace(one, phase=phase, copied=int(move.bytes * sum(parts) / len(parts)))


def refused(running: Sequence[Running], seen: Seen, tight: Collection[NodeId]) -> dict[int, NodeId]:
    """Moves of replicas that get nowhere because a new node is short of memory and has fetched nothing: by id, that
    node. tight: the nodes that are."""
    return _kept_up(running, seen, tight, lambda group: seen.voters[group] | seen.learners.get(group, frozenset()))


def gone_for_good(running: Sequence[Running], seen: Seen, gone: Collection[NodeId]) -> dict[int, NodeId]:
    """Moves of replicas whose new node is gone for long and does not vote yet, so that they cannot end: by id, that
    node. gone: the nodes that are."""
    return _kept_up(running, seen, gone, lambda group: seen.voters[group])


def _kept_up(
    running: Sequence[Running], seen: Seen, by: Collection[NodeId], there: Callable[[GroupId], frozenset[NodeId]]
) -> dict[int, NodeId]:
    """Moves of replicas whose new node is one of `by`, and is not `there` yet: by id, that node."""
    found: dict[int, NodeId] = {}
    for one in running:
        move = one.move
        if not isinstance(move, MoveReplicas) or move.group not in seen.voters:  # no leader says who is there
            continue
        waiting = [node for node in move.added if node in by and node not in there(move.group)]
        if waiting:
            found[one.id] = waiting[0]
    return found


def others(topology: Topology, running: Sequence[Running]) -> int:
    """How many moves are under way that are not `running`: what operators began, or a rebalance before."""
    ours = {one.id for one in running}
    groups = {one.move.group for one in running if isinstance(one.move, MoveReplicas)}
    known = [(group, topology.holders(group)) for group in _groups(topology)]
    leaving = [group for group, holders in known if holders is not None and holders.leaving and group not in groups]
    return sum(info.id not in ours for info in topology.moves) + len(leaving)


def _groups(topology: Topology) -> list[GroupId]:
    return [CATALOG_GROUP, *(shard_group(info.shard) for info in topology.serving)]


def unsettled(topology: Topology) -> str:
    """What is being moved, whoever began it; "" for nothing. A plan counts it as moved already."""
    if topology.moves:
        first = topology.moves[0]
        if first.state is MoveState.GIVEN_UP:
            return f"shard {first.target} has not deleted yet what it copied for move {first.id}, which was given up"
        return f"move {first.id} of key ranges is under way"
    for group in _groups(topology):
        holders = topology.holders(group)
        if holders is not None and holders.leaving:
            return f"the replicas of {group_name(group)} on {', '.join(holders.leaving)} are being moved"
    return ""
