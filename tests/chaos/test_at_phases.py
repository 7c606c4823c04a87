"""kill -9 at some phases of moves (all: `make chaos-phases`); and that the model of owned documents can fail."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.errors import Internal, OutcomeUnknown, Unavailable
from needle.routing.jobs import Phase
from proof.chaos import at_replica_phases
from proof.chaos.at_phases import PHASES, VICTIMS, AtPhases, cells
from proof.chaos.at_replica_phases import AtReplicaPhases
from proof.chaos.owned import Owned
from proof.checkers.violation import Violation


@pytest.mark.campaign
async def test_who_takes_part_in_a_move_is_killed_at_a_phase_and_nothing_is_lost(tmp_path: Path) -> None:
    told: list[str] = []
    run = AtPhases(tmp_path, 1, told.append)
    wanted = [("copy", "target"), ("switch", "source"), ("clean up", "coordinator")]
    await run.run(wanted)
    assert sorted(run.kills) == sorted(wanted), told
    assert sum(owner.done.total() for owner in run.owners) > 100


@pytest.mark.campaign
async def test_who_takes_part_in_a_move_of_a_replica_is_killed_at_a_phase_and_nothing_is_lost(tmp_path: Path) -> None:
    told: list[str] = []
    run = AtReplicaPhases(tmp_path, 1, told.append)
    wanted = [("copy", "target"), ("switch", "leader"), ("clean up", "coordinator")]
    await run.run(wanted)
    assert sorted(run.kills) == sorted(wanted), told
    assert sum(owner.done.total() for owner in run.owners) > 100


def test_the_whole_has_each_phase_with_each_victim() -> None:
    assert sorted(cells()) == sorted((phase, victim) for phase in PHASES for victim in VICTIMS)
    of_replicas = sorted((phase, victim) for phase in Phase for victim in at_replica_phases.VICTIMS)
    assert sorted(at_replica_phases.cells()) == of_replicas


class Memory:
    """A collection, and what goes wrong with it. spoil: of what a read finds."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, Any]] = {}
        self.failing: Exception | None = None
        self.spoil: Callable[[list[Any]], list[Any]] = lambda found: found

    async def insert_batch(self, ids: list[str], metadatas: list[Any], **other: Any) -> None:
        self.held.update(zip(ids, metadatas, strict=True))
        if self.failing is not None:
            raise self.failing

    async def delete(self, names: list[str], timeout: float) -> None:
        for name in names:
            self.held.pop(name, None)
        if self.failing is not None:
            raise self.failing

    async def get(self, *args: Any, **options: Any) -> list[Any]:
        return self.spoil([SimpleNamespace(id=name, metadata=about) for name, about in self.held.items()])

    search = get

    async def count(self, *args: Any, **options: Any) -> int:
        return len(await self.get())


def owned(memory: Memory) -> Owned:
    client: Any = memory
    one = Owned("o", client, 6, random.Random(1))
    asyncio.run(one._write(["o-1", "o-2"]))
    asyncio.run(one._write(["o-1"]))
    return one


def of_before(found: list[Any]) -> list[Any]:
    return [SimpleNamespace(id=one.id, metadata={"number": 1}) for one in found]


@pytest.mark.parametrize(
    ("what", "spoil", "broken"),
    [
        ("get", lambda found: found[1:], "nothing lost"),
        ("get", of_before, "nothing lost"),
        ("search", lambda found: [*found, found[0]], "nothing twice"),
        ("search", lambda found: [*found, SimpleNamespace(id="o-9", metadata={"number": 1})], "nothing twice"),
        ("count", lambda found: found[1:], "nothing lost"),
        ("count", lambda found: [*found, *found], "nothing lost"),
    ],
)
def test_an_answer_that_the_model_does_not_have_is_noticed(what: str, spoil: Any, broken: str) -> None:
    memory = Memory()
    one = owned(memory)
    for kind in ("get", "search", "count"):
        assert asyncio.run(one.look(kind))
    memory.spoil = spoil
    with pytest.raises(Violation, match=broken):
        asyncio.run(one.look(what))


def test_a_write_of_unknown_fate_may_be_there_or_not_and_a_refused_one_may_not() -> None:
    memory = Memory()
    one = owned(memory)
    memory.failing = OutcomeUnknown("no answer came")
    asyncio.run(one._delete(["o-1"]))
    assert one.unknown == 1
    for there in ({}, {"number": 2}):
        memory.held.pop("o-1", None)
        memory.held.update({"o-1": there} if there else {})
        for kind in ("get", "search", "count"):
            assert asyncio.run(one.look(kind))
    memory.failing = Unavailable("not now")
    asyncio.run(one._write(["o-2"]))
    assert one.refused == 1
    with pytest.raises(Violation, match="nothing lost"):
        asyncio.run(one.look("get"))
    memory.failing = Internal("broken")
    with pytest.raises(Violation, match="expected errors"):
        asyncio.run(one._write(["o-3"]))
