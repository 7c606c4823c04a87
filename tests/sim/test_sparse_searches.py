"""What the checker of searches by sparse vectors makes of those that were dropped."""

from __future__ import annotations

import msgspec
import pytest

from needle.base.model import CollectionSpec
from needle.routing.collection_info import CollectionInfo
from needle.routing.topology import Topology
from proof.checkers.sparse_searches import SparseSeen, check_dropped
from proof.checkers.violation import Violation
from proof.checkers.word_searches import Round

GONE = Topology(collections=(CollectionInfo(id=1, spec=CollectionSpec(name="c", dimensions=2), sparse=("other",)),))
THERE = Topology(collections=(msgspec.structs.replace(GONE.collections[0], sparse=("other", "splade")),))


def seen(applied: dict[int, int]) -> SparseSeen:
    return SparseSeen(
        label="search 1", field="splade", query={}, k=3, keep=None, found=Round(applied, 4), hits=[], required={}
    )


@pytest.mark.parametrize("since", [[GONE], [GONE, GONE], [Topology()]])
def test_an_answer_is_none_that_may_be(since: list[Topology]) -> None:
    with pytest.raises(Violation, match="search 1 was answered by the shards"):
        check_dropped(since, "c", seen({0: 7, 2: 3}))


def test_what_was_declared_again_late_may_be_found() -> None:
    check_dropped([GONE, THERE], "c", seen({0: 7}))
    check_dropped([GONE, THERE, GONE], "c", seen({0: 7}))


def test_where_no_shard_answered_nothing_was_found() -> None:
    check_dropped([GONE], "c", seen({}))
