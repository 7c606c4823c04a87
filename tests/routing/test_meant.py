"""Which shard an operator's call is about."""

from __future__ import annotations

import pytest

from needle.base.errors import InvalidArgument, Unavailable
from needle.routing.meant import shard_meant
from needle.routing.topology import ShardInfo, Topology


def of(*shards: ShardInfo) -> Topology:
    return Topology(shards=shards)


ONE = ShardInfo(shard=0, replicas=("a",), founders=("a",))
TWO = ShardInfo(shard=1, replicas=("a",), founders=("a",))
GONE = ShardInfo(shard=0, replicas=(), founders=("a",), retired=True)


def test_the_only_shard_needs_no_name_whatever_its_number_is() -> None:
    assert shard_meant(of(ONE), None) == ONE
    assert shard_meant(of(GONE, TWO), None) == TWO


def test_of_several_shards_one_is_named() -> None:
    assert shard_meant(of(ONE, TWO), 1) == TWO
    with pytest.raises(InvalidArgument, match=r"which shard is meant.*from 0 to 1"):
        shard_meant(of(ONE, TWO), None)


@pytest.mark.parametrize("shard", [-1, 2, True, "1", 0.5])
def test_what_is_no_shard_is_refused(shard: int) -> None:
    with pytest.raises(InvalidArgument, match="from 0 to 1"):
        shard_meant(of(ONE, TWO), shard)


def test_before_there_are_shards_it_says_so() -> None:
    with pytest.raises(Unavailable, match="no shards yet"):
        shard_meant(of(), 0)
