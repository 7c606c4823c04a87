"""Which nodes hold which shard's replicas, and which of them should lead. Pure: facts in, an assignment out.

Invariants (`check_invariants`): no shard has two replicas on one node; none has two in one zone while a zone without
one has a usable node with room. What already is stays where it is unless a rule or the balance asks for a move, and
each plan is a function of its arguments alone; made once more from its own end it changes nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence

import msgspec

from needle.base.errors import invalid
from needle.base.ids import NodeId

EMPTIER = 2.5
"""So many times further below its share than above it may something be: what is too small does little harm."""
WORTH = 0.25
"""A replica moves for the balance only if the fuller node loses this fraction of it, compared with the fuller one
after."""

Assignment = dict[int, tuple[NodeId, ...]]
"""Replicas by shard; the first is the preferred leader."""


class PlacementNode(msgspec.Struct, frozen=True, kw_only=True):
    """What placement knows of a node. weight: its share of replicas relative to the others. usable: False for a node
    that is drained, dead or removed: it gets nothing new and what it has is placed elsewhere. open: False for a node
    that does not answer, but may come back: it gets nothing new and keeps what it has. tight: the same of one that is
    short of memory, which may lead. room: bytes that its replicas may take together; None: any."""

    id: NodeId
    zone: str = ""
    weight: float = 1.0
    usable: bool = True
    open: bool = True
    tight: bool = False
    room: int | None = None

    @property
    def takes(self) -> bool:
        """Whether it may get a replica, if it has room."""
        return self.usable and self.open and not self.tight and self.weight > 0


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What a shard wants. size: of a replica, for the balance. bytes: of a replica, for the room. lead: what its leader
    has to do beside the others', above 0. settled: nothing of it moves but what is on unusable nodes."""

    replicas: int
    size: int = 1
    bytes: int = 0
    lead: int = 1
    settled: bool = False


def place(
    shard_count: int, replication_factor: int, nodes: Sequence[PlacementNode], current: Mapping[int, Sequence[NodeId]]
) -> Assignment:
    """Replicas of every shard on `nodes` (in the order they were added), changing `current` as little as needed.

    12 equal nodes, 4 shards and factor 3 give the guide's table: shard n on nodes 3n+1 to 3n+3. With fewer usable
    nodes than the factor, a shard gets one replica on each. Raises InvalidArgument without any usable node.
    """
    return arrange({shard: Need(replicas=replication_factor) for shard in range(shard_count)}, nodes, current)


def arrange(
    needs: Mapping[int, Need],
    nodes: Sequence[PlacementNode],
    current: Mapping[int, Sequence[NodeId]],
    threshold: float = 0.0,
    goal: float = 0.0,
) -> Assignment:
    """As `place`, for shards of different sizes. threshold: nothing moves only for the balance while every open
    node's load for its weight is at most this fraction above the mean, and EMPTIER times that below it; goal: nor for
    a smaller gain than this fraction of it."""
    board = _Board(needs, nodes, current)
    board.trim()
    board.fill_up()
    while board.spread_zones():
        pass
    if board.uneven(threshold):
        while board.spread_zones() or board.even_out(goal):
            pass
    return _order_by_leader(board, current, goal)


def check_invariants(assignment: Assignment, nodes: Sequence[PlacementNode]) -> None:
    """Raises InvalidArgument when two replicas of a shard share a node, or a zone without need; where all have room."""
    zone_of = {node.id: node.zone for node in nodes}
    zones = {node.zone for node in nodes if node.usable and node.weight > 0}
    for shard, replicas in assignment.items():
        if len(set(replicas)) != len(replicas):
            raise invalid(f"shard {shard}", replicas, "one replica a node")
        if len({zone_of[node] for node in replicas}) < min(len(replicas), len(zones)):
            raise invalid(f"shard {shard}", replicas, "replicas in different zones")


