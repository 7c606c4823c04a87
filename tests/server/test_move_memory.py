"""What a move of key ranges holds at a time is bounded at both ends: a page at the driver, a part of one at the
target."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from client.fake_shards import virtually
from needle.protocol.catalog_commands import StartMove
from needle.protocol.move_commands import Freeze, Import
from needle.server.upkeep.mover import Mover
from needle.server.upkeep.range_copy import BYTES_MAX
from needle.shard import copying
from needle.shard.documents.records import StoredDocument
from server.test_mover import MADE, World, until
from shard.replica_util import put

TEXT = "x" * 40_000
DOCUMENTS, LATE, ROWS_MAX = 120, 70, 20
HEAVIEST = len(TEXT) + 100
"""Bytes of one document, with its id and its vector."""


def _weight(command: Import) -> int:
    return len(command.vectors) + sum(map(len, command.metadata)) + sum(map(len, command.ids))


def _filled(world: World, first: int, count: int) -> None:
    for n in range(first, first + count):
        world.apply(1, put([f"m{n}"], [[n, 1, 1]], [{"text": TEXT, "n": n}], collection=MADE.stored_name))


class Held:
    """What a driver has read and not sent yet, and what is on its way to the target, at most."""

    def __init__(self) -> None:
        self.read = self.largest = self.sent = self.under_way = 0
        self._now = 0

    def page(self, found: list[StoredDocument]) -> None:
        self.read = max(self.read, sum(len(row.metadata) + len(row.vector) for row in found))

    def seen(self, command: object, done: bool) -> None:
        if isinstance(command, Import):
            weight = _weight(command)
            self.sent += weight if done else 0
            self.largest = max(self.largest, weight)
            self._now += -weight if done else weight
            self.under_way = max(self.under_way, self._now)


@pytest.mark.parametrize("late", [0, LATE], ids=["copied", "with a rest behind the freeze"])
def test_a_move_holds_a_page_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: int) -> None:
    held, read = Held(), copying.page

    def page(*arguments: Any) -> tuple[list[StoredDocument], int, bool]:
        found = read(*arguments)
        held.page(found[0])
        return found

    async def work() -> None:
        world = World(tmp_path, random.Random(1))
        world.writes = False
        _filled(world, 0, DOCUMENTS)

        def seen(command: object, done: bool) -> None:
            if isinstance(command, Freeze) and not done:
                _filled(world, DOCUMENTS, late)
            held.seen(command, done)

        world.seen = seen
        await world.command(StartMove(1, 1, [(b"m", b"n\xff")], 0, 1), 1.0)
        driver = asyncio.create_task(Mover(world.node(), ROWS_MAX).run())
        await until(lambda: not world.topology.moves)
        driver.cancel()
        await asyncio.gather(driver, return_exceptions=True)
        assert world.replicas[2].count() == DOCUMENTS + late

    monkeypatch.setattr(copying, "page", page)
    virtually(work())
    assert held.sent > (DOCUMENTS + late) * len(TEXT)
    assert 0 < held.read <= ROWS_MAX * HEAVIEST
    assert 0 < held.largest <= BYTES_MAX + HEAVIEST
    assert held.under_way <= ROWS_MAX * HEAVIEST
