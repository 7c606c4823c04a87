"""When a restore has index files for what it brought back, however much is written meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from needle.backup.around import Around
from needle.backup.index_waiting import wait_indexed
from needle.base.collection_sizes import CollectionSize, IndexProgress


class Building:
    """A collection of which so many documents are there, and so many of them wait, one look after the other."""

    def __init__(self, *looks: tuple[int, int]) -> None:
        self.looks = list(looks)
        self.shown: list[tuple[int, int]] = []

    async def describe_collections(self, timeout: float) -> list[Any]:
        documents, waiting = self.looks.pop(0)
        size = CollectionSize(documents=documents, index=IndexProgress(waiting=waiting))
        return [SimpleNamespace(name="books", size=size), SimpleNamespace(name="other", size=None)]

    async def wait(self) -> None:
        async def rest(_: float) -> None:
            return

        client: Any = self
        await wait_indexed(client, ["books"], progress=lambda *one: self.shown.append(one), around=Around(rest=rest))


async def test_it_ends_when_as_many_are_searched_by_files_as_were_there() -> None:
    building = Building((1000, 1000), (1000, 400), (1000, 0))
    await building.wait()
    assert building.shown == [(0, 1000), (600, 1000), (1000, 1000)]


async def test_what_is_written_meanwhile_is_not_waited_for() -> None:
    """Some of it always waits: it did not end."""
    building = Building((1000, 900), (1500, 700), (2000, 900), (2500, 900))
    await building.wait()
    assert building.shown[-1] == (1100, 2000) and len(building.looks) == 1
