"""The order in which a plan's moves are made, so that each state in between is a legal one. Pure.

Invariants, before and after each move: a group that the move is about has a majority of its replicas on nodes that
answer; no new replica shares a zone with another one of its shard while a zone without one has a usable node with
room; no node stores more than its disk takes, where what is copied counts twice until the old copy is gone; a shard's
replicas change one for one, or grow or shrink at once. What cannot be done so is left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import product

from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name, shard_group
from needle.catalog.planning.placement import PlacementNode
from needle.routing.planned_moves import FoundShard, GiveUpShard, Move, MoveRange, MoveReplicas, PreferLeader

Replicas = tuple[NodeId, ...]


@dataclass
class State:
    """The cluster between two moves. holders: by group. sizes, documents: by group, of one replica. free: by node;
    None: any. nodes: those that were not removed; alive: those that answer; lost: those that never will."""

    holders: dict[GroupId, Replicas]
    sizes: dict[GroupId, int]
    documents: dict[GroupId, int]
    free: dict[NodeId, int | None]
    nodes: Mapping[NodeId, PlacementNode]
    alive: Set[NodeId]
    lost: Set[NodeId] = frozenset()
    changing: Mapping[GroupId, str] = field(default_factory=dict)
    """Groups of which no replica may move now, and why."""
    leaving: dict[GroupId, Replicas] = field(default_factory=dict)
    """Nodes that hold a replica which they are to give up: it votes until those that stay have all that was written."""

    def apply(self, move: Move) -> None:
        """As if the move were done."""
        if isinstance(move, MoveRange):
            source, target = shard_group(move.source), shard_group(move.target)
            for group, sign in ((target, 1), (source, -1)):
                self.sizes[group] += sign * move.bytes
                self.documents[group] += sign * move.documents
                self._take(self.holders[group], sign * move.bytes)
        elif isinstance(move, MoveReplicas | PreferLeader):
            before = self.holders[move.group]
            self._take([node for node in move.after if node not in before], self.sizes[move.group])
            self._take([node for node in before if node not in move.after], -self.sizes[move.group])
            self.holders[move.group] = move.after
            self.leaving.pop(move.group, None)
        elif isinstance(move, FoundShard):
            group = shard_group(move.shard)
            self.holders[group], self.sizes[group], self.documents[group] = move.replicas, 0, 0
        else:
            group = shard_group(move.shard)
            self._take(self.holders.pop(group), -self.sizes.pop(group))

    def _take(self, nodes: Sequence[NodeId], size: int) -> None:
        for node in nodes:
            free = self.free.get(node)
            self.free[node] = None if free is None else free - size

    def has_room(self, node: NodeId, size: int) -> bool:
        free = self.free.get(node)
        return free is None or free >= size

    def why_not(self, move: Move) -> str:
        """Why a move must not be made now; "" if it may."""
        if why := self._no_majority(CATALOG_GROUP, self.holders.get(CATALOG_GROUP, ())):
            return why
        if isinstance(move, MoveRange):
            return self._why_no_range(move)
        if isinstance(move, MoveReplicas):
            return self._no_leader(move.after) or self._why_no_replicas(move)
        if isinstance(move, PreferLeader):
            if move.group in self.changing:
                return self.changing[move.group]
            if move.after[0] not in self.alive:
                return f"{move.after[0]} does not answer"
            return self._no_leader(move.after) or self._no_majority(move.group, move.before)
        if isinstance(move, FoundShard):
            silent = [node for node in move.replicas if node not in self.alive]
            return f"{', '.join(silent)} do not answer" if silent else self._no_leader(move.replicas)
        return ""

    def _no_leader(self, replicas: Replicas) -> str:
        """If all are in maintenance: the catalog would refuse it."""
        resting = [node for node in replicas if node in self.alive and not self.nodes[node].open]
        if resting != [*replicas]:
            return ""
        return f"{', '.join(resting)} {'is' if len(resting) == 1 else 'are'} in maintenance, so nobody could lead it"

    def _no_majority(self, group: GroupId, replicas: Replicas) -> str:
        able = [node for node in replicas if node in self.alive]
        if 2 * len(able) > len(replicas) or not replicas:
            return ""
        silent = ", ".join(node for node in replicas if node not in self.alive)
        return f"of the replicas of {group_name(group)} no majority answers: {silent} does not"

    def _why_no_range(self, move: MoveRange) -> str:
        for shard in (move.source, move.target):
            group = shard_group(shard)
            if group not in self.holders:
                return f"shard {shard} is not there yet"
            if why := self._no_majority(group, self.holders[group]):
                return why
        full = [node for node in self.holders[shard_group(move.target)] if not self.has_room(node, move.bytes)]
        return f"{', '.join(full)} has no room for {move.bytes} bytes more" if full else ""

    def _why_no_replicas(self, move: MoveReplicas) -> str:
        group, before, after = move.group, self.holders[move.group], move.after
        if group in self.changing:
            return self.changing[group]
        now = (*before, *self.leaving.get(group, ()))
        if why := self._no_majority(group, now) or self._no_majority(group, after):
            return why
        for node in move.added:
            if self.nodes[node].tight:
                return f"{node} is short of memory"
            if not self.has_room(node, self.sizes[group]):
                return f"{node} has no room for {self.sizes[group]} bytes more"
            others = {self.nodes[other].zone for other in after if other != node}
            if self.nodes[node].zone in others:
                better = self._zones_with_room(others, after, self.sizes[group])
                if better:
                    return f"{node} is in a zone with another replica, while zone {better[0] or 'none'} has room"
        return ""

    def _zones_with_room(self, taken: Set[str], replicas: Replicas, size: int) -> list[str]:
        return sorted(
            node.zone
            for node in self.nodes.values()
            if node.takes and node.zone not in taken
            if node.id not in replicas and self.has_room(node.id, size)
        )


@dataclass
class Goal:
    """What is to be reached. replicas: by group, of groups that are there or are founded. ranges: in any order.
    growing: groups whose replicas had better move before the ranges do. emptied: shards that are given up when
    nothing of theirs is left. stuck: shards that a move under way gives something to, or takes it from."""

    replicas: dict[GroupId, Replicas]
    founded: list[FoundShard]
    ranges: list[MoveRange]
    growing: Set[GroupId]
    emptied: list[int]
    stuck: Set[int] = frozenset()


def schedule(
    state: State, goal: Goal, besides: frozenset[NodeId] = frozenset()
) -> tuple[list[Move], list[str], list[str]]:
    """The moves in order, and why what is left of the goal cannot be reached; at last the same of moves that only have
    others take the place of nodes of `besides`. Changes the first two arguments."""
    made: list[Move] = []
    ways: Ways = {}
    unsettled = {group for group in goal.replicas if _is_unsettled(state, goal, group)}
    while True:
        reasons: dict[str, list[Move]] = {}
        for move in _candidates(state, goal, sorted(unsettled), ways):
            why = state.why_not(move)
            if why:
                reasons.setdefault(why, []).append(move)
                continue
            state.apply(move)
            _done(goal, move)
            made.append(move)
            for group in move.groups:
                (unsettled.add if _is_unsettled(state, goal, group) else unsettled.discard)(group)
            break
        else:
            return made, *_told_apart(reasons, besides)


def _is_unsettled(state: State, goal: Goal, group: GroupId) -> bool:
    """Whether other nodes hold a group, or in another order, than are to."""
    return group in goal.replicas and state.holders.get(group, goal.replicas[group]) != goal.replicas[group]


def _told_apart(reasons: Mapping[str, list[Move]], besides: frozenset[NodeId]) -> tuple[list[str], list[str]]:
    """Why moves cannot be made, in words."""
    found: tuple[list[str], list[str]] = [], []
    for why, moves in reasons.items():
        parts: tuple[list[Move], list[Move]] = [], []
        for move in moves:
            parts[_only_empties(move, besides)].append(move)
        for said, some in zip(found, parts, strict=True):
            said.extend([_said(some, why)] if some else [])
    return found


def _only_empties(move: Move, nodes: frozenset[NodeId]) -> bool:
    """Whether others only take the place of these nodes. How many replicas there are is what each wish is about."""
    if not isinstance(move, MoveReplicas) or len(move.after) != len(move.before):
        return False
    return bool(move.removed) and nodes.issuperset(move.removed)


def _said(moves: list[Move], why: str) -> str:
    more = f", and {len(moves) - 1} more" if len(moves) > 1 else ""
    return f"{moves[0].in_words()}{more}: {why}"


def _done(goal: Goal, move: Move) -> None:
    if isinstance(move, MoveRange):
        goal.ranges.remove(move)
    elif isinstance(move, FoundShard):
        goal.founded.remove(move)
    elif isinstance(move, GiveUpShard):
        goal.emptied.remove(move.shard)


ByUrgency = dict[int, list[MoveReplicas]]
Ways = dict[GroupId, tuple[tuple[Replicas, int, int], ByUrgency]]
"""By group: what it was, and the steps that were possible then. To find and judge them again after each move would take
time with the square of their number."""


def _ways(state: State, group: GroupId, target: Replicas, known: Ways) -> ByUrgency:
    now = (state.holders[group], state.sizes[group], state.documents[group])
    if group not in known or known[group][0] != now:
        found: ByUrgency = {}
        for move in _replica_moves(state, group, target):
            found.setdefault(_urgency(state, move), []).append(move)
        known[group] = (now, found)
    return known[group][1]


def _candidates(state: State, goal: Goal, groups: Sequence[GroupId], ways: Ways) -> Iterator[Move]:
    """What could come next, the most urgent first. groups: that are not held as they are to be."""
    moves = [(group, _ways(state, group, goal.replicas[group], ways)) for group in groups]
    yield from _of(moves, 0)
    yield from goal.founded[:1]  # their numbers ascend
    yield from _of(moves, 1)
    yield from _of([one for one in moves if one[0] in goal.growing], 2)
    yield from goal.ranges
    busy = {shard for move in goal.ranges for shard in (move.source, move.target)} | goal.stuck
    yield from (GiveUpShard(shard=shard) for shard in goal.emptied if shard not in busy)
    yield from _of([one for one in moves if one[0] not in goal.growing], 2)
    for group in groups:
        before, after = state.holders[group], goal.replicas[group]
        if before[0] != after[0] and set(before) == set(after) and group != CATALOG_GROUP:
            yield PreferLeader(group=group, before=before, after=after)


def _of(moves: Sequence[tuple[GroupId, ByUrgency]], urgency: int) -> Iterator[MoveReplicas]:
    for _, ones in moves:
        yield from ones.get(urgency, ())


def _urgency(state: State, move: MoveReplicas) -> int:
    """0: redundancy is missing; 1: a node is to be emptied; 2: for zones and balance."""
    if any(node in state.lost for node in move.removed) or len(move.after) != len(move.before):
        return 0
    return 1 if any(not state.nodes[node].usable for node in move.removed) else 2


def _replica_moves(state: State, group: GroupId, target: Replicas) -> Iterator[MoveReplicas]:
    """Ways to take the next step from what a group has to what it is to have, the best first."""
    before = state.holders[group]
    missing = [node for node in target if node not in before]
    surplus = sorted((node for node in before if node not in target), key=lambda node: _leaves(state, node, before))
    if not missing and not surplus:
        return
    if len(before) < len(target):
        count = len(target) - len(before)
        for first in range(len(missing)):
            added = [*missing[first:], *missing[:first]][:count]
            yield _move(state, group, (*before, *added), target, "a replica is missing")
    elif len(before) > len(target):
        gone = set(surplus[: len(before) - len(target)])
        yield _move(state, group, tuple(node for node in before if node not in gone), target, "one too many")
    else:
        zone = {node: state.nodes[node].zone for node in (*missing, *surplus)}
        pairs = sorted(
            product(enumerate(surplus), missing),
            key=lambda pair: (_leaves(state, pair[0][1], before), zone[pair[0][1]] != zone[pair[1]]),
        )
        for (_, old), new in pairs:
            after = tuple(new if node == old else node for node in before)
            yield _move(state, group, after, target, _reason(state, old))


def _leaves(state: State, node: NodeId, replicas: Replicas) -> tuple[bool, bool, bool]:
    """Who goes first is least: who is lost, who is to be emptied, who shares a zone."""
    known = state.nodes[node]
    shared = sum(state.nodes[other].zone == known.zone for other in replicas) > 1
    return node not in state.lost, known.usable, not shared


def _reason(state: State, node: NodeId) -> str:
    if node in state.lost:
        return f"{node} is lost"
    return "" if state.nodes[node].usable else f"{node} is to be emptied"


def _move(state: State, group: GroupId, after: Replicas, target: Replicas, why: str) -> MoveReplicas:
    before = state.holders[group]
    added = sum(node not in before for node in after)
    return MoveReplicas(
        group=group,
        before=before,
        after=target if set(after) == set(target) else after,
        documents=added * state.documents[group],
        bytes=added * state.sizes[group],
        why=why,
    )
