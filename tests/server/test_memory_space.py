"""When a node saves memory, when it refuses data for want of it, and when it takes both back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.errors import OutOfMemory
from needle.base.model import CollectionSpec
from needle.protocol import catalog_commands
from needle.protocol.commands import CreateCollection, Delete, DropCollection, Insert, PinScan
from needle.protocol.move_commands import Import
from needle.routing.topology import MoveState
from needle.server.machine.disk_space import DiskSpace, Endless
from needle.server.machine.memory_space import MemorySpace, MemoryUse, endless
from needle.server.machine.space import Space
from needle.server.upkeep.saving_memory import AGAIN_SECONDS, SavingMemory

LIMIT = 1600


class Memory:
    """What the process takes."""

    own, total = 0, 10_000

    def __call__(self) -> MemoryUse:
        return MemoryUse(self.own, self.total)


def test_data_is_refused_above_the_limit_and_nothing_else_is() -> None:
    memory = Memory()
    space = Space(DiskSpace(Endless(), "d"), MemorySpace(memory, LIMIT, node="node-2"))
    insert, create = Insert("c", ["a"], b"", [b""]), CreateCollection(CollectionSpec(name="c", dimensions=1))
    rows = Import(1, 0, "c", 0, [], [], b"", [], [])
    memory.own = LIMIT
    space.look()
    for command in (insert, create):
        space.check(command)
    assert not space.low
    memory.own = LIMIT + 1
    space.look()
    for command in (insert, create):
        with pytest.raises(
            OutOfMemory, match=r"takes 1601 .* refused until it takes 1500, for its limit is 1600:"
        ) as refused:
            space.check(command)
    assert refused.value.retryable and refused.value.details == {"own": 1601, "limit": LIMIT, "node": "node-2"}
    with pytest.raises(OutOfMemory):
        space.check_catalog(catalog_commands.CreateCollection(CollectionSpec(name="c", dimensions=1), False, 1))
    with pytest.raises(OutOfMemory):
        space.check_import(rows, MoveState.COPYING)
    space.check_import(rows, MoveState.FREEZING)
    for harmless in (Delete("c", ["a"]), DropCollection("c"), PinScan("c", 1, 0, 0, 9)):
        space.check(harmless)
    assert space.low and not space.disk.low


def test_both_end_a_sixteenth_below_where_they_began() -> None:
    memory = Memory()
    space = MemorySpace(memory, LIMIT)
    seen = []
    for memory.own in (1400, 1401, 1600, 1601, 1500, 1501, 1500, 1301, 1300, 1400):
        space.look()
        seen.append((space.tight, space.low))
    assert seen == [
        *((False, False), (True, False), (True, False), (True, True)),
        *((True, False), (True, False), (True, False), (True, False), (False, False), (False, False)),
    ]
    memory.own = 1601
    space.look()
    memory.own = 1501
    space.look()
    assert space.low and space.room().low, "it is still above the mark at which data is taken again"


def test_the_limit_follows_what_there_is_and_may_be_none() -> None:
    memory = Memory()
    memory.own = 8001
    for limit, low in ((None, True), (0, False), (9000, False)):
        space = MemorySpace(memory, limit)
        space.look()
        assert space.low is low
    unknown = MemorySpace(endless)
    unknown.look()
    assert not unknown.low and unknown.room().limit == 0


async def test_what_is_only_remembered_is_given_back_again_and_again_while_memory_is_tight() -> None:
    """And index files are planned again when there is memory again."""
    done: list[str] = []

    threads: list[str] = []

    async def blocking(call: Any, *arguments: Any) -> Any:
        threads.append("another")
        try:
            return call(*arguments)
        finally:
            threads.pop()

    def replica(name: str) -> Any:
        view = SimpleNamespace(opened=SimpleNamespace(give_back=lambda: done.append(f"rows of {name}")), collections={})
        indexes = SimpleNamespace(shrink=lambda: done.append(f"indexes of {name}{'' if threads else ', on the loop'}"))
        keeper = SimpleNamespace(look_again=lambda ids: done.append(f"plans of {name}"))
        held = SimpleNamespace(view=view, field_indexes=indexes, look=lambda at: at(view))
        return SimpleNamespace(group=1, replica=held, keeper=keeper)

    memory = Memory()
    node: Any = SimpleNamespace(
        groups={1: replica("a")},
        space=SimpleNamespace(memory=MemorySpace(memory, LIMIT)),
        blocking=blocking,
        ports=SimpleNamespace(trim=lambda: done.append("trimmed")),
        time=0.0,
    )
    node.now = lambda: node.time
    saving = SavingMemory(node)
    expected: list[str] = []
    for own, time, more in (
        (0, 0.0, []),
        (1500, 1.0, ["indexes of a", "rows of a", "trimmed"]),
        (1500, 2.0, []),
        (1500, 1.0 + AGAIN_SECONDS, ["indexes of a", "rows of a", "trimmed"]),
        (0, 2.0 + AGAIN_SECONDS, ["plans of a"]),
        (0, 90.0, []),
    ):
        memory.own, node.time = own, time
        node.space.memory.look()
        await saving.look()
        expected += more
        assert done == expected
