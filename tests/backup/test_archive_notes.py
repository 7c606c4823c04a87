"""What an archiver puts down beside entries: what the catalog says, and how far it is; and a target that is another one
for a while."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backup.archived import BOOKS, SECOND, World, restored
from needle.backup.archive_format import HEAD, Head, directory, encode
from needle.backup.archive_looking import list_archives
from needle.backup.archive_reading import read_head
from needle.backup.archiving import Archiver
from needle.backup.instant import Making
from needle.backup.keeping import read_manifest, verify
from needle.backup.store import DirectoryStore
from needle.base.errors import StorageError
from needle.protocol import commands
from needle.routing.topology import AliasInfo
from shard.replica_util import put

HOUR = 3600 * SECOND
TARGET = directory(7)


def aliases(store: DirectoryStore, directory: Path, at: int | None = None, index: int | None = None) -> dict[str, str]:
    directory.mkdir()
    making = Making(store, directory)
    return read_manifest(making.local, making.run(at, {} if index is None else {0: index}, None)).aliases


def says(world: World, version: int, *names: str) -> None:
    led = tuple(AliasInfo(name, "books") for name in names)
    world.topology = msgspec.structs.replace(world.topology, version=version, aliases=led)


@pytest.mark.parametrize("noted", [True, False])
async def test_by_index_nothing_counts_that_the_catalog_said_later(tmp_path: Path, noted: bool) -> None:
    """The catalog's newest record was asked what had been dropped: a collection that was dropped later was left out,
    silently, and aliases led where they led later. noted: the catalog was asked before the shard had dropped it."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store)
    says(world, 2, "before")
    world.fill(5)
    await archiver.look(flush=True)
    index = len(world.shard.log)
    world.now += SECOND
    says(world, 3, "live")
    await archiver.look(flush=True)
    world.now += SECOND
    world.topology = msgspec.structs.replace(world.topology, version=4, collections=(), aliases=(), dropped=(BOOKS.id,))
    if noted:
        await archiver.look(flush=True)
    world.write(
        commands.DropCollection(BOOKS.stored_name),
        commands.CreateCollection(msgspec.structs.replace(BOOKS.stored_spec, name="other@6")),
        put(["other"], [[1.0, 1.0]], [{}], collection="other@6"),
    )
    await archiver.look(flush=True)
    assert restored(store, tmp_path / "before", index=index) == world.shard.contents[index] != {}
    assert aliases(store, tmp_path / "led", index=index) == ({} if noted else {"live": "books"})
    assert set(restored(store, tmp_path / "after", index=len(world.shard.log))) == {"other"}


async def test_a_clock_of_the_archiver_that_is_put_back_leaves_no_record_that_counts_later(tmp_path: Path) -> None:
    """What the catalog said while it ran ahead counted again from that hour on, whatever had been said since."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(3)
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    world.machine_behind = -HOUR
    for version, name in ((2, "older"), (3, "old")):
        says(world, version, name)
        await archiver.look(flush=True)
        world.now += 60 * SECOND
    between = world.now + HOUR - 90 * SECOND
    world.machine_behind = 0
    world.now += 60 * SECOND
    for version, name in ((4, "new"), (5, "newest")):
        world.fill(2)
        says(world, version, name)
        await archiver.look(flush=True)
    soon = world.now + SECOND
    for _ in range(4):
        world.now += HOUR // 2
        world.fill(2)
        await archiver.look(flush=True)
    assert aliases(store, tmp_path / "soon", at=soon) == {"newest": "books"}
    assert aliases(store, tmp_path / "between", at=between) == {"newest": "books"}
    assert aliases(store, tmp_path / "later", at=world.now - 2 * SECOND) == {"newest": "books"}
    assert list_archives(store)[0].gaps == [] and verify(store).problems == []


async def test_what_another_archiver_saw_for_a_moment_does_not_count_for_good(tmp_path: Path) -> None:
    """This one saw the catalog as before and wrote nothing: what the other one had written stayed the newest record."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(3)
    says(world, 2, "live")
    one, other = world.archiver(store), world.archiver(store)
    await one.look(flush=True)
    world.now += SECOND
    says(world, 3, "tried")
    await other.look(flush=True)
    world.now += SECOND
    says(world, 4, "live")
    for _ in range(3):
        world.fill(2)
        await one.look(flush=True)
    assert aliases(store, tmp_path / "later", at=world.now - SECOND) == {"live": "books"}


