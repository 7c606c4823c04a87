"""Moves of documents with named vectors that the catalog, or the node that drives the move, does not know."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest

from client.fake_shards import virtually
from needle.base.model import Metric, VectorSpec
from needle.protocol.catalog_commands import StartMove
from needle.protocol.commands import CreateCollection, Named
from needle.protocol.move_commands import Freeze, PrepareMove
from needle.routing.strategy import RANGE
from needle.routing.topology import NamedVector
from needle.server.upkeep.mover import Mover
from needle.server.upkeep.range_copy import listed
from needle.shard import copying
from needle.shard.named_reads import Wanted, get_named
from server.test_mover import MADE, World, until
from shard.replica_util import floats, put

TITLE = NamedVector("title", 9000, VectorSpec(dimensions=2, metric=Metric.L2))
LOST = NamedVector("lost", 9100, VectorSpec(dimensions=2, metric=Metric.L2))
KNOWN, UNKNOWN = MADE.stored_vector(TITLE), MADE.stored_vector(LOST)


def _world(path: Path) -> World:
    """The source has two named vectors, of which the catalog and the target know one."""
    world = World(path, random.Random(1))
    world.writes = False
    info = msgspec.structs.replace(MADE, vectors=(TITLE,))
    world.topology = msgspec.structs.replace(world.topology, collections=(info,))
    for group, name, one in ((1, KNOWN, TITLE), (2, KNOWN, TITLE), (1, UNKNOWN, LOST)):
        world.apply(group, CreateCollection(one.spec.stored_as(name, MADE.stored_name)))
    return world


def _write(world: World, first: int) -> None:
    for n in range(first, first + 5):
        named = [Named(KNOWN, [0], floats([n, 1])), Named(UNKNOWN, [0], floats([n, 2]))]
        world.apply(1, put([f"m{n}"], [[n, 1, 1]], [{}], collection=MADE.stored_name, named=named))


@pytest.mark.parametrize("late", [False, True])
def test_a_vector_that_the_catalog_does_not_know_holds_no_move_up(tmp_path: Path, late: bool) -> None:
    """The target refused each import, for good. late: some are written right before the freeze."""

    async def work() -> None:
        world = _world(tmp_path)
        _write(world, 0)

        def seen(command: object, done: bool) -> None:
            if late and isinstance(command, Freeze) and not done:
                _write(world, 5)

        world.seen = seen
        await world.command(StartMove(1, 1, [(b"m", b"n\xff")], 0, 1), 1.0)
        driver = asyncio.create_task(Mover(world.node(), 3).run())
        async with asyncio.timeout(100):
            await until(lambda: not world.topology.moves)
        driver.cancel()
        await asyncio.gather(driver, return_exceptions=True)
        names = [f"m{n}" for n in range(10 if late else 5)]
        wanted = Wanted(MADE.stored_name, names, False, [KNOWN])
        documents, (named,) = get_named(world.replicas[2].reads(), wanted, None, b"")
        assert len(documents) == len(named.rows) == len(names)

    virtually(work())


def test_a_vector_of_which_the_driver_has_not_heard_yet_is_copied(tmp_path: Path) -> None:
    """It would be lost: the document counts as copied."""

    async def work() -> None:
        world = _world(tmp_path)
        _write(world, 0)
        world.apply(1, PrepareMove(9, 9, False, [(b"m", None)], [(b"", None)], RANGE, 2))
        rows, _, _ = copying.page(world.replicas[1].view, MADE.stored_name, [(b"m", None)], -1, 10)
        assert {name for row in rows for name, _, _ in row.named} == {KNOWN, UNKNOWN}
        world.known = msgspec.structs.replace(world.topology, collections=(MADE,))
        for row in await listed(world.node(), MADE.stored_name, rows):
            assert [name for name, _, _ in row.named] == [KNOWN]

    virtually(work())
