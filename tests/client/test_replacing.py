"""A node in the place of another one: what is refused before anything is decided."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.catalog_util import topology
from needle.base.errors import Unavailable
from needle.client.replacing import ReplaceMethods


async def test_who_is_removed_while_a_replacement_is_planned_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def confirmed(timeout: float) -> object:
        return topology(shards=1, factor=3, nodes=4)

    async def stats_of(*_: object) -> object:
        """Of a cluster that has forgotten every node meanwhile."""
        return SimpleNamespace(nodes={}, shard_sizes={})

    monkeypatch.setattr("needle.client.replacing.stats_of", stats_of)
    planning: Any = ReplaceMethods()
    planning._caller, planning._shards = None, SimpleNamespace(confirmed=confirmed)
    with pytest.raises(Unavailable, match="node-4 does not answer"):
        await planning.plan_replacement("node-1", "node-4")
