"""The checker of who owns keys: what it takes for a violation, and what it cannot have seen."""

from __future__ import annotations

import msgspec
import pytest

from needle.base.ids import shard_group
from needle.protocol.move_commands import PrepareMove
from needle.routing.shard_map import initial_map
from needle.routing.strategy import CONSISTENT_HASH
from needle.routing.topology import MoveInfo, MoveState, Topology
from proof.checkers.committed import Committed, CommittedEntry
from proof.checkers.replay import LogModel
from proof.checkers.violation import Violation
from proof.sim.shards.ownership import Ownerships

MOVE = MoveInfo(id=41, nonce=1, source=0, target=1, ranges=((b"a", b"b"),), state=MoveState.CANCELLING)


def test_a_move_given_up_before_its_source_knows_is_a_violation_unless_nobody_could_see_that() -> None:
    first = initial_map(CONSISTENT_HASH, 2, 8)
    before = Topology(moves=(MOVE,))
    now = msgspec.structs.replace(before, moves=(msgspec.structs.replace(MOVE, state=MoveState.GIVEN_UP),))

    def owned() -> Ownerships:
        made = Ownerships(first, lambda group, collection: LogModel(), list, {})
        prepare = PrepareMove(41, 41, False, [(b"a", b"b")], first.ranges(0), first.strategy, 2)
        made.step(shard_group(0), 3, prepare)
        return made

    with pytest.raises(Violation, match="its source does not know it"):
        owned().catalog(before, now, lambda group: False)
    with pytest.raises(Violation):
        owned().catalog(before, now, lambda group: group == shard_group(1))
    owned().catalog(before, now, lambda group: group == shard_group(0))


def test_an_entry_that_nobody_showed_leaves_a_gap() -> None:
    seen, entry = Committed(), CommittedEntry(1, b"", "")
    seen.opened(1, "a", 1, 0)
    assert not seen.has_gap(1)
    seen.apply(1, "a", 1, 1, entry, None)
    seen.apply(1, "a", 1, 2, entry, None)
    assert not seen.has_gap(1)
    seen.opened(1, "a", 2, 3)
    seen.apply(1, "a", 2, 4, entry, None)
    assert seen.has_gap(1)