async def unmounted(tmp_path: Path, world: World, archiver: Archiver) -> None:
    """The target is away while something is written: an empty directory is in its place."""
    (tmp_path / "t").rename(tmp_path / "real")
    (tmp_path / "t").mkdir()
    world.fill(10)
    with pytest.raises(StorageError, match="if its disk is not mounted, mount it"):
        await archiver.look(flush=True)
    assert list((tmp_path / "t").iterdir()) == [], "nothing is written below a place where a disk is mounted"
    (tmp_path / "t").rmdir()
    (tmp_path / "real").rename(tmp_path / "t")
    world.fill(10)


async def test_nothing_is_lost_while_the_target_is_not_mounted(tmp_path: Path) -> None:
    """It wrote below the mount point, told the nodes so, and went on when the disk was back: until the next day's state
    no instant could be had."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store)
    world.fill(20)
    await archiver.look(flush=True)
    await unmounted(tmp_path, world, archiver)
    await archiver.look(flush=True)
    assert list_archives(store)[0].gaps == []
    for index in (25, 35, len(world.shard.log)):
        assert restored(store, tmp_path / f"{index}", index=index) == world.shard.contents[index]


async def test_what_was_written_elsewhere_for_a_moment_is_written_again(tmp_path: Path) -> None:
    """A larger piece goes out before the target is looked at; and an older copy of the target may be in its place."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store)
    world.fill(20)
    await archiver.look(flush=True)
    before = {name: (tmp_path / "t" / name).read_bytes() for name in store.names("")}
    world.fill(10)
    await archiver.look(flush=True)
    for name in set(store.names("")) - set(before):
        store.delete(name)
    for name, data in before.items():
        store.put(name, data)
    world.fill(10)
    await archiver.look(flush=True)
    assert list_archives(store)[0].gaps == [] and verify(store).problems == []
    for index in (25, len(world.shard.log)):
        assert restored(store, tmp_path / f"{index}", index=index) == world.shard.contents[index]


async def test_a_head_that_another_archiver_wrote_later_and_older_is_no_other_target(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store)
    world.fill(5)
    await archiver.look(flush=True)
    older = read_head(store, 7)
    world.fill(5)
    await archiver.look(flush=True)
    shard = archiver.shards[0]
    store.put(f"{TARGET}{HEAD}", encode(older))
    world.fill(5)
    await archiver.look(flush=True)
    assert archiver.shards[0] is shard and read_head(store, 7).shards[0][0] == len(world.shard.log)


@pytest.mark.parametrize("lost", [True, False])
async def test_a_lost_or_damaged_head_is_written_again_with_shards_that_are_no_more(tmp_path: Path, lost: bool) -> None:
    """Of these nobody else knows until when they are archived: their instants were refused from then on."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store)
    world.fill(5)
    await archiver.look(flush=True)
    retired = (9, world.now)
    head = read_head(store, 7)
    store.put(f"{TARGET}{HEAD}", encode(msgspec.structs.replace(head, shards={**head.shards, 1: retired})))
    world.fill(1)
    await archiver.look(flush=True)
    if lost:
        store.delete(f"{TARGET}{HEAD}")
    else:
        store.put(f"{TARGET}{HEAD}", encode(Head(shards={}, at=0))[:-1])
    world.fill(1)
    await archiver.look(flush=True)
    assert read_head(store, 7).shards == {0: (len(world.shard.log), world.now), 1: retired}
