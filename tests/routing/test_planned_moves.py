"""Moves of a plan, as who asked for it reads them."""

from __future__ import annotations

import pytest

from needle.base.ids import CATALOG_GROUP, shard_group
from needle.routing.planned_moves import MoveReplicas, PreferLeader


@pytest.mark.parametrize("kind", [MoveReplicas, PreferLeader])
@pytest.mark.parametrize("shard", [-1, 0, 7])
def test_a_move_names_its_shard_as_its_words_do(kind: type[MoveReplicas | PreferLeader], shard: int) -> None:
    group = CATALOG_GROUP if shard < 0 else shard_group(shard)
    move = kind(group=group, before=("n1",), after=("n2",), documents=0, bytes=0)
    assert move.shard == shard
    assert ("the catalog" if shard < 0 else f"shard {shard}") in move.in_words()
