"""A cluster on paper, to carry plans out on: real documents under real keys, the catalog's own `execute` and replica
steps.

It judges each state by rules of its own, and shares no code with the planner: majorities, zones, disks, and who owns
what.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import xxhash

from needle.base.errors import NeedleError
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, shard_group
from needle.catalog.planning.commands import command_of
from needle.catalog.planning.placement import PlacementNode, place
from needle.catalog.replica_steps import Change, HandOver, Members, Settled, Wait, next_step
from needle.catalog.state import execute
from needle.protocol.catalog_commands import (
    AdvanceMove,
    CatalogCommand,
    ConfirmReplicas,
    CreateCluster,
    FinishMove,
    RegisterNode,
)
from needle.routing.planned_moves import FoundShard, Move, MoveRange, MoveReplicas, PreferLeader
from needle.routing.shard_map import KeyRange, initial_map
from needle.routing.stats import ClusterStats, NodeStats, RangeStats, ShardStats
from needle.routing.strategy import CONSISTENT_HASH, HASH, ShardStrategy
from needle.routing.topology import ClusterSettings, MoveState, NodeInfo, NodeState, Topology

MIB = 1 << 20


class Illegal(AssertionError):
    """A move led to a state that must not be."""


@dataclass(frozen=True)
class Begun:
    """A move that the catalog has decided. able: groups that had a majority then."""

    id: int
    voters: frozenset[NodeId]
    able: dict[GroupId, bool]


@dataclass
class World:
    """documents: (key, bytes), by key. capacity: bytes of a node's disk; not there: any. dead: nodes that do not
    answer. closed: nodes that shall get nothing. edges: keys at which what is measured is told apart.
    unknown: bytes by which what was measured may be wrong. calls: what keys are called, whoever owns them."""

    topology: Topology
    documents: list[tuple[bytes, int]]
    capacity: dict[NodeId, int] = field(default_factory=dict)
    dead: set[NodeId] = field(default_factory=set)
    closed: set[NodeId] = field(default_factory=set)
    edges: list[bytes] = field(default_factory=list)
    calls: tuple[RangeStats, ...] = ()
    unknown: int = 0
    index: int = 1000
    copied: int = 0

    def inside(self, span: KeyRange) -> tuple[int, int]:
        """Documents and bytes under the keys of a range."""
        if len(self._sums) != len(self.documents) + 1:
            self._keys = [key for key, _ in self.documents]
            self._sums = [0, *accumulate(size for _, size in self.documents)]
        low = bisect_left(self._keys, span[0])
        high = len(self._keys) if span[1] is None else bisect_left(self._keys, span[1])
        return high - low, self._sums[high] - self._sums[low]

    _keys: list[bytes] = field(default_factory=list)
    _sums: list[int] = field(default_factory=list)

    # --- what is measured ---------------------------------------------------------------------------------------------
    def sizes(self) -> Counter[int]:
        """Bytes by shard."""
        assert self.topology.map is not None
        known = self.topology.map
        sizes: Counter[int] = Counter({info.shard: 0 for info in self.topology.serving})
        for low, high, owner in zip(known.starts, [*known.starts[1:], None], known.owners, strict=True):
            sizes[owner] += self.inside_bytes((low, high))
        return sizes

    def inside_bytes(self, span: KeyRange) -> int:
        """Bytes under the keys of a range."""
        return self.inside(span)[1]

    def used(self) -> Counter[NodeId]:
        """Bytes by node, of replicas that leave, too."""
        sizes, used = self.sizes(), Counter[NodeId]()
        for info in self.topology.serving:
            for node in info.replicas:
                used[node] += sizes[info.shard]
        return used

    def stats(self) -> ClusterStats:
        """As the nodes would tell it."""
        assert self.topology.map is not None
        used, sizes, shards = self.used(), self.sizes(), []
        for info in self.topology.serving:
            owned = self.topology.map.ranges(info.shard)
            parts = [part for span in owned for part in self._parts(span)] if self.edges else []
            count = sum(self.inside(span)[0] for span in owned)
            shards.append(ShardStats(shard=info.shard, documents=count, bytes=sizes[info.shard], ranges=tuple(parts)))
        nodes = [
            NodeStats(
                node=node,
                alive=node not in self.dead,
                free=self.capacity[node] - used[node] if node in self.capacity else None,
            )
            for node in self.topology.addresses()
        ]
        return ClusterStats(shards=tuple(shards), nodes=tuple(nodes), calls=self.calls)

    def _parts(self, span: KeyRange) -> list[RangeStats]:
        start, end = span
        first = bisect_right(self.edges, start)
        last = len(self.edges) if end is None else bisect_left(self.edges, end)
        parts, cuts = [], [start, *self.edges[first:last], end]
        for low, high in pairwise(cuts):
            assert low is not None
            documents, size = self.inside((low, high))
            parts.append(RangeStats(span=(low, high), documents=documents, bytes=size))
        return parts

    # --- carrying out -------------------------------------------------------------------------------------------------
    def run(self, moves: tuple[Move, ...]) -> None:
        """All of them, in order; raises Illegal."""
        for move in moves:
            self.step(move)

    def step(self, move: Move) -> None:
        """One of them, to its end."""
        self.end(move, self.begin(move))

    def begin(self, move: Move) -> Begun:
        """Have the catalog decide it."""
        able = {group: self._able(group) for group in self._groups()}
        self._need(CATALOG_GROUP)
        for group in move.groups & able.keys():
            self._need(group)
        if isinstance(move, MoveRange):
            assert self.topology.map is not None
            return Begun(self._tell(command_of(move, self.index, self.topology.map.epoch)), frozenset(), able)
        held = self.topology.holders(move.group) if isinstance(move, MoveReplicas) else None
        return Begun(self._tell(command_of(move)), frozenset(held.wanted if held is not None else ()), able)

    def end(self, move: Move, begun: Begun) -> None:
        """What follows from it."""
        if isinstance(move, MoveRange):
            self._move_range(move, begun.id)
        elif isinstance(move, MoveReplicas):
            self._move_replicas(move, begun.voters)
        elif isinstance(move, FoundShard):
            if not self.capacity:  # else it is placed where it will have room
                self._placed_well(shard_group(move.shard), set(move.replicas))
        elif isinstance(move, PreferLeader) and move.after[0] in self.dead:
            raise Illegal(f"{move} prefers a leader that does not answer")
        for group in self._groups():
            if begun.able.get(group, True) and not self._able(group):
                raise Illegal(f"group {group} lost its majority by {move}")

    def _tell(self, command: CatalogCommand) -> int:
        self.index += 1
        self.topology, result = execute(self.topology, self.index, command)
        if isinstance(result, NeedleError):
            raise Illegal(f"{command} is refused: {result}")
        if result.existed:
            raise Illegal(f"{command} changes nothing")
        return result.version

    def _groups(self) -> list[GroupId]:
        return [CATALOG_GROUP, *(shard_group(info.shard) for info in self.topology.serving)]

    def _able(self, group: GroupId) -> bool:
        holders = self.topology.holders(group)
        assert holders is not None
        return 2 * len(set(holders.wanted) - self.dead) > len(holders.wanted)

    def _need(self, group: GroupId) -> None:
        if not self._able(group):
            raise Illegal(f"group {group} has no majority, so nothing is decided in it")

    def _move_range(self, move: MoveRange, made: int) -> None:
        inside = sum(map(self.inside_bytes, move.ranges))
        used = self.used()
        for node in self.topology.shards[move.target].replicas:
            self._fits(node, used[node] + inside)
        for state in (MoveState.FREEZING, MoveState.SWITCHED):
            self._tell(AdvanceMove(made, state, 1, 1))
        self._tell(FinishMove(made))
        self.copied += inside

    def _fits(self, node: NodeId, size: int) -> None:
        if node in self.capacity and size > self.capacity[node] + self.unknown:
            raise Illegal(f"{size} bytes on {node}, which holds {self.capacity[node]}")

    def _move_replicas(self, move: MoveReplicas, voters: frozenset[NodeId]) -> None:
        size = self.sizes()[move.group - 1] if move.group != CATALOG_GROUP else 0
        for node in move.added:
            if node in self.dead | self.closed:
                raise Illegal(f"{node} gets a replica")
            self._fits(node, self.used()[node])
        self._settle(move.group, voters)
        self._placed_well(move.group, set(move.added))
        made = self.topology.holders(move.group)
        assert made is not None
        if made.leaving:
            self._tell(ConfirmReplicas(move.group, made.assigned))
        self.copied += size * len(move.added)

    def _settle(self, group: GroupId, voters: frozenset[NodeId]) -> None:
        """As the group's leaders do it, by way of learners."""
        holders = self.topology.holders(group)
        assert holders is not None
        leader, learners, caught_up = min(voters - self.dead), frozenset[NodeId](), set(voters)
        for _ in range(50):
            step = next_step(
                Members(
                    leader=leader,
                    voters=voters,
                    learners=learners,
                    changing=False,
                    wanted=holders.wanted,
                    live=self.topology.addresses().keys() - self.dead,
                    caught_up=caught_up,
                )
            )
            if isinstance(step, Settled):
                return
            if isinstance(step, Wait):
                waiting = learners - caught_up - self.dead
                if not waiting:
                    raise Illegal(f"group {group} does not become {holders.wanted}: {step.why}")
                caught_up.add(min(waiting))
            elif isinstance(step, HandOver):
                leader = step.to
            else:
                assert isinstance(step, Change)
                voters, learners = step.voters, step.learners
                if 2 * len(voters - self.dead) <= len(voters):
                    raise Illegal(f"group {group} loses its majority: {voters}")
        raise Illegal(f"group {group} does not settle")

    def _placed_well(self, group: GroupId, added: set[NodeId]) -> None:
        """No new replica in a zone with another one while a zone without one has room."""
        holders = self.topology.holders(group)
        assert holders is not None
        zone = {info.id: info.zone for info in self.topology.nodes}
        size = self.sizes()[group - 1] if group != CATALOG_GROUP else 0
        used = self.used()
        for node in added:
            others = {zone[other] for other in holders.wanted if other != node}
            if zone[node] not in others:
                continue
            for info in self.topology.nodes:
                able = info.state is NodeState.ACTIVE and info.weight > 0 and info.id not in self.dead | self.closed
                able = able and not info.maintenance  # it gets nothing while others can take it
                room = info.id not in self.capacity or self.capacity[info.id] - used[info.id] >= size
                if able and room and info.zone not in others and info.id not in holders.all:
                    raise Illegal(f"group {group} has two replicas in {zone[node]} while {info.id} has room")


