"""One look at an archive: what `needle backup list` tells, `verify` tells, and restores refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from backup.archived import BEGAN, SECOND, World, restored
from backup.killing import Counted, Killed
from needle.backup.archive_format import CATALOG, FORMERS_MAX, Base, Catalog, Head, base_name, encode
from needle.backup.archive_looking import list_archives
from needle.backup.archive_reading import (
    archived_shards,
    bases_of,
    catalog_at,
    catalogs_of,
    chunks_of,
    number_of,
    read_base,
    read_catalog,
)
from needle.backup.keeping import prune, verify
from needle.backup.store import DirectoryStore
from needle.base.errors import CorruptBackup, InvalidArgument, NeedleError
from needle.base.instants import rfc3339
from needle.routing.topology import AliasInfo, ShardInfo


async def archived(tmp_path: Path) -> tuple[World, DirectoryStore]:
    """Three records of the catalog, and three states: before the first entry, behind entries, and behind a log that
    was cut."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store, base_every=8.0)
    for n in range(3):
        world.topology = msgspec.structs.replace(
            world.topology, version=n + 2, aliases=tuple(AliasInfo(f"a{m}", "books") for m in range(n))
        )
        world.fill(10)
        if n == 2:
            world.shard.first = len(world.shard.log)
        await archiver.look(flush=True)
        assert archiver._basing is not None
        await archiver._basing
    world.fill(3)
    await archiver.look(flush=True)
    await archiver.close()
    assert len(catalogs_of(store, 7)) == len(bases_of(store, 7, 0)) == 3
    return world, store