class _Board:
    """The replicas while they are placed. kept: by shard. on: the same by node. load: sizes by node."""

    def __init__(
        self, needs: Mapping[int, Need], nodes: Sequence[PlacementNode], current: Mapping[int, Sequence[NodeId]]
    ) -> None:
        self.needs = dict(sorted(needs.items()))
        self.usable = [node for node in nodes if node.usable and node.weight > 0]
        if not self.usable:
            raise invalid("nodes", [node.id for node in nodes], "at least one usable node")
        self.by_id = {node.id: node for node in self.usable}
        self.zones = {node.zone for node in self.usable}
        self.kept = {shard: [node for node in current.get(shard, ()) if node in self.by_id] for shard in self.needs}
        self.load: Counter[NodeId] = Counter()
        self.taken: Counter[NodeId] = Counter()
        self.on: dict[NodeId, set[int]] = {node.id: set() for node in self.usable}
        for shard, replicas in self.kept.items():
            for node in replicas:
                self.hold(shard, node)

    def fill(self, node: PlacementNode, more: int = 0) -> float:
        return (self.load[node.id] + more) / node.weight

    def takes(self, node: PlacementNode, need: Need) -> bool:
        return node.takes and (node.room is None or self.taken[node.id] + need.bytes <= node.room)

    def hold(self, shard: int, node: NodeId, times: int = 1) -> None:
        """Count a replica; times -1: not any more."""
        (self.on[node].add if times > 0 else self.on[node].discard)(shard)
        self.load[node] += times * self.needs[shard].size
        self.taken[node] += times * self.needs[shard].bytes

    def replace(self, shard: int, old: NodeId, new: NodeId) -> None:
        self.kept[shard][self.kept[shard].index(old)] = new
        self.hold(shard, old, -1)
        self.hold(shard, new)

    # --- rules -------------------------------------------------------------------------------------------------------
    def trim(self) -> None:
        """Where a shard has more replicas than it needs: those that do not answer go first, then of a zone with two."""
        for shard, need in self.needs.items():
            kept = self.kept[shard]
            while len(kept) > need.replicas:
                zones = Counter(self.by_id[node].zone for node in kept)

                def dispensable(node: NodeId, zones: Counter[str] = zones) -> tuple[bool, int, float]:
                    known = self.by_id[node]
                    return not known.open, zones[known.zone], self.fill(known)

                gone = max(reversed(kept), key=dispensable)
                kept.remove(gone)
                self.hold(shard, gone, -1)

    def fill_up(self) -> None:
        """The replicas that are missing, of large shards first."""
        for shard, need in sorted(self.needs.items(), key=lambda item: -item[1].size):
            while len(self.kept[shard]) < min(need.replicas, len(self.usable)):
                node = self._best(self.kept[shard], need)
                if node is None:
                    break
                self.kept[shard].append(node)
                self.hold(shard, node)

    def _best(self, taken: list[NodeId], need: Need) -> NodeId | None:
        """The least filled node that holds no replica yet, in a zone that holds as few as possible; first added
        wins."""
        zones = Counter(self.by_id[node].zone for node in taken)
        free = [node for node in self.usable if node.id not in taken and self.takes(node, need)]
        return min(free, key=lambda node: (zones[node.zone], self.fill(node, need.size))).id if free else None

    def spread_zones(self) -> bool:
        """Move replicas, of one shard after the other, because their zones hold two of it while others hold none.
        Whether any moved: that may have made room for a shard before it."""
        moved = False
        for shard in self.kept:
            while self._spread_zone(shard):
                moved = True
        return moved

    def _spread_zone(self, shard: int) -> bool:
        need, replicas = self.needs[shard], self.kept[shard]
        if need.settled or len({self.by_id[node].zone for node in replicas}) in (len(replicas), len(self.zones)):
            return False
        zones = Counter(self.by_id[node].zone for node in replicas)
        crowded = [node for node in replicas if zones[self.by_id[node].zone] > 1]
        empty = [node for node in self.usable if zones[node.zone] == 0 and self.takes(node, need)]
        if empty:
            old = max(crowded, key=lambda node: self.fill(self.by_id[node]))
            self.replace(shard, old, min(empty, key=lambda node: self.fill(node, need.size)).id)
        return bool(empty)

    # --- balance -----------------------------------------------------------------------------------------------------
    @property
    def mean(self) -> float:
        """The load for a weight of 1, if all were even."""
        return sum(self.load.values()) / sum(node.weight for node in self.usable)

    def uneven(self, threshold: float) -> bool:
        """Whether an open node has more than its share, or one that takes more has less, and more than that fraction
        of it."""
        fills, mean = [self.fill(node) for node in self.usable if node.open], self.mean
        least = min((self.fill(node) for node in self.usable if node.takes), default=mean)
        return bool(fills) and (max(fills) > mean * (1 + threshold) or least < mean * (1 - EMPTIER * threshold))

    def even_out(self, goal: float) -> bool:
        """Move a replica from a full node to an emptier one, if that makes the pair more even."""
        gain = max(1e-9, goal * self.mean)
        nodes = sorted(self.usable, key=self.fill)
        for full in reversed(nodes):
            for spare in nodes:
                if self.fill(spare) >= self.fill(full) - gain:
                    break
                shard = self._swing(full, spare, gain, WORTH if goal else 0.0)
                if shard is not None:
                    self.replace(shard, full.id, spare.id)
                    return True
        return False

    def _swing(self, full: PlacementNode, spare: PlacementNode, gain: float, worth: float) -> int | None:
        """The shard whose replica's move leaves the fuller of the two nodes emptiest, by `gain` at least, and by
        `worth` of what it is."""
        best, chosen, now = (self.fill(full) - gain, 0), None, self.fill(full)
        for shard in sorted(self.on[full.id]):
            need, replicas = self.needs[shard], self.kept[shard]
            if spare.id in replicas or need.settled or not self.takes(spare, need):
                continue
            fuller = max(self.fill(full, -need.size), self.fill(spare, need.size))
            worthy = now - fuller >= worth * need.size / full.weight
            if worthy and (fuller, need.size) < best and self._zone_fits(replicas, full, spare):
                best, chosen = (fuller, need.size), shard
        return chosen

    def _zone_fits(self, replicas: list[NodeId], old: PlacementNode, new: PlacementNode) -> bool:
        others = [self.by_id[node].zone for node in replicas if node != old.id]
        return new.zone == old.zone or new.zone not in others


