"""Moves of key ranges in the catalog: states, what is refused, what a repeated command does, and the next epoch."""

from __future__ import annotations

import msgspec
import pytest

from catalog.catalog_util import create, entry, topology
from needle.base.errors import InvalidArgument, NeedleError
from needle.base.model import WriteResult
from needle.catalog.machine import CatalogMachine
from needle.catalog.state import execute
from needle.protocol.catalog_commands import (
    AdvanceMove,
    CancelMove,
    CatalogCommand,
    CreateCluster,
    FinishMove,
    RestartMove,
    StartMove,
)
from needle.routing.ranges import difference, union
from needle.routing.shard_map import KeyRange, ShardMap
from needle.routing.strategy import RANGE
from needle.routing.topology import MoveState, Ownership, Topology

HALF: KeyRange = (b"\x10", b"\x20")
"""A part of shard 0 of four that share the range of ids evenly."""


class Catalog:
    """A catalog of four shards."""

    def __init__(self) -> None:
        self.now = topology(strategy=RANGE)
        self.index = 1

    def told(self, command: CatalogCommand) -> WriteResult | NeedleError:
        self.index += 1
        self.now, result = execute(self.now, self.index, command)
        return result

    def done(self, command: CatalogCommand) -> WriteResult:
        result = self.told(command)
        assert isinstance(result, WriteResult), result
        return result

    @property
    def map(self) -> ShardMap:
        assert self.now.map is not None
        return self.now.map


def start(nonce: int = 1, ranges: list[KeyRange] | None = None, source: int = 0, target: int = 2) -> StartMove:
    return StartMove(nonce, 1, ranges or [HALF], source, target)


def test_a_move_changes_the_map_once_and_only_where_it_should() -> None:
    catalog = Catalog()
    before = catalog.map
    move = catalog.done(start()).version
    assert catalog.map == before
    catalog.done(AdvanceMove(move, MoveState.FREEZING))
    assert catalog.map == before
    catalog.done(AdvanceMove(move, MoveState.SWITCHED, 70, 80))
    after = catalog.map
    assert after.epoch == before.epoch + 1
    assert after.ranges(0) == difference(before.ranges(0), [HALF])
    assert after.ranges(2) == union(before.ranges(2), [HALF])
    assert [after.ranges(shard) for shard in (1, 3)] == [before.ranges(shard) for shard in (1, 3)]
    assert [info.since for info in catalog.now.shards] == [70, 0, 80, 0]
    owned = Ownership(after, {info.shard: info.since for info in catalog.now.shards})
    assert (owned.claim(0).since, owned.claim(1).since) == (70, 0)
    assert owned.claim(0).fingerprint != Ownership(before).claim(0).fingerprint
    catalog.done(FinishMove(move))
    assert catalog.now.moves == ()
    assert catalog.map == after


def test_repeating_a_command_changes_nothing_however_late() -> None:
    catalog = Catalog()
    move = catalog.done(start()).version
    steps: list[CatalogCommand] = [
        start(),
        AdvanceMove(move, MoveState.FREEZING),
        AdvanceMove(move, MoveState.SWITCHED, 7, 8),
        FinishMove(move),
    ]
    for at, step in enumerate(steps):
        catalog.told(step)
        now = catalog.now
        for earlier in steps[: at + 1]:
            result = catalog.told(earlier)
            assert catalog.now is now
            assert isinstance(result, WriteResult) or isinstance(earlier, StartMove)
    assert isinstance(catalog.told(start()), InvalidArgument)  # planned by a map that is old by now


