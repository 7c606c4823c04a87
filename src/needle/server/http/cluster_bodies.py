"""What requests about nodes, shards and rebalancing hold, and what their answers say."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from needle.routing.jobs import Progress, RebalanceConfig
from needle.routing.plans import REPLICAS_MAX, WISHED_MAX, Balance, Replacement, ReplicaMove, ShardSplit, Wish
from needle.server.http.bodies import Body, Positive, Whole


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """state: active, draining or removed. maintenance: it leads nothing while somebody works on it. knows: up to
    which version of commands and formats, by its own word."""

    id: str
    address: str
    zone: str
    weight: float
    state: str
    maintenance: bool
    knows: int


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """replicas: nodes, the preferred leader first. leader: null while there is none. documents: as it counts them."""

    shard: int
    replicas: list[str]
    leader: str | None
    state: str
    documents: int
    problems: list[str]


class Moving(msgspec.Struct, frozen=True, kw_only=True):
    """A move of key ranges that is under way."""

    id: int
    source: int
    target: int
    state: str
    ranges: int


class Nodes(msgspec.Struct, frozen=True, kw_only=True):
    """All that were not removed."""

    nodes: list[Node]


class Shards(msgspec.Struct, frozen=True, kw_only=True):
    """All that serve."""

    shards: list[Shard]


class Moves(msgspec.Struct, frozen=True, kw_only=True):
    """Those under way."""

    moves: list[Moving]


class ClusterView(msgspec.Struct, frozen=True, kw_only=True):
    """version: of the catalog; epoch: of the map of shards. healthy: every shard has a leader and all its replicas
    keep up; warnings say what else to know. waiting: what was decided and does not go on now, and why.
    cluster_version: of commands and formats, which every node knows."""

    version: int
    epoch: int
    healthy: bool
    warnings: list[str]
    waiting: list[str]
    nodes: list[Node]
    shards: list[Shard]
    collections: list[str]
    moves: list[Moving]
    cluster_version: int


class StepDown(Body, frozen=True, kw_only=True):
    """to: the node that is to lead; by default the one that is least behind."""

    to: str | None = None


class ForceElection(Body, frozen=True, kw_only=True):
    """node: that is to campaign; by default one that does not lead."""

    node: str | None = None


class Leader(msgspec.Struct, frozen=True, kw_only=True):
    """Who leads a shard now, or the catalog; null while nobody does."""

    shard: int | Literal["catalog"]
    leader: str | None


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """It is done."""

    done: bool = True


class PlannedRestart(msgspec.Struct, frozen=True, kw_only=True):
    """leads: the shards (and the catalog) that the node leads, by name. why_not: why it cannot be restarted now; empty
    if it can. seconds: about how long it takes, if it is restarted at once."""

    node: str
    address: str
    leads: list[str]
    why_not: str
    seconds: float


class RestartPlan(msgspec.Struct, frozen=True, kw_only=True):
    """In the order in which they should be restarted, one at a time."""

    nodes: list[PlannedRestart]


class SetReplicas(Body, frozen=True, kw_only=True):
    """nodes: that are to hold the shard, or the catalog, the preferred leader first."""

    nodes: list[str]


class AskedPace(RebalanceConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As it is asked for, and so below: catalogs of later releases may say more of it, requests may not. What is
    spelled wrong would not be wished for."""

    __doc__ = RebalanceConfig.__doc__


class AskedMove(ReplicaMove, frozen=True, kw_only=True, forbid_unknown_fields=True):
    __doc__ = ReplicaMove.__doc__


class AskedSplit(ShardSplit, frozen=True, kw_only=True, forbid_unknown_fields=True):
    __doc__ = ShardSplit.__doc__


