"""The catalog's commands for growing and shrinking: shards come and go, nodes are drained."""

from __future__ import annotations

from catalog.catalog_util import topology
from needle.base.errors import InvalidArgument
from needle.base.model import WriteResult
from needle.catalog.state import execute
from needle.protocol.catalog_commands import AddShard, DrainNode, RetireShard, StartMove, decode, encode
from needle.routing.topology import NodeState


def test_a_shard_is_added_once_and_owns_nothing() -> None:
    command = AddShard(4, ["node-2", "node-1"])
    made, first = execute(topology(), 2, decode(encode(command)))
    again, second = execute(made, 3, command)
    assert isinstance(first, WriteResult)
    assert isinstance(second, WriteResult)
    assert again is made
    assert second.existed
    assert made.shards[4].replicas == ("node-2", "node-1")
    assert made.map == topology().map


def test_a_shard_of_another_number_or_on_a_strange_node_is_refused() -> None:
    for command in (AddShard(9, ["node-1"]), AddShard(-1, ["node-1"]), AddShard(4, ["nobody"]), AddShard(4, [])):
        before = topology()
        after, result = execute(before, 2, command)
        assert after is before
        assert isinstance(result, InvalidArgument)


def test_only_a_shard_that_owns_nothing_is_retired() -> None:
    made, _ = execute(topology(), 2, AddShard(4, ["node-1"]))
    assert isinstance(execute(made, 3, RetireShard(0))[1], InvalidArgument)
    assert made.map is not None
    moving, _ = execute(made, 3, StartMove(1, made.map.epoch, made.map.ranges(0)[:1], 0, 4))
    assert isinstance(execute(moving, 4, RetireShard(4))[1], InvalidArgument)
    gone, _ = execute(made, 3, RetireShard(4))
    assert gone.shards[4].retired
    assert gone.holders(5) is None
    assert [one.shard for one in gone.serving] == [0, 1, 2, 3]
    assert isinstance(execute(gone, 4, StartMove(1, made.map.epoch, made.map.ranges(0)[:1], 0, 4))[1], InvalidArgument)
    assert execute(gone, 4, RetireShard(4))[0] is gone


def test_a_node_is_drained_and_used_again() -> None:
    made, _ = execute(topology(), 2, DrainNode("node-1", True))
    known = made.node("node-1")
    assert known is not None
    assert known.state is NodeState.DRAINING
    assert execute(made, 3, DrainNode("node-1", True))[0] is made
    back, _ = execute(made, 3, DrainNode("node-1", False))
    assert back.nodes == topology().nodes
    assert isinstance(execute(made, 3, DrainNode("nobody", True))[1], InvalidArgument)
