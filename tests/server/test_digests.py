"""Digests of stored rows, which whoever may read asks for: how much of a node's threads they take."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.errors import StorageError
from needle.protocol.calls import DigestAnswer, GroupCall
from needle.server.service.operations import Operations


class Node:
    """Has two groups. Each digest takes until `go`."""

    node_id = "a"

    def __init__(self) -> None:
        self.host = self.book = None
        self.begun: list[Any] = []
        self.go = asyncio.Event()
        self.fails = False
        self.applied = 7
        self.replicas = {group: self.replica(group) for group in (1, 2)}

    def replica(self, group: int) -> Any:
        return SimpleNamespace(stored_digest=group, applied_index=lambda: self.applied)

    def hosted(self, group: int) -> Any:
        return SimpleNamespace(replica=self.replicas[group])

    async def blocking(self, group: int) -> tuple[int, str]:
        self.begun.append(group)
        applied = self.applied
        await self.go.wait()
        if self.fails:
            raise StorageError("the disk is gone")
        return applied, f"digest {group}"


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_gives_up_and_asks_again_takes_no_second_thread() -> None:
    """Callers that waited less long than it took had all search threads of a node read files for minutes."""
    node: Any = Node()
    operations = Operations(node)
    for _ in range(20):
        asked = asyncio.ensure_future(operations.digest(GroupCall(1)))
        await turns()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    others = [asyncio.ensure_future(operations.digest(GroupCall(group))) for group in (1, 2, 1)]
    await turns()
    assert node.begun == [1], "one at a time, of all groups"
    node.go.set()
    answers = await asyncio.gather(*others)
    assert answers == [DigestAnswer("a", 7, f"digest {group}") for group in (1, 2, 1)]
    assert node.begun == [1, 2]
    assert (await operations.digest(GroupCall(1))).digest == "digest 1"
    assert node.begun == [1, 2, 1], "another one, for who asks later"


async def test_an_error_is_told_to_all_who_asked_and_kept_for_nobody() -> None:
    node: Any = Node()
    operations = Operations(node)
    node.fails = True
    node.go.set()
    for answer in await asyncio.gather(*(operations.digest(GroupCall(1)) for _ in range(2)), return_exceptions=True):
        assert isinstance(answer, StorageError)
    with pytest.raises(StorageError):
        await operations.digest(GroupCall(1))
    node.fails = False
    assert (await operations.digest(GroupCall(1))).digest == "digest 1"


async def test_who_asks_after_a_write_gets_no_digest_from_before_it() -> None:
    """It was asked for because of the write; and a status said the index of now beside the digest of minutes ago."""
    node: Any = Node()
    operations = Operations(node)
    before = [asyncio.ensure_future(operations.digest(GroupCall(1))) for _ in range(2)]
    await turns()
    node.applied = 8
    after = [asyncio.ensure_future(operations.digest(GroupCall(1))) for _ in range(3)]
    await turns()
    assert node.begun == [1], "one at a time"
    node.applied = 9
    after.append(asyncio.ensure_future(operations.digest(GroupCall(1))))
    await turns()
    node.go.set()
    assert [one.applied_index for one in await asyncio.gather(*before)] == [7, 7]
    assert [one.applied_index for one in await asyncio.gather(*after)] == [9] * 4
    assert node.begun == [1, 1], "what was not begun yet has it all"


async def test_a_replica_that_takes_the_place_of_another_one_has_a_digest_of_its_own() -> None:
    node: Any = Node()
    operations = Operations(node)
    old = asyncio.ensure_future(operations.digest(GroupCall(1)))
    await turns()
    node.replicas[1] = node.replica(3)
    new = asyncio.ensure_future(operations.digest(GroupCall(1)))
    await turns()
    node.go.set()
    assert [(await one).digest for one in (old, new)] == ["digest 1", "digest 3"]