class AskedReplacement(Replacement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    __doc__ = Replacement.__doc__


class AskedWish(Wish, frozen=True, kw_only=True, forbid_unknown_fields=True):
    __doc__ = Wish.__doc__

    move: AskedMove | None = None
    split: AskedSplit | None = None
    replace: AskedReplacement | None = None


def wished(wish: AskedWish | None) -> Wish | None:
    """What the catalog is told."""
    return None if wish is None else msgspec.convert(msgspec.to_builtins(wish), Wish)


def pace_of(config: AskedPace | None) -> RebalanceConfig | None:
    """What the catalog is told."""
    return None if config is None else msgspec.convert(msgspec.to_builtins(config), RebalanceConfig)


class SplitShard(Body, frozen=True, kw_only=True):
    """config: its pace."""

    config: AskedPace | None = None


class MoveReplica(SplitShard, frozen=True, kw_only=True):
    """source: the node that holds the shard (in the path: its number, or `catalog`), dead or alive. target: that is to
    hold it instead."""

    source: str
    target: str


class SetZone(Body, frozen=True, kw_only=True):
    """zone: whatever the node's own setting says; null: its setting counts again."""

    zone: str | None


class SetWeight(Body, frozen=True, kw_only=True):
    """weight: its share of the replicas beside that of others, 0 for none, whatever the node's own setting says; null:
    its setting counts again."""

    weight: float | None


class EnterMaintenance(Body, frozen=True, kw_only=True):
    """force: also if a shard or the catalog needs this node, because others do not answer or are behind."""

    force: bool = False


class DrainNode(Body, frozen=True, kw_only=True):
    """config: its pace."""

    config: AskedPace | None = None


class ReplaceNode(DrainNode, frozen=True, kw_only=True):
    """by: the node that is to hold all of it; it has joined, and holds nothing of it yet. wait: until it is done."""

    by: str
    wait: bool = True


class Replacing(msgspec.Struct, frozen=True, kw_only=True):
    """id: of the rebalance; null if the node was removed before. done: whether it has taken the node's place."""

    id: int | None
    done: bool


class PlanRebalance(Body, frozen=True, kw_only=True):
    """wish: how the cluster should be; even, if it is left out. config: its pace."""

    wish: AskedWish | None = None
    config: AskedPace | None = None

    def __post_init__(self) -> None:
        if self.wish is not None and self.wish.count > WISHED_MAX:
            raise ValueError(f"a wish names at most {WISHED_MAX} shards and nodes, not {self.wish.count}")
        try:
            msgspec.msgpack.encode(self.wish)  # as it goes to the catalog
        except OverflowError:
            raise ValueError("a number of the wish has more than 64 bits") from None


class StartRebalance(PlanRebalance, frozen=True, kw_only=True):
    """wish: how the cluster should be; even, if it is left out. config: its pace."""


class StartedRebalance(msgspec.Struct, frozen=True, kw_only=True):
    """id: of the rebalance."""

    id: int


class WhichRebalance(Body, frozen=True, kw_only=True):
    """id: of the last rebalance, or of one of the 16 before it; by default the last one."""

    id: Positive | None = None


class AskRebalance(Body, frozen=True, kw_only=True):
    """id: by default the last rebalance."""

    id: Whole | None = None


class SetReplication(Body, frozen=True, kw_only=True):
    """replicas: that each shard is to have, 1 to 7, and one on each node at most. config: the pace of the rebalance
    that follows."""

    replicas: Annotated[int, Meta(ge=1, le=REPLICAS_MAX)]
    config: AskedPace | None = None


class Replicating(msgspec.Struct, frozen=True, kw_only=True):
    """id: of the rebalance; null if nothing has to move."""

    id: int | None


class PlannedMove(msgspec.Struct, frozen=True, kw_only=True):
    """type: found-shard, move-range, move-replicas, prefer-leader or give-up-shard. documents, bytes: that it copies.
    shards: that it is about, -1 for the catalog."""

    type: str
    shards: list[int]
    documents: int
    bytes: int


class PlanView(msgspec.Struct, frozen=True, kw_only=True):
    """moves: in order, in words; details: the same moves in numbers. unmet: what of the wish is left, and why. waiting:
    what waits for a shard to have a leader. beyond_help: shards that nobody can rebuild, because most of their replicas
    are on lost nodes; such a wish is refused. besides: what stays otherwise than the catalog says, and is not what is
    wished. documents, bytes: that all of it copies. least_bytes: that any plan must
    move; ratio: bytes over that. seconds: about how long it takes at the pace of `config`, if nothing else copies."""

    moves: list[str]
    details: list[PlannedMove]
    documents: int
    bytes: int
    ratio: float
    seconds: float
    unmet: list[str]
    waiting: list[str]
    beyond_help: list[str]
    besides: list[str]
    before: Balance
    after: Balance
    least_bytes: int


class ProgressView(msgspec.Struct, frozen=True, kw_only=True):
    """progress: of the rebalance that was asked for; null if there never was one."""

    progress: Progress | None
