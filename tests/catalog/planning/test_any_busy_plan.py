"""Plans for any cluster in which something is moved already and nodes are in maintenance: each state on the way is
legal, whenever what was under way ends, and in the end nothing is left to move."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.planning.planned_world import World
from catalog.planning.test_any_plan import worlds
from catalog.planning.test_rebalance import Coordinator, coordinator
from needle.base.errors import NeedleError
from needle.base.ids import NodeId
from needle.catalog.planning.planner import plan
from needle.catalog.state import execute
from needle.protocol.catalog_commands import MaintainNode
from needle.routing.planned_moves import FoundShard, Move, MoveReplicas, disjoint
from needle.routing.plans import Wish
from needle.routing.topology import NodeState

PLANS = 8
"""So many, one after the other, are enough to come to an end."""


@st.composite
def busy(draw: st.DrawFn) -> tuple[World, Wish, Coordinator]:
    """A cluster as of `worlds`, some of whose nodes are in maintenance, with moves under way for another wish."""
    made, wish = draw(worlds())
    made.capacity = {}
    if wish.by_hand:  # it may name what has moved since
        wish = Wish()
    names = sorted(made.topology.addresses())
    for name in draw(st.lists(st.sampled_from(names), unique=True, max_size=len(names))):
        made.index += 1
        after, result = execute(made.topology, made.index, MaintainNode(name, True))
        if not isinstance(result, NeedleError):  # else a group would have nobody to lead it
            made.topology = after
    other = draw(
        st.sampled_from(
            [
                Wish(shards=len(made.topology.shards) + 1),
                Wish(shards=max(1, len(made.topology.shards) - 1)),
                Wish(replicas=draw(st.integers(1, 4))),
                Wish(drain=(draw(st.sampled_from(names)),)),
            ]
        )
    )
    closed, made.closed = made.closed, set(other.drain)
    moving = coordinator(made, other, draw(st.integers(1, 4)))
    for _ in range(draw(st.integers(1, 3))):
        moving.look()
        if moving.running and draw(st.booleans()):
            moving.finish(draw(st.integers(0, 9)))
    made.closed = closed
    return made, wish, moving


@settings(max_examples=40, deadline=None)
@given(busy(), st.data())
def test_any_plan_beside_moves_and_maintenance_is_legal_and_comes_to_an_end(
    given_world: tuple[World, Wish, Coordinator], data: st.DataObject
) -> None:
    made, wish, moving = given_world
    for _ in range(PLANS):
        found = plan(made.topology, made.stats(), wish)
        for move in found.moves:
            while moving.running and (not _beside(move, moving) or data.draw(st.booleans())):
                _end(made, moving, data.draw(st.integers(0, 9)))
            _rests(made, move)
            made.step(move)
        if not found.moves and not moving.running:
            return
        while moving.running:
            _end(made, moving, data.draw(st.integers(0, 9)))
    raise AssertionError(f"it does not end: {found.in_words()}")


def _end(made: World, moving: Coordinator, at: int) -> None:
    """What others began, by a wish that closed other nodes."""
    closed, made.closed = made.closed, set(moving.job.wish.drain)
    moving.finish(at)
    made.closed = closed


def _beside(move: Move, moving: Coordinator) -> bool:
    return all(disjoint(move, one.move) for one, _ in moving.running)


def _rests(made: World, move: Move) -> None:
    """A node in maintenance gets something new only where no other node could take it."""
    if not isinstance(move, MoveReplicas | FoundShard):
        return
    added = set(move.added if isinstance(move, MoveReplicas) else move.replicas)
    after = set(move.after if isinstance(move, MoveReplicas) else move.replicas)
    spare = [one.id for one in made.topology.nodes if _able(made, one.id) and one.id not in after]
    assert not (added & _resting(made) and spare), (move, spare)


def _able(made: World, node: NodeId) -> bool:
    one = made.topology.node(node)
    assert one is not None
    usable = one.state is NodeState.ACTIVE and one.weight > 0 and not one.maintenance
    return usable and node not in made.dead | made.closed


def _resting(made: World) -> set[NodeId]:
    return {one.id for one in made.topology.nodes if one.maintenance}
