"""What of archives is told, and what may go: of retired shards, and of former clusters."""

from __future__ import annotations

import errno
from pathlib import Path

import msgspec
import pytest

from backup.archived import BEGAN, SECOND, World, restored
from backup.killing import Counted, Killed
from needle.backup.archive_format import ARCHIVES, HEAD, Base, base_name, directory, encode
from needle.backup.archive_keeping import outdated
from needle.backup.archive_looking import list_archives
from needle.backup.archive_reading import archived_shards, clusters
from needle.backup.around import Around
from needle.backup.keeping import prune, verify
from needle.backup.store import DirectoryStore, Store
from needle.base.errors import InvalidArgument, StorageError
from needle.base.instants import rfc3339
from needle.routing.topology import AliasInfo, ShardInfo

HOUR = 3600 * SECOND


def shard(number: int, *, retired: bool = False) -> ShardInfo:
    return ShardInfo(shard=number, replicas=("a",), founders=("a",), retired=retired)


async def retired_one(world: World, store: Store) -> int:
    """Shard 1 is there for a while, with a log of its own; the clock at which the catalog has it no more."""
    world.fill(5)
    world.topology = msgspec.structs.replace(world.topology, version=2, shards=(shard(0), shard(1)))
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    world.fill(5)
    world.topology = msgspec.structs.replace(world.topology, version=3, shards=(shard(0), shard(1, retired=True)))
    await archiver.look(flush=True)
    gone = world.now
    world.fill(5)
    await archiver.look(flush=True)
    await archiver.close()
    return gone


async def test_a_retired_shard_whose_log_has_no_end_is_told(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    read = world.now + 6 * SECOND
    gone = await retired_one(world, store)
    (told,) = list_archives(store)
    assert told.shards == 1
    (line,) = told.gaps
    assert (
        line.startswith("shard 1 was retired")
        and rfc3339(read) in line
        and line.endswith(f"{rfc3339(gone)} are refused")
    )
    with pytest.raises(InvalidArgument, match=r"shard 1 is archived until .*\. It was retired"):
        restored(store, tmp_path / "refused", at=gone - SECOND)
    assert restored(store, tmp_path / "behind", at=gone + 3 * SECOND)


async def test_a_retired_shard_goes_when_no_instant_needs_it(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    gone = await retired_one(world, store)
    last = world.now
    for before, shards in ((gone - SECOND, [0, 1]), (gone + SECOND, [0])):
        world.now = before + HOUR
        await prune(store, archive_hours=1.0, around=world.around)
        assert archived_shards(store, 7) == shards
    world.now = last
    assert restored(store, tmp_path / "last", index=len(world.shard.log)) == world.shard.contents[-1]
    assert verify(store).problems == []


class Crowded(DirectoryStore):
    """On a disk that has room for what is deleted, and for what has no contents. refusal: the error's number."""

    def __init__(self, root: Path, refusal: int = errno.ENOSPC) -> None:
        super().__init__(root)
        self._free, self._refusal = 0, refusal

    def put(self, name: str, data: bytes) -> None:
        if len(data) > self._free:
            raise StorageError(f"{name} is refused") from OSError(self._refusal, "refused")
        super().put(name, data)
        self._free -= len(data)

    def delete(self, name: str) -> None:
        self._free += len(self.get(name) or b"")
        super().delete(name)


async def days(root: Path) -> tuple[World, int]:
    """An archive with several states below t; and the instant from which on it is to be kept, an hour ago."""
    world = World(root / "w")
    archiver = world.archiver(DirectoryStore(root / "t"), base_every=15.0)
    for at in range(6):
        world.fill(8)
        named = AliasInfo(f"a{at}", "books")
        world.topology = msgspec.structs.replace(world.topology, version=at + 2, aliases=(named,))
        await archiver.look(flush=True)
        assert archiver._basing is not None
        await archiver._basing
    await archiver.close()
    world.now = BEGAN + 35 * SECOND + HOUR
    return world, 35


@pytest.mark.parametrize("killed", [False, True])
async def test_old_parts_of_an_archive_go_where_there_is_no_room_left(tmp_path: Path, killed: bool) -> None:
    """It was refused: what says where the archive begins from then on had no room."""
    world, kept = await days(tmp_path)
    steps = 0
    while killed:
        steps += 1
        store = Crowded(tmp_path / "t")
        try:
            await prune(Counted(store, steps, after=True), archive_hours=1.0, around=world.around)
            break
        except Killed:
            for name in store.names("pruning/"):
                store.delete(name)
    await prune(Crowded(tmp_path / "t"), archive_hours=1.0, around=world.around)
    store = DirectoryStore(tmp_path / "t")
    assert verify(store).problems == [] and not outdated(store, BEGAN + kept * SECOND)
    assert steps > 5 or not killed
    for index in (kept, len(world.shard.log)):
        assert restored(store, tmp_path / f"{index}", index=index) == world.shard.contents[index]


class Taken(Crowded):
    """Another one takes what room there is at once."""

    def delete(self, name: str) -> None:
        DirectoryStore.delete(self, name)


async def test_where_others_take_the_room_the_next_prune_puts_it_right(tmp_path: Path) -> None:
    """All was deleted, records of the catalog too, and nothing noted where the archive begins: the next prune had
    nothing to delete and so noted nothing, and `verify` told of missing records forever."""
    world, kept = await days(tmp_path)
    with pytest.raises(StorageError):
        await prune(Taken(tmp_path / "t"), archive_hours=1.0, around=world.around)
    store = DirectoryStore(tmp_path / "t")
    await prune(store, archive_hours=1.0, around=world.around)
    assert verify(store).problems == [] and not outdated(store, BEGAN + kept * SECOND)
    assert restored(store, tmp_path / "kept", index=kept) == world.shard.contents[kept]


async def test_nothing_is_deleted_where_a_disk_refuses_for_another_reason(tmp_path: Path) -> None:
    world, _ = await days(tmp_path)
    store = Crowded(tmp_path / "t", errno.EROFS)
    there = store.names(ARCHIVES)
    with pytest.raises(StorageError):
        await prune(store, archive_hours=1.0, around=world.around)
    assert store.names(ARCHIVES) == there


async def test_the_archive_of_a_former_cluster_goes_when_it_is_named(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "t")
    world = World(tmp_path / "w")
    world.fill(5)
    await world.archiver(store).look(flush=True)
    store.put(base_name(9, 0, 0), encode(Base(index=0, at=BEGAN, files=[])))
    assert clusters(store) == [7, 9]
    at = max(stat.modified for stat in store.names(ARCHIVES).values())

    def later(seconds: float) -> Around:
        world.now = int((at + seconds) * SECOND)
        return world.around

    with pytest.raises(InvalidArgument, match="7, 9"):
        await prune(store, drop_archive="8", around=later(7200))
    with pytest.raises(InvalidArgument, match="end its archiver"):
        await prune(store, drop_archive="7", around=later(60))
    assert clusters(store) == [7, 9]
    head = f"{directory(7)}{HEAD}"
    whole = set(store.names(directory(7)))
    assert head in whole
    for step in range(2, 40):
        killed = Counted(store, step, after=True)
        try:
            await prune(killed, drop_archive="7", around=later(7200))
        except Killed:
            left = set(store.names(directory(7)))
            assert head not in left or left == whole, "nobody takes what is left for an archive that leads somewhere"
            for name in store.names("pruning/"):
                store.delete(name)
        if clusters(store) == [9]:
            break
    assert clusters(store) == [9]
