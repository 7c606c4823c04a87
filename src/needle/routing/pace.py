"""How fast the moves of a rebalance may copy, by its `RebalanceConfig`, and how long a plan takes at least. Pure.

A move of key ranges pauses behind each batch of documents. A replica comes as files, which know no documents: the node
that fetches it rests for as long as a move of as many documents would pause, spread over its bytes; all that it fetches
share these rests. A move of key ranges pauses for itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from needle.base.ids import GroupId, NodeId
from needle.routing.copy_rates import MEASURED_ELSEWHERE, CopyRates
from needle.routing.jobs import Job, JobState, RebalanceConfig
from needle.routing.planned_moves import Move, MoveRange, MoveReplicas

STEPS_SECONDS: Final = 2.0
"""What a move takes beside copying: it is begun, its switch, its end, each at the next look."""


def pauses(documents: float, config: RebalanceConfig) -> float:
    """Seconds, of all pauses while so many documents are copied."""
    return float(documents / config.batch_size * config.throttle_rate)


def rest_of(job: Job | None, group: GroupId, node: NodeId) -> float:
    """Seconds that `node` rests in all while it fetches the replica of a group that it gets by a rebalance, infinite
    while that is paused; 0 for one that it gets by nothing that runs: a follower that was away is never slowed down."""
    if job is None or job.over:
        return 0.0
    for one in job.running:
        move = one.move
        if isinstance(move, MoveReplicas) and move.group == group and node in move.added:
            return math.inf if job.state is JobState.PAUSED else pauses(move.documents / len(move.added), job.config)
    return 0.0


def rate_max(move: Move, config: RebalanceConfig) -> float | None:
    """Bytes a second that such a move copies at most (to each new replica); None if nothing holds it back."""
    if not isinstance(move, MoveRange | MoveReplicas) or not move.bytes or not pauses(move.documents, config):
        return None
    return move.bytes / pauses(move.documents, config)


def expected_seconds(moves: Sequence[Move], config: RebalanceConfig, rates: CopyRates = MEASURED_ELSEWHERE) -> float:
    """About how long they take, if so many go side by side as may, nothing else copies, and sizes stay."""
    free = [0.0] * max(1, min(config.max_concurrent_moves, len(moves)))
    rests: dict[NodeId, float] = {}
    for move in moves:
        at = free.index(min(free))
        free[at] += _seconds(move, config, rates)
        if isinstance(move, MoveReplicas) and move.added:
            for node in move.added:  # which fetches one part after the other, of whatever move
                rests[node] = rests.get(node, 0.0) + pauses(move.documents / len(move.added), config)
    return max(*free, *rests.values(), 0.0)


def _seconds(move: Move, config: RebalanceConfig, rates: CopyRates) -> float:
    if isinstance(move, MoveReplicas) and move.added:
        one = len(move.added)  # new replicas of a shard come side by side
        return STEPS_SECONDS + move.bytes / one / rates.replica + pauses(move.documents / one, config)
    if isinstance(move, MoveRange):
        return STEPS_SECONDS + move.documents / rates.range + pauses(move.documents, config)
    return STEPS_SECONDS
