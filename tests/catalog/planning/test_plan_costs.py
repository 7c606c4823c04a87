"""What a plan costs follows what it is about, and not its square."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from catalog.catalog_util import topology
from needle.catalog.planning import placement, schedule
from needle.catalog.planning.planner import plan
from needle.routing.planned_moves import MoveReplicas
from needle.routing.plans import Wish
from needle.routing.stats import ClusterStats, NodeStats, ShardStats

SHARDS, NODES = 48, 12


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: Counter[str]) -> None:
    real = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        calls[name] += 1
        return real(*arguments)

    monkeypatch.setattr(owner, name, call)


def test_zones_that_split_every_shard_take_a_few_looks_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    counted(monkeypatch, schedule, "_urgency", calls)
    counted(monkeypatch, placement._Board, "_spread_zone", calls)
    now = topology(SHARDS, 3, NODES)
    shards = tuple(ShardStats(shard=info.shard, documents=1 << 20, bytes=2 << 30) for info in now.serving)
    stats = ClusterStats(shards=shards, nodes=tuple(NodeStats(node=one.id) for one in now.nodes))
    made = plan(now, stats, Wish(zones={f"node-{n}": f"zone-{(n - 1) // 4}" for n in range(1, NODES + 1)}))
    moves = [move for move in made.moves if isinstance(move, MoveReplicas)]
    assert len(moves) > SHARDS and made.unmet == ()
    assert calls["_urgency"] <= 4 * len(moves)
    assert calls["_spread_zone"] <= 10 * SHARDS
