"""Nodes hear in time behind which entry an archive needs their logs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backup.archived import SECOND, Shard, World
from needle.backup.store import DirectoryStore
from needle.multiraft.archives import ACTIVE_SECONDS
from needle.protocol import calls
from needle.protocol.archive_calls import IMAGE, LOG, LogCall


def followed(world: World, directory: Path) -> list[tuple[float, int]]:
    """When a replica that follows was told, and what: seconds, and up to where the archive has the log."""
    directory.mkdir()
    world.followers.append(Shard(directory))
    told, ask = list[tuple[float, int]](), world.ask_replica

    async def noted(address: str, method: str, body: bytes, timeout: float) -> bytes:
        if address == "0":
            told.append((world.now / SECOND, calls.decode(body, LogCall).kept))
        return await ask(address, method, body, timeout)

    world.client._shards.group(0).ask_replica = noted
    return told


async def test_one_word_that_a_replica_missed_makes_no_archive_one_that_has_ended(tmp_path: Path) -> None:
    """It was told each minute, and took an archive that it had not heard of for a minute for one that had ended."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver, told = world.archiver(store), followed(world, tmp_path / "f")
    for _ in range(200):
        world.fill(1)
        await archiver.look()
        await asyncio.sleep(0)
    times = [when for when, _ in told]
    assert all(later - first < ACTIVE_SECONDS for first, later in zip(times, times[2:], strict=False))
    assert len(times) > 3
    await archiver.close()


async def test_behind_a_copied_state_all_hear_at_once_where_the_archive_goes_on(tmp_path: Path) -> None:
    """The leader heard it a second after it had made the state, and might have cut its log behind that; the others up
    to a minute later, and kept nothing until then: what they had been told was in no log any more."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver, told = world.archiver(store), followed(world, tmp_path / "f")
    world.fill(10)
    await archiver.look(flush=True)
    world.fill(20)
    world.shard.first = world.followers[0].first = 21
    asked, ask = list[object](), world.ask

    async def noted(method: str, body: Callable[[float], bytes], *rest: Any) -> bytes:
        asked.append(calls.decode(body(1.0), LogCall).kept if method == LOG else method)
        return await ask(method, body, *rest)

    world.client._shards.group(0).ask_leader = noted
    await archiver.look(flush=True)
    index = len(world.shard.log)
    copying = asked.index(IMAGE)
    assert asked[copying + 1] == index
    told.clear()
    for _ in range(3):
        world.fill(1)
        await archiver.look(flush=True)
        await asyncio.sleep(0)
    assert told and told[0][1] >= index
    await archiver.close()


async def test_all_hear_for_an_hour_that_an_archive_began_there_whoever_goes_on_with_it(tmp_path: Path) -> None:
    """Replicas hear of it first when it has something, and would take it for one that was there before they started."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    followed(world, tmp_path / "f")
    told, ask = list[bool](), world.client._shards.group(0).ask_replica

    async def noted(address: str, method: str, body: bytes, timeout: float) -> bytes:
        told.append(calls.decode(body, LogCall).begun)
        return await ask(address, method, body, timeout)

    world.client._shards.group(0).ask_replica = noted

    async def hears() -> set[bool]:
        """What replicas are told by an archiver that is started now and ended soon."""
        told.clear()
        archiver = world.archiver(store)
        for _ in range(3):
            world.fill(1)
            await archiver.look(flush=True)
            await asyncio.sleep(0)
        await archiver.close()
        return set(told)

    assert await hears() == {True}
    world.now += 1800 * SECOND
    assert await hears() == {True}
    world.now += 1800 * SECOND
    assert await hears() == {False}
