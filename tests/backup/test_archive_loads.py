"""A bulk load in a log that is archived: its documents are in a file, so the state behind it is copied."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from backup.archived import BEGAN, BOOKS, SECOND, World, restored
from needle.backup.archive_looking import list_archives
from needle.backup.archive_reading import bases_of
from needle.backup.keeping import prune, verify
from needle.backup.store import DirectoryStore
from needle.base.errors import NeedleError, StorageError
from needle.protocol import commands
from needle.shard.bulk.rows_file import Rows, RowsWriter
from needle.shard.bulk.staged import rows_name
from shard.replica_util import floats, put

COUNT = 40


def load(world: World, count: int = COUNT) -> int:
    """Its index."""
    out = io.BytesIO()
    writer = RowsWriter(out)
    ids, metadata = [f"l{n}" for n in range(count)], [b'{"n":%d}' % n for n in range(count)]
    writer.add(Rows(ids, metadata, floats(*([n, 1.0] for n in range(count)))))
    said = writer.end()
    replica = world.shard.replica
    here = replica.view.collection("books@5").record.id
    replica.staged.put(rows_name(here, said.checksum), said.size, 0, out.getvalue())
    world.write(commands.LoadRows(here, said.rows, said.size, said.checksum, 0))
    replica.staged.forget(here)  # as after ten minutes
    return len(world.shard.log)


@pytest.mark.parametrize("at_work", [True, False], ids=["archiver-at-work", "it-comes-later"])
async def test_what_was_before_a_load_and_all_behind_the_copy_come_back(tmp_path: Path, at_work: bool) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.write(commands.CreateCollection(BOOKS.stored_spec))
    await world.archiver(store).look(flush=True)
    archiver = world.archiver(store)
    loaded = load(world)
    if not at_work:
        world.fill(5)
    await archiver.look(flush=True)
    copied = len(world.shard.log)
    assert [index for index, _ in bases_of(store, 7, 0)] == [0, copied], "the state behind the load"
    world.fill(8)
    await archiver.look(flush=True)
    for index in [*range(loaded), *range(copied, len(world.shard.log) + 1)]:
        assert restored(store, tmp_path / f"i{index}", index=index) == world.shard.contents[index]
        if index:
            at = BEGAN + index * SECOND
            assert restored(store, tmp_path / f"a{index}", at=at) == world.shard.contents[index]
    for index in range(loaded, copied):
        with pytest.raises(NeedleError, match="documents came by a bulk load"):
            restored(store, tmp_path / f"gap{index}", at=BEGAN + index * SECOND)
    missing = [] if at_work else [f"shard 0: entries {loaded + 1} to {copied} are missing"]
    assert list_archives(store)[0].gaps == missing
    report = verify(store)
    assert report.problems == [], "nothing is damaged"
    assert report.compared[0].proven == len(world.shard.log), "and what is behind the load is compared"
    world.now += 3 * 3600 * SECOND
    world.fill(1)
    await archiver.look(flush=True)
    await prune(store, archive_hours=1, around=world.around)
    assert restored(store, tmp_path / "pruned", index=len(world.shard.log)) == world.shard.contents[-1]


async def test_an_archiver_that_is_killed_before_the_state_is_copied_meets_the_load_again(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.write(commands.CreateCollection(BOOKS.stored_spec))
    first = world.archiver(store)
    await first.look(flush=True)
    load(world)
    assert not await first.read(flush=True), "the state is to be copied"
    await first.close()
    assert [index for index, _ in bases_of(store, 7, 0)] == [0]
    world.fill(3)
    await world.archiver(store).look(flush=True)
    last = len(world.shard.log)
    assert restored(store, tmp_path / "r", index=last) == world.shard.contents[last]
    assert verify(store).problems == []


class Refusing(DirectoryStore):
    """Takes nothing for a while."""

    refuses = False

    def put(self, name: str, data: bytes) -> None:
        if self.refuses:
            raise StorageError("the bucket refuses this now")
        super().put(name, data)


async def test_a_load_is_met_also_where_the_store_refused_what_came_before_it(tmp_path: Path) -> None:
    """What is written meanwhile was read on behind the load, and no state was copied: of all later instants none could
    be had."""
    world, store = World(tmp_path / "w"), Refusing(tmp_path / "t")
    world.fill(0)
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    load(world)
    store.refuses = True
    with pytest.raises(StorageError):
        await archiver.read(flush=False)
    world.fill(3)
    store.refuses = False
    await archiver.look(flush=True)
    world.fill(3)
    await archiver.look(flush=True)
    last = len(world.shard.log)
    assert restored(store, tmp_path / "r", index=last) == world.shard.contents[last]


async def test_a_collection_that_is_called_as_the_entry_is_costs_no_copy(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(3)
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    world.write(put(["load"], [[1.0, 1.0]], [{"n": "load"}], collection="books@5"))
    await archiver.look(flush=True)
    assert [index for index, _ in bases_of(store, 7, 0)] == [0]


async def test_a_load_that_was_refused_costs_no_copy(tmp_path: Path) -> None:
    """Its collection had documents already."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(3)
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    load(world)
    world.fill(3)
    await archiver.look(flush=True)
    last = len(world.shard.log)
    assert [index for index, _ in bases_of(store, 7, 0)] == [0], "the collection had documents"
    assert restored(store, tmp_path / "r", index=last) == world.shard.contents[last]
    assert world.shard.contents[last], "of what was written"
    report = verify(store)
    assert (report.problems, report.compared[0].proven) == ([], last)
    world.write(commands.DropCollection("books@5"))
    await world.archiver(store).look(flush=True)
    assert [index for index, _ in bases_of(store, 7, 0)] == [0]


async def test_of_two_loads_the_state_is_copied_behind_the_one_that_was_taken(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.write(commands.CreateCollection(BOOKS.stored_spec))
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    load(world)
    await archiver.look(flush=True)
    taken = len(world.shard.log)
    load(world, COUNT // 2)
    world.fill(2)
    await archiver.look(flush=True)
    last = len(world.shard.log)
    assert [index for index, _ in bases_of(store, 7, 0)] == [0, taken]
    assert restored(store, tmp_path / "r", index=last) == world.shard.contents[last]
    assert len(world.shard.contents[last]) >= COUNT
    assert verify(store).problems == []
