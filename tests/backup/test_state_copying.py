"""States that are copied beside an archive: for as long as it takes, of shards that are written to or removed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from backup.archived import SECOND, World, restored
from needle.backup.archive_looking import list_archives
from needle.backup.archive_reading import bases_of
from needle.backup.keeping import MAKING, verify
from needle.backup.store import DirectoryStore
from needle.base.errors import Unavailable
from needle.protocol import calls
from needle.protocol.archive_calls import IMAGE, IMAGE_CHUNK, LOG, LogCall
from needle.routing.topology import ShardInfo

TURNS = 3000
"""So many turns of the loop a leader waits to be told that its log is needed."""


class Cutting(World):
    """It is written to while its state is copied, and keeps no more of its log than it was told since to keep."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.images, self.held = 0, -1

    async def ask(self, method: str, body: Callable[[float], bytes], timeout: float, final: Any = ()) -> bytes:
        if method == LOG:
            self.held = max(self.held, calls.decode(body(1.0), LogCall).kept)
        elif method == IMAGE:
            self.images, self.held = self.images + 1, -1
            assert self.images < 4, "it is copied again and again"
        elif method == IMAGE_CHUNK:
            self.fill(1)
            for _ in range(TURNS):
                if self.held >= self.shard.first - 1:
                    break
                await asyncio.sleep(0)
            needed = self.held if self.held >= self.shard.first - 1 else len(self.shard.log)
            self.shard.first = max(self.shard.first, needed + 1)
        return await super().ask(method, body, timeout, final)


async def test_a_state_that_takes_long_to_copy_is_not_obsolete_when_it_is_there(tmp_path: Path) -> None:
    """The log was cut behind it meanwhile, so it was copied again, and again, for as long as writes went on."""
    world, store = Cutting(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(20)
    world.shard.first = 8
    archiver = world.archiver(store)
    while not bases_of(store, 7, 0):
        await archiver.look()  # ends while the state is being copied: the other shards' logs wait for none
        await asyncio.sleep(0)
    await archiver.look(flush=True)
    assert world.images == 1
    assert restored(store, tmp_path / "a", index=len(world.shard.log)) == world.shard.contents[-1]
    (told,) = list_archives(store)
    assert told.gaps == [] and verify(store).problems == []


class Two(World):
    """Shards 0 and 1 have the same log. There is nothing to be had of shards that were removed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.client._shards = SimpleNamespace(
            group=lambda n: SimpleNamespace(replicas=list, ask_leader=partial(self.ask_shard, n))
        )
        self.have(
            ShardInfo(shard=0, replicas=("a",), founders=("a",)), ShardInfo(shard=1, replicas=("a",), founders=("a",))
        )

    def have(self, *shards: ShardInfo) -> None:
        self.topology = msgspec.structs.replace(self.topology, version=self.topology.version + 1, shards=shards)

    def remove_the_first(self) -> None:
        self.have(
            ShardInfo(shard=0, replicas=(), founders=(), retired=True),
            ShardInfo(shard=1, replicas=("a",), founders=("a",)),
        )

    async def ask_shard(self, shard: int, method: str, *rest: Any) -> bytes:
        if self.topology.shards[shard].retired:
            raise Unavailable(f"shard {shard} has no replica")
        return await self.ask(method, *rest)


async def test_a_shard_that_was_removed_keeps_no_other_one_from_being_copied(tmp_path: Path) -> None:
    """Its state was forever the oldest, and could not be copied."""
    world, store = Two(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store, base_every=15.0)
    world.fill(6)
    await archiver.look(flush=True)
    world.fill(2)
    await archiver.look()  # of shard 0 this was read, and is in no file yet
    assert archiver._basing is not None
    await archiver._basing
    world.remove_the_first()
    for _ in range(3):
        world.fill(20)
        await archiver.look(flush=True)
        assert await archiver._basing is None
    assert len(bases_of(store, 7, 1)) >= 3
    assert archiver.shards[0].kept == archiver.shards[0].read == 9


async def test_a_copy_of_a_shard_that_is_removed_meanwhile_ends(tmp_path: Path) -> None:
    """It waited for entries that did not come, and nothing could be pruned while it did."""
    world, store = Two(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store, every=1e9, base_every=10.0)
    await archiver.look(flush=True)
    world.fill(20)
    await archiver.look()
    for one in archiver.shards.values():
        one.kept = 1
    archiver.shards[1].kept = 0
    await archiver.look()
    for _ in range(TURNS):
        if archiver.shards[0].copied:
            break
        await asyncio.sleep(0.001)
    world.now += SECOND
    world.remove_the_first()
    archiver.shards[0].entries = []  # lost with the shard
    await archiver.look()
    assert archiver._basing is not None
    async with asyncio.timeout(30):
        assert isinstance(await archiver._basing, Unavailable)
    assert not store.names(MAKING) and len(bases_of(store, 7, 0)) == 1