@pytest.mark.parametrize(
    "command",
    [
        start(ranges=[(b"\x15", b"\x16")]),
        start(ranges=[(b"\x1f", b"\x30")]),
        start(source=1),
        start(target=0),
        start(target=4),
        start(source=-1),
        start(ranges=[(b"\x30", b"\x30")]),
        start(ranges=[(b"\x30", b"\x31"), (b"\x31", b"\x32")]),
        start(ranges=[(b"\x31", b"\x32"), (b"\x30", b"\x31")]),
        start(ranges=[(b"\x30", None)]),
        StartMove(3, 2, [(b"\x30", b"\x31")], 0, 1),
        AdvanceMove(2, MoveState.SWITCHED, 1, 1),
        FinishMove(2),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(command: CatalogCommand) -> None:
    catalog = Catalog()
    catalog.done(start())
    now = catalog.now
    if isinstance(command, StartMove):
        command = msgspec.structs.replace(command, nonce=99)
    assert isinstance(catalog.told(command), InvalidArgument)
    assert catalog.now is now


def state(catalog: Catalog) -> tuple[str, int] | None:
    return (str(catalog.now.moves[0].state), catalog.now.moves[0].attempt) if catalog.now.moves else None


def test_a_thawed_move_begins_anew_and_late_commands_of_the_attempt_are_refused() -> None:
    catalog = Catalog()
    move = catalog.done(start()).version
    assert isinstance(catalog.told(RestartMove(move, 0)), InvalidArgument)  # nothing is frozen
    catalog.done(AdvanceMove(move, MoveState.FREEZING))
    assert isinstance(catalog.told(RestartMove(move, 1)), InvalidArgument)
    catalog.done(RestartMove(move, 0))
    assert state(catalog) == ("copying", 1)
    now = catalog.now
    assert catalog.done(RestartMove(move, 0)).existed
    for late in (AdvanceMove(move, MoveState.FREEZING), AdvanceMove(move, MoveState.SWITCHED, 7, 8)):
        assert isinstance(catalog.told(late), InvalidArgument)
    assert catalog.now is now
    catalog.done(AdvanceMove(move, MoveState.FREEZING, attempt=1))
    assert isinstance(catalog.told(AdvanceMove(move, MoveState.SWITCHED, 7, 8)), InvalidArgument)
    assert catalog.done(RestartMove(move, 0)).existed
    catalog.done(AdvanceMove(move, MoveState.SWITCHED, 7, 8, attempt=1))
    assert catalog.done(RestartMove(move, 1)).existed
    assert catalog.done(CancelMove(move)).existed
    assert state(catalog) == ("switched", 1)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("decided", [False, True])
def test_a_cancelled_move_ends_where_its_source_says(frozen: bool, decided: bool) -> None:
    catalog = Catalog()
    move, before = catalog.done(start()).version, catalog.map
    if frozen:
        catalog.done(AdvanceMove(move, MoveState.FREEZING))
    catalog.done(CancelMove(move))
    assert catalog.done(CancelMove(move)).existed
    for refused in (AdvanceMove(move, MoveState.FREEZING), FinishMove(move)):
        assert isinstance(catalog.told(refused), InvalidArgument)
    assert catalog.done(RestartMove(move, 0)).existed
    assert state(catalog) == ("cancelling", 0)
    if decided:
        catalog.done(AdvanceMove(move, MoveState.SWITCHED, 7, 8))
        assert catalog.map.owner(HALF[0]) == 2
    else:
        catalog.done(AdvanceMove(move, MoveState.GIVEN_UP))
        assert isinstance(catalog.told(AdvanceMove(move, MoveState.SWITCHED, 7, 8)), InvalidArgument)
        assert isinstance(catalog.told(start(2)), InvalidArgument)  # the target still has a copy
        assert catalog.map == before
    catalog.done(FinishMove(move))
    assert state(catalog) is None
    if not decided:
        catalog.done(start(3))


def test_the_switch_needs_the_entries_of_both_shards() -> None:
    catalog = Catalog()
    catalog.done(start())
    catalog.done(AdvanceMove(2, MoveState.FREEZING))
    assert isinstance(catalog.told(AdvanceMove(2, MoveState.SWITCHED, 5, 0)), InvalidArgument)
    assert isinstance(catalog.told(FinishMove(2)), InvalidArgument)
    assert isinstance(Catalog().told(AdvanceMove(5, MoveState.FREEZING)), WriteResult)  # one that is over


def test_several_moves_of_one_shard_run_side_by_side() -> None:
    catalog = Catalog()
    first, second = catalog.done(start()).version, catalog.done(start(2, [(b"\x30", b"\x31")], target=3)).version
    for move in (second, first):
        catalog.done(AdvanceMove(move, MoveState.FREEZING))
        catalog.done(AdvanceMove(move, MoveState.SWITCHED, move, move))
        catalog.done(FinishMove(move))
    assert catalog.map.owner(b"\x10") == 2
    assert catalog.map.owner(b"\x30") == 3
    assert catalog.map.epoch == 3


def test_a_topology_of_an_older_release_is_read() -> None:
    whole = msgspec.to_builtins(topology(), builtin_types=(bytes,))
    del whole["moves"]
    for shard in whole["shards"]:
        del shard["since"]
    assert msgspec.convert(whole, Topology) == topology()


def test_a_restarted_catalog_knows_its_moves(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = str(tmp_path_factory.mktemp("catalog"))
    machine = CatalogMachine(directory)
    made = create(strategy=RANGE)
    assert isinstance(made, CreateCluster)
    machine.apply([entry(1, made), entry(2, start()), entry(3, AdvanceMove(2, MoveState.FREEZING))])
    machine.close()
    again = CatalogMachine(directory)
    assert again.topology.moves[0].state is MoveState.FREEZING
    again.close()
