"""When the indexes of fields are saved: not while nothing changes, not on a disk with little room, and again some time
after it failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from client.fake_shards import virtually
from needle.base.errors import DiskFailed, DiskFull
from needle.base.model import CollectionSpec
from needle.base.text import TextField
from needle.routing.topology import CollectionInfo, Topology
from needle.server.beats import Beats
from needle.server.chores.context import ChoreContext
from needle.server.chores.field_upkeep import AGAIN_SECONDS, SETTLED_SECONDS, FieldUpkeep
from needle.shard.fields.index_budget import IndexRows

ROWS = IndexRows(few=0, kept=100, settled=7)


class Around:
    """A replica with one index to save at a time, on virtual time. saved: when, and with which bound."""

    def __init__(self) -> None:
        self.indexes = SimpleNamespace(waits=False, changes=0, rows=ROWS)
        self.host: Any = SimpleNamespace(stopped=False, leader=lambda group: None)
        self.space: Any = SimpleNamespace(disk=SimpleNamespace(low=False))
        self.saved: list[tuple[float, int]] = []
        self.error: Exception | None = None
        self.asked = 0
        held = SimpleNamespace(save_fields=self._save, declare_fields=self._declare)
        replica: Any = SimpleNamespace(field_indexes=self.indexes, held=held)
        clock: Any = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
        pool: Any = SimpleNamespace(run=self._run)
        self.topology = Topology()
        self.declared: list[tuple[float, dict[str, Any]]] = []
        self.texts: list[dict[str, Any]] = []
        self.sparse: list[dict[str, Any]] = []
        self.upkeep = FieldUpkeep(
            ChoreContext(1, replica, self.host, clock, pool, lambda: self.topology, Beats(clock.monotonic)),
            self._call,
            self.space,
        )

    async def _run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)

    async def _call(self, *_: Any) -> Any:
        raise AssertionError("there is no leader to be asked")

    def _save(self, rows_min: int) -> bool:
        self.asked += 1
        if self.error is not None:
            raise self.error
        self.saved.append((asyncio.get_running_loop().time(), rows_min))
        return False

    def _declare(self, declared: dict[str, Any], texts: dict[str, Any], sparse: dict[str, Any]) -> None:
        self.declared.append((asyncio.get_running_loop().time(), declared))
        self.texts.append(texts)
        self.sparse.append(sparse)

    async def during(self, *steps: tuple[float, Callable[[], None]]) -> None:
        """Let it run, doing something after so many seconds each."""
        task = asyncio.ensure_future(self.upkeep.run())
        for seconds, step in steps:
            await asyncio.sleep(seconds)
            assert not task.done(), task
            step()
        self.host.stopped = True
        await task


def changed(around: Around) -> Callable[[], None]:
    def step() -> None:
        around.indexes.changes += 1

    return step


def test_it_saves_after_changes_and_what_is_little_once_there_are_none() -> None:
    around = Around()
    virtually(around.during((5.0, changed(around)), (100.0, lambda: None)))
    bounds = [bound for _, bound in around.saved]
    assert bounds == [ROWS.kept, ROWS.kept, ROWS.settled]
    first, second, settled = (at for at, _ in around.saved)
    assert second - first >= 4.5
    assert SETTLED_SECONDS <= settled - second < SETTLED_SECONDS + 1


@pytest.mark.parametrize("error", [DiskFull("full"), DiskFailed("broken")])
def test_a_failure_is_followed_by_a_pause_and_ends_nothing(error: Exception) -> None:
    around = Around()
    around.error = error
    asked: list[int] = []

    def mended() -> None:
        asked.append(around.asked)
        around.error = None

    virtually(around.during((AGAIN_SECONDS - 1, mended), (3.0, lambda: None)))
    assert asked == [1] and around.asked == 2 and len(around.saved) == 1


def test_nothing_is_saved_while_the_disk_has_little_room() -> None:
    around = Around()
    around.space.disk.low = True
    virtually(around.during((30.0, lambda: setattr(around.space.disk, "low", False)), (1.0, lambda: None)))
    assert len(around.saved) == 1 and around.saved[0][1] == ROWS.settled


def test_the_replica_is_told_again_and_again_what_the_catalog_declares_and_once_that_it_is_no_more() -> None:
    """Again, because documents come to it, and a snapshot may have taken the place of its state."""
    around, fields = Around(), ("x", "y.z")
    made = [
        CollectionInfo(id=2, spec=CollectionSpec(name="a", dimensions=2), fields=fields),
        CollectionInfo(id=3, spec=CollectionSpec(name="b", dimensions=2)),
        CollectionInfo(id=4, spec=CollectionSpec(name="c", dimensions=2, text=TextField(field="t"))),
        CollectionInfo(id=5, spec=CollectionSpec(name="d", dimensions=2), sparse=("s", "t")),
    ]

    def declared() -> None:
        assert around.declared == []
        around.topology = Topology(version=5, collections=tuple(made))

    def no_more() -> None:
        around.topology = Topology(version=6, collections=(made[1],))

    virtually(around.during((10.0, declared), (10.0, no_more), (20.0, lambda: None)))
    told = [one for _, one in around.declared]
    assert 3 <= len(told) <= 6 and told[:-1] == [{"a@2": fields}] * (len(told) - 1) and told[-1] == {}
    assert around.texts == [{"c@4": TextField(field="t")}] * (len(told) - 1) + [{}]
    assert around.sparse == [{"d@5": ("s", "t")}] * (len(told) - 1) + [{}]


def test_searches_that_always_find_something_lacking_keep_nothing_from_being_saved_or_declared() -> None:
    """So it is beside writes: an index never has the newest documents."""
    around, fields = Around(), ("x",)
    pieces: list[float] = []

    def work() -> None:
        pieces.append(asyncio.get_running_loop().time())

    async def run(call: Callable[..., Any], *arguments: Any) -> Any:
        await asyncio.sleep(0.01)
        return call(*arguments)

    around.indexes.waits, around.indexes.work, around.upkeep._at.pool.run = True, work, run  # type: ignore[method-assign]
    info = CollectionInfo(id=2, spec=CollectionSpec(name="a", dimensions=2), fields=fields)
    around.topology = Topology(version=5, collections=(info,))
    virtually(around.during((20.0, changed(around)), (5.0, lambda: None)))
    assert len(around.declared) >= 5 and {"a@2": fields} in [one for _, one in around.declared]
    assert len(around.saved) >= 2 and len(pieces) > 1500, "and it goes on with its work meanwhile"
