"""What no cluster has in a wish, numbers, ids and other types, is refused before it is sent: by field, and with what
is allowed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from needle.base.errors import InvalidArgument
from needle.routing.plans import Replacement, ReplicaMove, ShardSplit, Wish

HUGE = 2**70


@pytest.mark.parametrize(
    ("field", "given"),
    [
        *[(name, {name: value}) for name in ("shards", "replicas", "catalog_nodes") for value in (HUGE, -1, 0, -HUGE)],
        *[("range_bytes_max", {"range_bytes_max": value}) for value in (HUGE, -1)],
        *[("retire", {"retire": (value,)}) for value in (HUGE, -1)],
        *[(name, {name: 10**400}) for name in ("threshold", "goal", "range_threshold", "heat")],
        *[(name, {name: float("nan")}) for name in ("threshold", "goal", "range_threshold", "heat")],
        ("weight of node-1", {"weights": {"node-1": 10**400}}),
        ("shard", {"move": ReplicaMove(shard=HUGE, source="node-1", target="node-2")}),
        ("shard", {"move": ReplicaMove(shard=-2, source="node-1", target="node-2")}),
        ("shard", {"split": ShardSplit(shard=HUGE, into=4)}),
        ("into", {"split": ShardSplit(shard=0, into=HUGE)}),
    ],
)
def test_a_number_that_no_cluster_has_is_refused_by_name(field: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=" is not allowed: ") as caught:
        Wish(**given).check_asked()
    assert caught.value.details["field"] == field and caught.value.message.startswith(field)


HALF = "\ud800"
"""A lone surrogate, which UTF-8 cannot encode."""
NO_DICTS: list[Any] = [5, "1", None, ["node-1"]]
NO_MOVES: list[Any] = [5, "1", {}, Wish()]


@pytest.mark.parametrize(
    ("field", "given"),
    [
        *[(name, {name: value}) for name in ("weights", "zones") for value in NO_DICTS],
        *[(name, {name: value}) for name in ("move", "split", "replace") for value in NO_MOVES],
        *[("balance", {"balance": value}) for value in (HUGE, 1, None)],
        *[(name, {name: (HALF,)}) for name in ("drain", "lost")],
        *[(name, {name: {node: value}}) for name, value in (("weights", 1.0), ("zones", "a")) for node in (HALF, 5)],
        *[("zone of node-1", {"zones": {"node-1": zone}}) for zone in (HALF, 5, None, "z" * 300)],
        ("source", {"move": ReplicaMove(shard=0, source=HALF, target="node-2")}),
        ("target", {"move": ReplicaMove(shard=0, source="node-1", target=5)}),  # type: ignore[arg-type]
        ("old", {"replace": Replacement(old=HALF, new="node-2")}),
        ("new", {"replace": Replacement(old="node-1", new=None)}),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(field: str, given: dict[str, Any]) -> None:
    """It was an error of Python's: of an attribute, a codec, or a length."""
    with pytest.raises(InvalidArgument, match=" is not allowed: ") as caught:
        Wish(**given).check_asked()
    assert caught.value.details["field"] == field and caught.value.message.startswith(field)


@pytest.mark.parametrize(
    "wish",
    [Wish(), Wish(shards=8, retire=(3,), replicas=3, catalog_nodes=5), Wish(split=ShardSplit(shard=0, into=4))],
)
def test_what_can_be_is_taken_and_can_be_sent(wish: Wish) -> None:
    wish.check_asked()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(wish), type=Wish) == wish


def test_the_catalog_moves_too() -> None:
    Wish(move=ReplicaMove(shard=-1, source="node-1", target="node-2")).check_asked()
