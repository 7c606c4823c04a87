"""A node in the place of another one: what is refused before anything is decided."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.catalog_util import topology
from needle.base.errors import Unavailable
from needle.client.replacing import ReplaceMethods


class Planning(ReplaceMethods):
    """Of a client whose cluster forgets every node between two questions."""

    def __init__(self) -> None:
        async def confirmed(timeout: float) -> object:
            return topology(shards=1, factor=3, nodes=4)

        self._shards: Any = SimpleNamespace(confirmed=confirmed)

    async def get_stats(self, *, timeout: float = 10.0) -> Any:
        return SimpleNamespace(nodes={}, shard_sizes={})


async def test_who_is_removed_while_a_replacement_is_planned_is_refused_by_name() -> None:
    with pytest.raises(Unavailable, match="node-4 does not answer"):
        await Planning().plan_replacement("node-1", "node-4")
