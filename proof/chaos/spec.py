"""What a chaos run is asked for, and what follows from it: the workload's profile and the nodes' settings. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from proof.sim.machine import stream
from proof.sim.spec import Profile

HASTY_SECONDS = 0.15
"""The timeout of every second client: many of its writes are of unknown fate."""
BLOCKED_EVERY, BLOCKED_SECONDS = 8.0, (0.1, 0.6)
"""How often, and between how many seconds long, the event loop of all clients does something else."""


class ChaosSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A run. replication_factor: replicas of each shard; of one shard alone all nodes have one. seconds: of faults and
    load, or longer until there were `rounds` of faults. election_timeout, heartbeat_interval: seconds, for every
    node."""

    seed: int
    nodes: int = 3
    shards: int = 1
    replication_factor: int = 3
    seconds: float = 300.0
    rounds: int = 0
    election_timeout: float = 0.5
    heartbeat_interval: float = 0.1
    think_seconds: float = 0.05


def profile(spec: ChaosSpec) -> Profile:
    """Of the workload, drawn from the seed."""
    rng = stream(spec.seed, "chaos", "profile")
    return Profile(
        dimensions=8,
        metric=rng.choice(["cosine", "l2", "dot"]),
        snapshot_threshold=rng.choice([50, 200]),
        seal_rows=30,
        rows_max=480,
        think_seconds=spec.think_seconds,
        delay=0.0,
        clock_error=0.0,
        key_slots=12 * max(1, spec.shards // 2),
        operations_per_key=30,
        hot_share=0.3,
    )


def settings(spec: ChaosSpec, made: Profile) -> dict[str, Any]:
    """Of every node (RaftConfig): from them the cluster founds itself."""
    replicas = {"replicas": spec.replication_factor} if spec.shards > 1 else {}
    return {
        "sharding": {"shards": spec.shards, **replicas},
        "dimensions": made.dimensions,
        "metric": made.metric,
        "election_timeout": spec.election_timeout,
        "heartbeat_interval": spec.heartbeat_interval,
        "snapshot_threshold": made.snapshot_threshold,
        "disk_reserve_bytes": 16 << 20,
        "segments": {"seal_rows": made.seal_rows, "rows_max": made.rows_max, "ship_timeout": 3.0},
    }