def info(n: int, zone: str = "", weight: float = 1.0) -> NodeInfo:
    return NodeInfo(id=f"node-{n}", address=f"10.0.0.{n}:5000", incarnation=n, zone=zone, weight=weight)


def cluster(
    shards: int,
    factor: int,
    nodes: list[NodeInfo],
    strategy: ShardStrategy = CONSISTENT_HASH,
    catalog: int | None = None,
) -> Topology:
    """catalog: so many nodes hold it, the first ones; by default as many as of a new cluster of up to 8 nodes."""
    assignment = place(
        shards, factor, [PlacementNode(id=one.id, zone=one.zone, weight=one.weight) for one in nodes], {}
    )
    command = CreateCluster(
        ClusterSettings(shard_count=shards, replication_factor=factor, strategy=strategy),
        initial_map(strategy, shards, 100),
        nodes,
        [one.id for one in nodes[: catalog or (1 if len(nodes) < 3 and factor == 1 else 3)]],
        [list(assignment[shard]) for shard in range(shards)],
    )
    return execute(Topology(), 1, command)[0]


def hashed(shards: int, count: int, strategy: ShardStrategy = CONSISTENT_HASH) -> list[bytes]:
    """Keys of `count` ids."""
    made = []
    for n in range(count):
        value = xxhash.xxh3_64_intdigest(f"doc-{n}".encode())
        rest = value.to_bytes(8, "big")
        made.append((value % shards).to_bytes(2, "big") + rest if strategy == HASH else rest)
    return sorted(made)


def world(
    shards: int = 4, factor: int = 3, nodes: int = 6, documents: int = 1200, strategy: ShardStrategy = HASH
) -> World:
    topology = cluster(shards, factor, [info(n) for n in range(1, nodes + 1)], strategy)
    return World(topology, [(key, 4 * MIB) for key in hashed(shards, documents, strategy)])


def join(made: World, *nodes: NodeInfo) -> None:
    for one in nodes:
        made.topology = execute(made.topology, made.index, RegisterNode(one))[0]
        made.index += 1
