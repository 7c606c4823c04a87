"""What an archiver puts down beside entries: what the catalog says, and how far it is; and a target that is another one
for a while."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backup.archived import BOOKS, SECOND, World, restored
from needle.backup.archive_format import HEAD, Head, directory, encode
from needle.backup.archive_looking import list_archives
from needle.backup.archive_reading import read_head
from needle.backup.archiving import Archiver
from needle.backup.instant import Making
from needle.backup.keeping import read_manifest, verify
from needle.backup.store import DirectoryStore, Stat
from needle.base.errors import Forbidden, StorageError
from needle.protocol import calls, commands
from needle.protocol.archive_calls import LOG, LogCall
from needle.routing.recoveries import Recovery
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


def asked_of(world: World) -> list[int]:
    """Behind which entries nodes are told to keep their logs from now on."""
    asked, ask = list[int](), world.ask

    async def noted(method: str, body: Any, *rest: Any) -> bytes:
        if method == LOG:
            asked.append(calls.decode(body(1.0), LogCall).kept)
        return await ask(method, body, *rest)

    world.client._shards.group(0).ask_leader = noted
    return asked


async def test_one_that_is_started_while_the_target_is_not_mounted_waits(tmp_path: Path) -> None:
    """It began another archive below the mount point, and told the cluster that all is archived: no alert fired."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(20)
    await world.archiver(store).look(flush=True)
    world.topology = msgspec.structs.replace(world.topology, archived=world.now)
    archiver, asked = world.archiver(store), asked_of(world)
    await unmounted(tmp_path, world, archiver)
    assert asked and set(asked) == {0}, "nodes keep all that their logs have, as nobody knows what the archive has"
    await archiver.look(flush=True)
    assert list_archives(store)[0].gaps == []
    assert restored(store, tmp_path / "r", index=len(world.shard.log)) == world.shard.contents[-1]


async def test_who_waits_for_its_target_ends_where_its_key_is_refused(tmp_path: Path) -> None:
    """It waited forever, and no node kept its log."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.topology = msgspec.structs.replace(world.topology, archived=world.now)

    async def refused(method: str, *rest: Any) -> bytes:
        raise Forbidden("not with this key")

    world.client._shards.group(0).ask_leader = refused
    with pytest.raises(Forbidden):
        await asyncio.wait_for(world.archiver(store).run(), 10)


async def test_who_waits_lists_nothing_of_other_clusters(tmp_path: Path) -> None:
    """It looks each second: a bucket with another cluster's archive was listed as a whole each time."""
    listed = list[str]()

    class Store(DirectoryStore):
        def names(self, prefix: str) -> dict[str, Stat]:
            listed.append(prefix)
            return super().names(prefix)

    world = World(tmp_path / "w")
    world.fill(5)
    world.topology = msgspec.structs.replace(world.topology, archived=world.now)
    with pytest.raises(StorageError, match="nothing of that is at this target"):
        await world.archiver(Store(tmp_path / "t")).look()
    assert listed and all(prefix.startswith(TARGET) for prefix in listed)


@pytest.mark.parametrize("said", ["begin", "forget", "recover"])
async def test_another_archive_begins_where_somebody_said_so(tmp_path: Path, said: str) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(20)
    other = store if said == "recover" else DirectoryStore(tmp_path / "other")
    await world.archiver(store).look(flush=True)
    world.topology = msgspec.structs.replace(world.topology, archived=world.now)
    archiver = world.archiver(other, begin=said == "begin")
    if said == "forget":
        with pytest.raises(StorageError, match="start this with --begin; or say `needle backup forget`"):
            await archiver.look(flush=True)
        world.topology = msgspec.structs.replace(world.topology, archived=0)
    if said == "recover":
        former = Recovery(at=world.now, node="a", cluster_id="needle", founding=7, kept={0: 20})
        world.topology = msgspec.structs.replace(world.topology, founding=8, recovered=(former,))
    await archiver.look(flush=True)
    assert [one.cluster for one in list_archives(other)] == (["7", "8"] if said == "recover" else ["7"])


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
