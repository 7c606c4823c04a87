"""plan(topology, stats, wish): what has to move so that a cluster is as it is wished, in a safe order. Pure.

First it decides which shard owns which key ranges, then which nodes hold the shards of those sizes, then the order.
It knows nothing of how moves are made. Invariants: those of `schedule`; near the least bytes (`Plan.ratio`); made
again when the plan was carried out, it is empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile

import msgspec

from needle.base.errors import invalid
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name, shard_group
from needle.catalog.planning import by_hand, leftover
from needle.catalog.planning.batches import MOVES_MAX, range_moves
from needle.catalog.planning.beyond_help import also_lost, not_rebuilt
from needle.catalog.planning.catalog_nodes import catalog_count, settled_catalog
from needle.catalog.planning.fewest import EMPTY_REPLICA_BYTES, fewest_bytes, fullness
from needle.catalog.planning.pieces import Piece, pieces_of
from needle.catalog.planning.placement import Assignment, Need, PlacementNode, arrange
from needle.catalog.planning.schedule import Goal, Replicas, State, schedule
from needle.catalog.planning.spread import Spread, least
from needle.routing.key_space import KeySpace
from needle.routing.planned_moves import FoundShard, MoveRange, MoveReplicas
from needle.routing.plans import REPLICAS_MAX, Balance, Plan, Wish
from needle.routing.shard_map import SHARDS_MAX
from needle.routing.stats import ClusterStats, ShardStats, imbalance
from needle.routing.topology import NodeInfo, NodeState, Topology

SHARDS_AT_ONCE = 256
"""More or fewer in one plan, as MOVES_MAX."""

ACTING = 0.75
"""Where ranges move, sizes are estimates: nodes are evened out already at this fraction of the threshold, so that
what was estimated a little wrong does not make the next plan act."""


def plan(topology: Topology, stats: ClusterStats, wish: Wish | None = None, named: bool = False) -> Plan:
    """What to move. named: as of `leftover.not_wished`. Raises InvalidArgument for a wish that names what is not there,
    or cannot be."""
    return _Planning(topology, stats, wish or Wish(), named).plan()


class _Planning:
    """One plan while it is made."""

    def __init__(self, topology: Topology, stats: ClusterStats, wish: Wish, named: bool) -> None:
        self._topology, self._stats, self._wish, self._named = topology, stats, wish, named
        wish.check()
        if topology.map is None or topology.settings is None:
            raise invalid("topology", topology.version, "a cluster that was made")
        self._space = KeySpace(topology.map)
        self._alive = stats.alive - set(wish.lost)
        known, asked, measured = topology.addresses(), stats.by_node(), stats.by_shard()
        self._tight = {one.node for one in stats.nodes if one.tight}
        self._nodes = {info.id: self._node(info) for info in topology.nodes if info.id in known}
        self._factor = self._copies() if wish.replicas is None else wish.replicas
        if not 1 <= self._factor <= REPLICAS_MAX:
            raise invalid("replicas", self._factor, f"a number from 1 to {REPLICAS_MAX}")
        self._apart = _apart(topology, stats)
        self._not_rebuilt = not_rebuilt(topology, wish.lost, stats.unknown, stats.alive)
        staying, self._new = self._shards()
        self._staying = [shard for shard in staying if shard not in self._apart]
        self._still = [shard for shard in staying if shard in self._apart]
        """Of those that are to own something, the ones whose key ranges nothing is said of."""
        if not self._staying or (wish.split is not None and {wish.split.shard, wish.split.into} & self._apart):
            self._new = []
        for field, names in (
            ("drain", wish.drain),
            ("lost", wish.lost),
            ("weights", wish.weights),
            ("zones", wish.zones),
        ):
            strange = sorted(set(names) - known.keys())
            if strange:
                raise invalid(field, ", ".join(strange), f"nodes of this cluster: {', '.join(known)}")
        self._free = {node: asked[node].free if node in asked else None for node in self._nodes}
        self._measured = {
            info.shard: measured.get(info.shard, ShardStats(shard=info.shard)) for info in topology.serving
        }

    def _copies(self) -> int:
        """Replicas of each shard: so many as an operator said. If nobody has: as in a new cluster, or as all shards
        have by now, if there are nodes for them. A cluster that began with one node was given more, node by node, and
        must not lose them to a plan."""
        if self._topology.replicas:
            return self._topology.replicas
        founded = self._topology.replication_factor
        least = min((len(info.wanted) for info in self._topology.serving), default=founded)
        return max(founded, min(least, sum(node.usable for node in self._nodes.values()), REPLICAS_MAX))

    def _shards(self) -> tuple[list[int], list[int]]:
        """The shards that are to own something: those that are there, and new ones."""
        if self._wish.split is not None:
            return by_hand.shards_of(self._topology, self._wish.split)
        there = [info.shard for info in self._topology.serving]
        strange = sorted(set(self._wish.retire) - {info.shard for info in self._topology.shards})
        if strange:
            allowed = f"shards of this cluster: {', '.join(map(str, there))}"
            raise invalid("retire", ", ".join(map(str, strange)), allowed)
        staying = [shard for shard in there if shard not in self._wish.retire]
        count = len(staying) if self._wish.shards is None else self._wish.shards
        used = len(self._topology.shards)
        if not 1 <= count <= len(staying) + SHARDS_MAX - used:
            raise invalid("shards", count, f"a number from 1 to {len(staying) + SHARDS_MAX - used}")
        new = list(range(used, used + count - len(staying)))
        if max(len(new), len(there) - min(len(staying), count)) > SHARDS_AT_ONCE:
            allowed = f"at most {SHARDS_AT_ONCE} more or fewer at once than the {len(there)} that serve: go in steps"
            raise invalid("shards", count, allowed)
        return staying[:count], new

    def _node(self, info: NodeInfo) -> PlacementNode:
        wish = self._wish
        usable = info.state is NodeState.ACTIVE and info.id not in wish.drain and info.id not in wish.lost
        return PlacementNode(
            id=info.id,
            zone=wish.zones.get(info.id, info.zone),
            weight=wish.weights.get(info.id, info.weight),
            usable=usable and wish.weights.get(info.id, info.weight) > 0,
            open=info.id in self._alive and not info.maintenance,
            tight=info.id in self._tight,
        )

    # --- the plan ----------------------------------------------------------------------------------------------------
    def plan(self) -> Plan:
        known = pieces_of(self._topology, self._stats, self._wish.heat)
        pieces = [piece for piece in known if not {piece.home, piece.owner} & self._apart]
        spread, cannot = self._spread_on_new(pieces)
        batches = range_moves(self._space, spread, self._wish.range_bytes_max)
        ranges = [move for move, _ in batches]
        refused = self._refused(ranges)
        self._new = [] if refused else self._new
        sizes = {shard: one.bytes for shard, one in self._measured.items()}
        final = {**sizes, **dict.fromkeys(self._new, 0)}
        for move in ranges:
            final[move.source] -= move.bytes
            final[move.target] += move.bytes
        for piece in spread:
            if piece.held:  # on its way, and measured at its source still
                final[piece.home] -= piece.bytes
                final[piece.owner] += piece.bytes
        held = {info.shard: info.wanted for info in self._topology.serving}
        acting = bool(ranges or self._new)
        weighs = self._weighs(spread) if self._wish.heat else final
        placed = self._placed(held, sizes, final, weighs, self._wish.threshold * (ACTING if acting else 1))
        new = takewhile(placed.__contains__, self._new)
        founded = [FoundShard(shard=shard, replicas=placed[shard]) for shard in new]
        unplaced = self._new[len(founded) :]
        goal = Goal(
            replicas={} if refused else self._wanted(held, placed),
            founded=founded,
            ranges=list(ranges),
            growing={shard_group(shard) for shard in self._staying if final[shard] > sizes[shard]},
            emptied=[shard for shard in sizes if shard not in self._staying and shard not in self._apart],
            stuck={piece.owner for piece in spread if piece.held} | {info.source for info in self._topology.moves},
        )
        kept = {} if self._wish.by_hand else goal.replicas
        replicas = kept | {shard_group(one.shard): one.replicas for one in founded}
        state = self._state(sizes)
        besides = leftover.not_wished(self._topology, self._wish, self._named)
        moves, unmet, stay = schedule(state, goal, besides)
        if len(moves) > MOVES_MAX:
            raise invalid("wish", f"{len(moves)} moves", f"what takes at most {MOVES_MAX}: go there in steps")
        short, kept_besides = leftover.left(replicas, self._nodes, self._factor, besides)
        unmet += [*refused, *cannot, *short, *self._not_rebuilt.not_yet.values()]
        unmet += [f"shard {shard} cannot be added: no node can take it" for shard in unplaced]
        ended = {group - 1: nodes for group, nodes in state.holders.items() if group != CATALOG_GROUP}
        final = {shard: state.sizes[shard_group(shard)] for shard in ended}
        left = {piece.span[0] for move, batch in batches if move in goal.ranges for piece in batch}
        moved = [piece for _, batch in batches for piece in batch] + [p for p in spread if p.owner == p.home or p.held]
        reached = [piece.to(piece.home) if piece.span[0] in left else piece for piece in moved]
        copied = sum(move.bytes for move in moves if isinstance(move, MoveReplicas))
        least_replicas = copied if self._wish.by_hand else fewest_bytes(self._nodes, copied, held, ended, final)
        return Plan(
            moves=by_hand.explained(moves, self._wish.replace),
            unmet=tuple(dict.fromkeys(unmet)),
            before=Balance(shards=self._evenness(pieces), nodes=fullness(self._nodes, held, sizes)),
            after=Balance(shards=self._evenness(reached), nodes=fullness(self._nodes, ended, final)),
            least=self._least_ranges(pieces, reached) + least_replicas,
            waiting=self._waiting(),
            beyond_help=tuple(self._not_rebuilt.beyond_help.values()),
            besides=tuple(dict.fromkeys([*stay, *kept_besides])),
        )

    def _spread_on_new(self, pieces: Sequence[Piece]) -> tuple[list[Piece], list[str]]:
        """The pieces with the owners that they should have; and why there are fewer new shards than were wished: none
        is added that would stay empty."""
        wished = self._new
        spread = self._spread(pieces)
        if self._space.even or self._wish.split is not None or self._wish.shards is None or not self._staying:
            return spread, []
        while self._new and self._new[-1] not in {piece.owner for piece in spread}:
            self._new = self._new[:-1]
            spread = self._spread(pieces)
        owners = {piece.owner for piece in spread}
        where = "under the strategy range ids are given away, and none is known at which more could be cut"
        left = [f"shard {shard} cannot be added: {where}" for shard in wished[len(self._new) :]]
        left += [f"shard {shard} owns nothing: {where}" for shard in self._staying if shard not in owners]
        return spread, left

    def _spread(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces with the owners that they should have."""
        staying = [*self._staying, *self._new]
        leaving = {info.shard for info in self._topology.serving} - set(staying) - self._apart
        still = self._wish.by_hand or not self._wish.balance
        nothing = still and self._wish.split is None and not leaving and not self._new
        if nothing or not self._staying or (self._wish.split is not None and self._wish.split.into not in staying):
            return list(pieces)
        own = self._wish.range_threshold
        threshold = self._wish.threshold if own is None else own
        if self._wish.split is not None:
            return list(by_hand.halved(self._space, pieces, self._wish.split, threshold, self._wish.goal))
        return Spread(self._space, staying, threshold, self._wish.goal).run(pieces)

    # --- replicas ----------------------------------------------------------------------------------------------------
    def _wanted(self, held: Assignment, placed: Assignment) -> dict[GroupId, Replicas]:
        """Who should hold the groups that are there; by hand only of those that are named."""
        if self._wish.by_hand:
            move, new = self._wish.move, self._wish.replace
            if new is not None:
                found = by_hand.replaced(self._topology, new, self._nodes)
                silent = {shard_group(shard) for shard in self._stats.unknown}
                there = new.new in self._alive
                return {group: nodes for group, nodes in found.items() if there and group not in silent}
            if move is None or move.shard in self._stats.unknown:
                return {}
            return by_hand.moved(self._topology, move, self._nodes)
        kept = [shard for shard in (*self._staying, *self._still) if shard not in self._stats.unknown]
        wanted = {shard_group(shard): self._padded(held[shard], placed.get(shard, ())) for shard in kept}
        return {**wanted, CATALOG_GROUP: self._catalog()}

    def _refused(self, ranges: Sequence[MoveRange]) -> list[str]:
        """Why what is wished by hand cannot be."""
        move, split = self._wish.move, self._wish.split
        known = split is not None and not {split.shard, split.into} & set(self._stats.unknown)
        if split is not None and known and not ranges and not by_hand.has_a_part(self._topology, split.into):
            return [by_hand.why_whole(self._space, split.shard)]
        if move is not None and move.target not in self._alive and self._wanted({}, {}):
            return [f"{move.target} does not answer"]
        return []

    def _weighs(self, spread: Sequence[Piece]) -> Counter[int]:
        """What each shard's replicas are evened out by, where calls count: calls make work on their nodes, too."""
        weighs: Counter[int] = Counter()
        for piece in spread:
            weighs[piece.owner] += piece.weight
        return weighs

    def _placed(
        self,
        held: Assignment,
        sizes: Mapping[int, int],
        final: Mapping[int, int],
        weighs: Mapping[int, int],
        threshold: float,
    ) -> Assignment:
        """The nodes for all shards that are to own something. While one is unknown, nothing moves for the balance of
        the nodes, for it may be the largest; it counts as large as the others."""
        there = [*self._staying, *self._still]
        shards, unknown = [*there, *self._new], self._stats.unknown
        still = self._wish.by_hand or not self._wish.balance or bool(unknown)
        likely = sum(sizes.values()) // max(1, len(sizes) - len(unknown))
        needs = {
            shard: Need(
                replicas=self._factor,
                size=(size := max(0, likely if shard in unknown else weighs[shard]) + EMPTY_REPLICA_BYTES),
                bytes=max(0, final[shard]),
                lead=size if self._wish.heat else 1,
                settled=still or bool(self._unsettled(shard_group(shard), self._factor)),
            )
            for shard in shards
        }
        room: Counter[NodeId] = Counter()
        for shard in there:
            for name in held[shard]:
                room[name] += sizes[shard]
        nodes = []
        for node in self._nodes.values():
            free = self._free[node.id]
            nodes.append(msgspec.structs.replace(node, room=None if free is None else free + room[node.id]))
        if not any(node.usable for node in nodes):
            return {shard: held[shard] for shard in there}
        current = {shard: held.get(shard, ()) for shard in shards}
        return arrange(needs, nodes, current, threshold, self._wish.goal)

    def _unsettled(self, group: GroupId, count: int) -> str:
        """Why a group's replicas should not be moved for the balance: first those that do not answer come back, unless
        they are replaced anyway, or are more than the `count` that it shall have; or what is under way ends."""
        holders = self._topology.holders(group)
        if holders is None:
            return ""
        silent = [node for node in holders.wanted if node not in self._alive and self._nodes[node].usable]
        if len(silent) > max(0, len(holders.wanted) - count):
            return f"{', '.join(silent)} does not answer"
        return "its replicas are being moved" if holders.leaving else ""

    def _padded(self, before: Replicas, after: Replicas) -> Replicas:
        """Where not enough nodes can take replicas, those on nodes to be emptied stay: fewer replicas are no help."""
        rest = sorted((node for node in before if node not in after), key=lambda node: node not in self._alive)
        return (*after, *rest[: max(0, min(len(before), self._factor) - len(after))])

    def _catalog(self) -> Replicas:
        """The nodes that should hold the catalog."""
        held, usable = self._topology.holders(CATALOG_GROUP), [node for node in self._nodes.values() if node.usable]
        before = held.wanted if held is not None else ()
        if not usable:
            return before
        count = self._wish.catalog_nodes
        if count is None:
            # Fewer than the replicas do not stay: those of shards keep their nodes until there are others for them.
            staying = max(len(usable), min(self._factor, len(self._nodes)))
            able, factor, balance = sum(node.open for node in usable), self._factor, self._wish.balance
            count = catalog_count(len(before), staying=staying, able=able, replicas=factor, balance=balance)
        return settled_catalog(before, count, usable, bool(self._unsettled(CATALOG_GROUP, count)), self._alive)

    def _state(self, sizes: Mapping[int, int]) -> State:
        topology = self._topology
        groups = [CATALOG_GROUP, *(shard_group(shard) for shard in sizes)]
        held = {group: known for group in groups if (known := topology.holders(group)) is not None}
        holders = {group: known.wanted for group, known in held.items()}
        documents = {shard_group(shard): self._measured[shard].documents for shard in sizes}
        changing = {
            group: f"the replicas of {group_name(group)} are being moved"
            for group, known in held.items()
            if known.leaving and not set(known.wanted) & set(self._wish.lost)
        }
        moving = {shard_group(shard) for info in topology.moves for shard in (info.source, info.target)}
        changing |= {group: f"key ranges of {group_name(group)} are being moved" for group in moving}
        return State(
            holders=holders,
            sizes={CATALOG_GROUP: 0, **{shard_group(shard): size for shard, size in sizes.items()}},
            documents={CATALOG_GROUP: 0, **documents},
            free=dict(self._free),
            nodes=self._nodes,
            alive=self._alive,
            lost=frozenset(self._wish.lost),
            changing=changing,
            leaving={group: known.leaving for group, known in held.items()},
        )

    def _waiting(self) -> tuple[str, ...]:
        """What the plan leaves out as long as nobody says what a shard holds, if it matters for what is wished."""
        wish, unknown = self._wish, self._stats.unknown
        if silent := by_hand.waits_for(self._topology, wish.replace, self._alive, self._tight):
            return (silent,)
        silent_shards = by_hand.shards_named(self._topology, wish, unknown).intersection(unknown)
        told = self._not_rebuilt.beyond_help.keys() | self._not_rebuilt.not_yet.keys()
        waiting = sorted(silent_shards - told)
        if not (wish.by_hand or wish.balance or wish.retire or wish.shards is not None):
            waiting = [shard for shard in waiting if not self._whole(self._topology.shards[shard].wanted)]
        if not waiting:
            return ()
        numbers = ", ".join(map(str, waiting))
        also = also_lost(self._topology, wish.lost, waiting, self._alive)
        left = "so what it holds is not known: it is left as it is until then"
        return (f"no leader of shard {numbers} answers, {left}{also}",)

    def _whole(self, nodes: Replicas) -> bool:
        return len(nodes) == self._factor and all(self._nodes[node].usable for node in nodes)

    # --- what is said of it ------------------------------------------------------------------------------------------
    def _evenness(self, pieces: Sequence[Piece]) -> float:
        weights: Counter[int] = Counter()
        for piece in pieces:
            weights[piece.owner] += piece.weight
        return imbalance([weights[shard] for shard in (*self._staying, *self._new)])

    def _least_ranges(self, before: Sequence[Piece], after: Sequence[Piece]) -> int:
        split = self._wish.split
        staying = [*self._staying, *self._new] if split is None else [split.shard, split.into]
        weights: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        moved = moved_bytes = 0
        for count, pieces in zip(weights, (before, after), strict=True):
            for piece in pieces:
                count[piece.owner] += piece.weight
        for piece in after:
            if piece.owner != piece.home and not piece.held:
                moved, moved_bytes = moved + piece.weight, moved_bytes + piece.bytes
        if not moved:
            return 0
        gone = sum(weight - weights[1][shard] for shard, weight in weights[0].items() if shard not in staying)
        ends = [weights[1][shard] for shard in staying]
        bound = least([weights[0][shard] for shard in staying], gone, max(ends), min(ends))
        return round(moved_bytes * bound / moved)


def _apart(topology: Topology, stats: ClusterStats) -> frozenset[int]:
    """The shards that are not evened out: those of which nobody says what they hold, and those that something moves to
    or from them, for how much is not known either."""
    unknown = frozenset(stats.unknown)
    moving = [{info.source, info.target} for info in topology.moves]
    return unknown.union(*(pair for pair in moving if pair & unknown))