def _order_by_leader(board: _Board, current: Mapping[int, Sequence[NodeId]], goal: float) -> Assignment:
    """Put each shard's preferred leader first, so that what leaders have to do is spread as evenly as the replicas
    allow. Who is preferred now stays so unless that is uneven; by more than `goal`, where shards differ.

    Greedy, then improved along chains of hand-overs (an augmenting path in the bipartite graph shards x nodes).
    """
    kept = {shard: replicas for shard, replicas in board.kept.items() if replicas}
    leader = {shard: nodes[0] for shard, nodes in current.items() if nodes and nodes[0] in kept.get(shard, ())}
    able = {shard: _able(board, shard, replicas, leader.get(shard)) for shard, replicas in kept.items()}
    leads = _Leads(board, able, leader, goal)
    for shard, replicas in able.items():
        if shard not in leader:
            leads.give(shard, min(replicas, key=leads.fill))
    while chain := leads.relief():
        for shard, node in chain:
            leads.give(shard, node)
    return {s: (leader[s], *(node for node in kept[s] if node != leader[s])) for s in kept}


def _able(board: _Board, shard: int, replicas: list[NodeId], leader: NodeId | None) -> list[NodeId]:
    """The replicas that may lead a shard from now on."""
    if board.needs[shard].settled and leader is not None:
        return [leader]
    return [node for node in replicas if board.by_id[node].open] or replicas


Chain = tuple[tuple[int, NodeId], ...]
"""Hand-overs: a shard, and who leads it then."""


class _Leads:
    """Who leads what, while that is decided. able: by shard, who may. leader: by shard, changed in place."""

    def __init__(self, board: _Board, able: Mapping[int, list[NodeId]], leader: dict[int, NodeId], goal: float) -> None:
        self._by_id, self._able, self._leader = board.by_id, able, leader
        self._size = {shard: board.needs[shard].lead for shard in able}
        self._load: Counter[NodeId] = Counter()
        for shard, node in leader.items():
            self._load[node] += self._size[shard]
        mean = sum(self._size.values()) / sum(node.weight for node in board.usable)
        self._differ = len(set(self._size.values())) > 1
        self._gain = max(1e-9, goal * mean) if self._differ else 1e-9

    def fill(self, node: NodeId, more: int = 0) -> float:
        return (self._load[node] + more) / self._by_id[node].weight

    def give(self, shard: int, node: NodeId) -> None:
        """From whoever has it."""
        if (before := self._leader.get(shard)) is not None:
            self._load[before] -= self._size[shard]
        self._leader[shard] = node
        self._load[node] += self._size[shard]

    def relief(self) -> Chain | None:
        """Hand-overs that take a lead from a busy node, and leave nobody who gets one as busy as that was. So the
        fills in descending order get less with each, and there is an end."""
        led: dict[NodeId, list[int]] = {node: [] for node in self._by_id}
        for shard, node in self._leader.items():
            led[node].append(shard)
        for busy in sorted(self._by_id, key=lambda node: -self.fill(node)):
            if self._differ and (best := self._best(busy, led[busy])) is not None:
                return (best,)
            frontier: deque[tuple[NodeId, int, Chain]] = deque([(busy, 0, ())])
            seen, most = {busy}, self.fill(busy) - self._gain
            while frontier:
                node, more, chain = frontier.popleft()
                if chain and self.fill(node, more) < most:
                    return chain
                for shard in sorted(led[node], key=lambda shard: (self._size[shard], shard)):
                    rises = chain and more > self._size[shard] and self.fill(node, more - self._size[shard]) >= most
                    for other in self._able[shard] if not rises else ():
                        if other not in seen:
                            seen.add(other)
                            frontier.append((other, self._size[shard], (*chain, (shard, other))))
        return None

    def _best(self, busy: NodeId, led: Sequence[int]) -> tuple[int, NodeId] | None:
        """The one hand-over after which the fuller of the two nodes has least, if that is less than the busy one."""
        best, chosen = self.fill(busy) - self._gain, None
        for shard in led:
            for other in self._able[shard]:
                size = self._size[shard]
                fuller = max(self.fill(busy, -size), self.fill(other, size))
                if other != busy and fuller < best:
                    best, chosen = fuller, (shard, other)
        return chosen
