"""Strategies as people write them."""

import pytest

from needle.base.errors import ConfigError
from needle.routing.strategy import ShardStrategy, parse_strategy


def test_strategies_by_name() -> None:
    assert parse_strategy("--strategy", "hash") == ShardStrategy.HASH
    assert parse_strategy("--strategy", "custom:tenant,region") == ShardStrategy.custom("tenant", "region")
    for text in ("hash", "range", "consistent_hash", "custom:tenant", "custom:tenant,region", "router:mine"):
        assert parse_strategy("--strategy", text).text() == text
    for wrong in ("rendezvous", "custom", "custom:", "custom:a,,b", "router:", ""):
        with pytest.raises(ConfigError, match="--strategy"):
            parse_strategy("--strategy", wrong)
