"""A node in the place of another one: what is refused before anything is decided."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.catalog_util import topology
from needle.base.errors import InvalidArgument, Unavailable
from needle.base.ids import CATALOG_GROUP, shard_group
from needle.catalog.state import execute
from needle.client.replacing import ReplaceMethods
from needle.protocol.catalog_commands import AssignReplicas, ConfirmReplicas, RemoveNode
from needle.routing.topology import Topology


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


async def _planned(now: Topology, old: str, new: str) -> object:
    async def confirmed(timeout: float) -> Topology:
        return now

    planning: Any = ReplaceMethods()
    planning._caller, planning._shards = None, SimpleNamespace(confirmed=confirmed)
    return await planning.plan_replacement(old, new)


async def test_of_two_who_want_different_nodes_in_the_place_of_one_the_second_is_told() -> None:
    now = topology(shards=1, factor=3, nodes=5)
    for group in (CATALOG_GROUP, shard_group(0)):
        held = now.holders(group)
        assert held is not None
        after = ["node-4" if node == "node-1" else node for node in held.wanted]
        now, _ = execute(now, now.version + 1, AssignReplicas(group, list(held.wanted), after))
    assert await _planned(now, "node-1", "node-4") == []  # who repeats it goes on waiting
    with pytest.raises(InvalidArgument, match=r"the catalog is on its way from node-1 to .*node-4.* already"):
        await _planned(now, "node-1", "node-5")
    for group in (CATALOG_GROUP, shard_group(0)):
        held = now.holders(group)
        assert held is not None
        now, _ = execute(now, now.version + 1, ConfirmReplicas(group, held.assigned))
    now, _ = execute(now, now.version + 1, RemoveNode("node-1"))
    assert await _planned(now, "node-1", "node-4") == []
    with pytest.raises(InvalidArgument, match="node-1 was removed from this cluster before, and not for node-5"):
        await _planned(now, "node-1", "node-5")