async def test_whatever_is_deleted_is_told_by_both_and_such_instants_are_refused(tmp_path: Path) -> None:
    """A record of the catalog, and a file of entries right before a state, were missed by `verify`."""
    world, store = await archived(tmp_path)
    (whole,) = list_archives(store)
    [cut] = whole.gaps
    assert cut.endswith("are missing") and "a file is lost" not in cut
    assert verify(store).problems == []
    needed = [name for name in store.names("archive/7/") if not name.endswith("/target")]
    middle = bases_of(store, 7, 0)[1][1]
    assert len(needed) >= 9
    for name in needed:
        path = tmp_path / "t" / name
        data = path.read_bytes()
        path.unlink()
        told, problems = list_archives(store)[0].gaps, verify(store, checksums_only=True).problems
        lines = [line for line in told if line != cut]
        if name == middle:  # entries lead on behind it
            assert not lines and not problems
        else:
            assert problems and {line.removeprefix("archive: ") for line in problems} <= {*lines}, name
        path.write_bytes(data)
    assert verify(store).problems == [] and list_archives(store) == [whole]
    names = catalogs_of(store, 7)
    at = number_of(names[1], CATALOG)
    (tmp_path / "t" / names[1]).unlink()
    with pytest.raises(CorruptBackup, match=f"{names[1]} is missing"):
        restored(store, tmp_path / "within", at=at + SECOND)
    assert restored(store, tmp_path / "before", at=at - SECOND) == world.shard.contents[(at - SECOND - BEGAN) // SECOND]
    assert restored(store, tmp_path / "behind", at=world.now) == world.shard.contents[-1]
    for name in (names[0], names[2]):
        (tmp_path / "t" / name).unlink()
    with pytest.raises(CorruptBackup, match="is missing"):
        restored(store, tmp_path / "none", at=world.now)
    assert verify(store).problems


async def test_what_prune_deletes_is_not_missing(tmp_path: Path) -> None:
    world, store = await archived(tmp_path)
    second = number_of(catalogs_of(store, 7)[1], CATALOG)
    world.now = second + SECOND + 3600 * SECOND
    await prune(store, archive_hours=1.0, around=world.around)
    assert len(catalogs_of(store, 7)) == 2
    assert verify(store).problems == []
    (tmp_path / "t" / catalogs_of(store, 7)[0]).unlink()
    assert any("is missing" in line for line in verify(store).problems)


async def test_an_archive_of_the_release_before_goes_on(tmp_path: Path) -> None:
    """It says neither which record of the catalog is behind which, nor why entries are missing before a state."""
    world, store = await archived(tmp_path)
    for name in catalogs_of(store, 7):
        store.put(name, encode(msgspec.structs.replace(read_catalog(store, name), former=-1)))
    for _, name in bases_of(store, 7, 0)[:2]:
        store.put(name, encode(msgspec.structs.replace(read_base(store, name), behind=-1)))
    assert verify(store).problems == []
    index, name = bases_of(store, 7, 0)[2]
    store.put(base_name(7, 0, index), encode(msgspec.structs.replace(read_base(store, name), behind=-1)))
    [problem] = verify(store).problems
    assert "a file is lost, or the log had been cut" in problem
    world.topology = msgspec.structs.replace(world.topology, version=9, aliases=())
    await world.archiver(store).look(flush=True)
    newest = read_catalog(store, catalogs_of(store, 7)[-1])
    assert newest.former == number_of(catalogs_of(store, 7)[-2], CATALOG)
    assert restored(store, tmp_path / "a", at=world.now) == world.shard.contents[-1]


def test_the_release_before_reads_what_is_written_now() -> None:
    class FormerHead(msgspec.Struct, kw_only=True):
        format: int
        shards: dict[int, tuple[int, int]]
        at: int

    made = msgspec.msgpack.encode(Head(shards={0: (1, 2)}, at=3, catalog=4))
    assert msgspec.msgpack.decode(made, type=FormerHead).shards == {0: (1, 2)}
    for kind in (Head, Catalog, Base):
        assert not kind.__struct_config__.forbid_unknown_fields and not kind.__struct_config__.array_like


async def test_a_shard_of_which_nothing_is_left_is_told(tmp_path: Path) -> None:
    _, store = await archived(tmp_path)
    for name in store.names("archive/7/0/"):
        store.delete(name)
    assert list_archives(store)[0].gaps == ["shard 0: all that was archived of it is missing"]
    assert verify(store).problems == ["archive: shard 0: all that was archived of it is missing"]
    with pytest.raises(NeedleError, match="nothing of shard 0 is archived"):
        restored(store, tmp_path / "a", index=3)
    assert not chunks_of(store, 7, 0)


def named(world: World, count: int) -> None:
    """Another record of the catalog is due: there are so many aliases."""
    world.topology = msgspec.structs.replace(
        world.topology, version=world.topology.version + 1,
        aliases=tuple(AliasInfo(f"a{n}", "books") for n in range(count)),
    )  # fmt: skip


async def recorded(world: World, store: DirectoryStore, *counts: int) -> list[str]:
    """By one archiver, which ends: a record of the catalog for each number of aliases, ten seconds apart."""
    archiver = world.archiver(store)
    for count in counts:
        named(world, count)
        world.fill(10)
        await archiver.look(flush=True)
    world.fill(3)
    await archiver.look(flush=True)
    await archiver.close()
    return catalogs_of(store, 7)


def aliases_at(store: DirectoryStore, at: int) -> int:
    return len(catalog_at(store, 7, at)[0].topology.aliases)


@pytest.mark.parametrize("lost", [(1,), (2,), (3,), (1, 2), (2, 3), (1, 3), (1, 2, 3), (0, 1)])
@pytest.mark.parametrize("restarts", [False, True])
async def test_lost_records_are_known_also_when_the_archiver_begins_anew(
    tmp_path: Path, lost: tuple[int, ...], restarts: bool
) -> None:
    """A restart forgot the newest, and of two neighbours only the later one was missed: a restore then took the record
    before for the truth."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    names = await recorded(world, store, 0, 1, 2, 3)
    begun = [number_of(name, CATALOG) for name in names]
    ended = world.now
    for place in lost:
        (tmp_path / "t" / names[place]).unlink()
    if restarts:
        world.fill(3)
        await recorded(world, store, 3)
        world.fill(3)
        await recorded(world, store, 5, 6)
    problems = verify(store, checksums_only=True).problems
    for place, began in enumerate(begun):
        assert any(f"{names[place]} is missing" in line for line in problems) == (place in lost)
        for at in (began, began + SECOND, begun[place + 1] - 1 if place < 3 else ended):
            if place in lost:
                with pytest.raises((CorruptBackup, InvalidArgument)):
                    catalog_at(store, 7, at)
            else:
                assert aliases_at(store, at) == place
    if restarts:
        assert aliases_at(store, world.now) == 6


async def test_of_more_lost_records_than_are_named_none_is_taken_for_another(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    names = await recorded(world, store, *range(FORMERS_MAX + 4))
    begun = [number_of(name, CATALOG) for name in names]
    for name in names[1:-1]:
        (tmp_path / "t" / name).unlink()
    for began in begun[1:-1]:
        with pytest.raises(CorruptBackup, match="is missing"):
            catalog_at(store, 7, began + SECOND)
    assert aliases_at(store, world.now) == FORMERS_MAX + 3


async def test_two_archivers_at_one_target_and_prune(tmp_path: Path) -> None:
    """Records that name what was pruned made instants look lost that are there."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archivers = [world.archiver(store, base_every=8.0) for _ in range(2)]
    for count in range(4):
        named(world, count)
        world.fill(10)
        for one in archivers:
            await one.look(flush=True)
            assert one._basing is not None
            await one._basing
            world.now += SECOND
    for one in archivers:
        await one.close()
    kept = number_of(catalogs_of(store, 7)[3], CATALOG) + 2 * SECOND
    assert verify(store).problems == []
    told = [aliases_at(store, kept + n * SECOND) for n in range(12)]
    assert len({*told}) > 1
    world.now = kept + 3600 * SECOND
    await prune(store, archive_hours=1.0, around=world.around)
    assert verify(store).problems == [] and told == [aliases_at(store, kept + n * SECOND) for n in range(12)]
    (tmp_path / "t" / catalogs_of(store, 7)[1]).unlink()
    assert any("is missing" in line for line in verify(store).problems)


class BesideMarks(Counted):
    """Whose user is killed at the nth other change."""

    def _step(self, change: Any, *arguments: Any) -> None:
        if arguments[0].startswith("pruning/"):
            change(*arguments)
        else:
            super()._step(change, *arguments)


async def test_a_prune_that_is_under_way_or_broke_off_is_no_damage(tmp_path: Path) -> None:
    """What it had not deleted yet looked like the rest of what was lost."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store, base_every=8.0)
    retired = ShardInfo(shard=1, replicas=("a",), founders=("a",))
    world.topology = msgspec.structs.replace(world.topology, shards=(*world.topology.shards, retired))
    for count in range(5):
        named(world, count)
        if count == 2:
            gone = msgspec.structs.replace(retired, retired=True)
            world.topology = msgspec.structs.replace(world.topology, shards=(world.topology.shards[0], gone))
        world.fill(10)
        await archiver.look(flush=True)
        assert archiver._basing is not None
        await archiver._basing
    await archiver.close()
    [unended] = list_archives(store)[0].gaps
    assert verify(store).problems == [] and unended.startswith("shard 1 was retired")
    kept = number_of(catalogs_of(store, 7)[3], CATALOG) + 2 * SECOND
    last = world.now
    world.now = kept + 3600 * SECOND
    steps = 0
    while True:
        try:
            await prune(BesideMarks(store, 1, after=True), archive_hours=1.0, around=world.around)
            break
        except Killed:
            steps += 1
        for name in store.names("pruning/"):
            store.delete(name)
        (whole,) = list_archives(store)
        assert verify(store).problems == [] and {*whole.gaps} <= {unended}, steps
        assert aliases_at(store, kept) == 3 and whole.since <= rfc3339(kept)
    assert steps > 10 and archived_shards(store, 7) == [0] and bases_of(store, 7, 0)[0][0] > 0
    world.now = last
    assert restored(store, tmp_path / "first", at=kept) == world.shard.contents[(kept - BEGAN) // SECOND]
