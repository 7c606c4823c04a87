"""Which decision of the catalog begins a planned move. Pure."""

from __future__ import annotations

from needle.protocol.catalog_commands import AddShard, AssignReplicas, RetireShard, StartMove
from needle.routing.jobs import RebalanceConfig
from needle.routing.planned_moves import FoundShard, GiveUpShard, Move, MoveRange

AT_ONCE = RebalanceConfig(throttle_rate=0.0)


def command_of(
    move: Move, nonce: int = 0, epoch: int = 0, pace: RebalanceConfig = AT_ONCE
) -> AddShard | AssignReplicas | RetireShard | StartMove:
    """What the catalog is told. For a move of key ranges: nonce, random; epoch, of the map by which the source owns
    the ranges; pace, at which it copies."""
    if isinstance(move, FoundShard):
        return AddShard(move.shard, list(move.replicas))
    if isinstance(move, GiveUpShard):
        return RetireShard(move.shard)
    if isinstance(move, MoveRange):
        ranges = list(move.ranges)
        return StartMove(nonce, epoch, ranges, move.source, move.target, pace.batch_size, pace.throttle_rate)
    return AssignReplicas(move.group, list(move.before), list(move.after))
