"""`verify` applies what an archive has again, so what a shard's leader did not have is found, whatever its checksum."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from backup.archived import BEGAN, SECOND, World
from needle.backup.archive_format import encode
from needle.backup.archive_looking import list_archives
from needle.backup.archive_reading import bases_of, chunks_of, read_base, read_chunk
from needle.backup.around import Around
from needle.backup.instant import Making
from needle.backup.keeping import Verified, prune, verify
from needle.backup.places import indexes_at
from needle.backup.replaying import Replay
from needle.backup.store import DirectoryStore
from needle.base.errors import CorruptBackup, InvalidArgument, StorageError
from needle.protocol import commands
from needle.routing.topology import Topology
from shard.replica_util import put


async def archived(tmp_path: Path, *, states: bool = True) -> tuple[World, DirectoryStore]:
    """60 entries in several files, with states at 0, and on the way."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store, base_every=10.0 if states else 1e9)
    await archiver.look(flush=True)
    for _ in range(6):
        world.fill(10)
        await archiver.look(flush=True)
        assert archiver._basing is not None
        await archiver._basing
    await archiver.look(flush=True)
    await archiver.close()
    return world, store


def checked(store: DirectoryStore, tmp_path: Path) -> Verified:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    found = verify(store, scratch=str(scratch))
    assert not list(scratch.iterdir()), "nothing is left"
    return found


async def test_what_is_compared_is_said(tmp_path: Path) -> None:
    world, store = await archived(tmp_path)
    found = checked(store, tmp_path)
    assert found.problems == []
    [one] = found.compared
    entries, states = len(world.shard.log), len(bases_of(store, 7, 0))
    assert states > 2
    assert (one.cluster, one.shard, one.entries, one.last, one.proven) == ("7", 0, entries, entries, entries)
    assert one.states == states and one.digests >= 6
    assert verify(store, checksums_only=True).compared == []


async def test_an_entry_that_was_changed_with_a_right_checksum_is_found(tmp_path: Path) -> None:
    world, store = await archived(tmp_path, states=False)
    span = chunks_of(store, 7, 0)[1]
    chunk = read_chunk(store, span)
    other = put(["d1"], [[99.0, 1.0]], [{"n": 99}], collection="books@5")
    data = commands.entry(other, Topology(cluster_version=world.topology.cluster_version), world.now)
    at = next(at for at, one in enumerate(chunk.entries) if b"99" not in one.data)
    entries = list(chunk.entries)
    entries[at] = msgspec.structs.replace(entries[at], data=data)
    store.put(span.name, encode(msgspec.structs.replace(chunk, entries=entries)))
    assert verify(store, checksums_only=True).problems == []
    [problem] = checked(store, tmp_path).problems
    assert "shard 0 has digest" in problem and "and its leader had" in problem


async def test_a_state_that_was_changed_with_right_checksums_is_found(tmp_path: Path) -> None:
    _, store = await archived(tmp_path)
    (_, early), *_, (index, late) = bases_of(store, 7, 0)[1:]
    assert early != late
    store.put(late, encode(msgspec.structs.replace(read_base(store, late), files=read_base(store, early).files)))
    assert verify(store, checksums_only=True).problems == []
    [problem] = checked(store, tmp_path).problems
    assert f"its state at index {index} has digest" in problem


@pytest.mark.parametrize("what", ["state", "piece", "entries"])
async def test_bits_that_changed_are_told_once_and_the_rest_is_compared(tmp_path: Path, what: str) -> None:
    world, store = await archived(tmp_path)
    bases, chunks = bases_of(store, 7, 0), chunks_of(store, 7, 0)
    named: dict[str, Callable[[], str]] = {
        "state": lambda: bases[1][1],
        "piece": lambda: read_base(store, bases[1][1]).pieces()[0].name,
        "entries": lambda: chunks[1].name,
    }
    name = named[what]()
    data = store.get(name) or b""
    store.put(name, data[:-1] + bytes([data[-1] ^ 1]))
    found = checked(store, tmp_path)
    assert found.problems and all(name in problem for problem in found.problems)
    assert len(set(found.problems)) == len(found.problems) == len(verify(store, checksums_only=True).problems)
    [one] = found.compared
    assert one.proven == one.last == len(world.shard.log), "a later state leads to the end"


async def test_behind_a_gap_it_begins_with_the_next_state(tmp_path: Path) -> None:
    world, store = await archived(tmp_path)
    lost = chunks_of(store, 7, 0)[1]
    store.delete(lost.name)
    [one] = checked(store, tmp_path).compared
    assert one.entries < len(world.shard.log) == one.proven


async def test_no_vector_is_in_memory(tmp_path: Path) -> None:
    """So that an archive is checked where its shards do not fit: what is compared is stored, and sums of it."""
    world, store = await archived(tmp_path)
    (tmp_path / "r").mkdir()
    index, name = bases_of(store, 7, 0)[2]
    with Replay(store, 7, 0, tmp_path / "r") as replay:
        replay.begin(read_base(store, name))
        assert replay.last == index
        replay.follow(None)
        assert replay.replica.count() == len(world.shard.contents[-1]) > 0
        assert replay.replica.digest() == world.shard.digests[len(world.shard.log)]
        assert sum(len(one.view().growing) for one in replay.replica.held.collection_vectors()) == 0
        replay.replica.verify()


async def test_a_scratch_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    _, store = await archived(tmp_path)
    with pytest.raises(InvalidArgument, match=r"scratch = '/.* is not allowed: a directory that is there"):
        verify(store, scratch=str(tmp_path / "absent"))


async def test_a_state_is_compared_also_where_the_file_behind_it_is_damaged(tmp_path: Path) -> None:
    """The damage was told, and the state was taken for proven by whoever put the damaged file aside."""
    _, store = await archived(tmp_path)
    states = bases_of(store, 7, 0)
    index, name = states[2]
    wrong = msgspec.structs.replace(read_base(store, name), files=read_base(store, states[1][1]).files)
    store.put(name, encode(wrong))
    [behind] = [one for one in chunks_of(store, 7, 0) if one.first == index + 1]
    data = store.get(behind.name)
    store.put(behind.name, data[:-1] + bytes([data[-1] ^ 1]))
    problems = checked(store, tmp_path).problems
    assert any(behind.name in problem for problem in problems)
    assert any(f"its state at index {index} has digest" in problem for problem in problems)


class PrunedMeanwhile(DirectoryStore):
    """Somebody prunes it before its nth file is read."""

    def __init__(self, root: Path, when: int, around: Around) -> None:
        super().__init__(root)
        self._when, self._around, self.reads = when, around, 0

    def get(self, name: str) -> bytes | None:
        self.reads += 1
        if self.reads == self._when:
            store = DirectoryStore(self._root)
            thread = threading.Thread(target=lambda: asyncio.run(prune(store, archive_hours=1.0, around=self._around)))
            thread.start()
            thread.join()
        return super().get(name)


LOOKS: dict[str, Callable[[DirectoryStore], list[str]]] = {
    "list": lambda store: list_archives(store)[0].gaps,
    "checksums": lambda store: verify(store, checksums_only=True).problems,
    "compare": lambda store: verify(store).problems,
}


@pytest.mark.parametrize("look", LOOKS)
async def test_what_somebody_prunes_of_it_meanwhile_is_no_damage(tmp_path: Path, look: str) -> None:
    world, store = await archived(tmp_path)
    world.now += 3600 * SECOND - 5 * SECOND
    whole = PrunedMeanwhile(tmp_path / "t", 0, world.around)
    assert LOOKS[look](whole) == []
    for when in range(1, whole.reads + 1, 1 if look == "list" else 4):
        there = tmp_path / f"{when}"
        shutil.copytree(tmp_path / "t", there)
        assert LOOKS[look](PrunedMeanwhile(there, when, world.around)) == [], when
        assert len(bases_of(DirectoryStore(there), 7, 0)) < len(bases_of(store, 7, 0)), "it was pruned"


class PrunedAt(DirectoryStore):
    """Somebody prunes all but the last 30 seconds when this file is read for the nth time."""

    def __init__(self, root: Path, name: str, nth: int, world: World) -> None:
        super().__init__(root)
        self._name, self._left, self._world = name, nth, world

    def get(self, name: str) -> bytes | None:
        if name == self._name:
            self._left -= 1
            if self._left == 0:
                asyncio.run(prune(self, archive_hours=30 / 3600, around=self._world.around))
        return super().get(name)


async def test_what_is_pruned_while_it_is_applied_is_no_damage(tmp_path: Path) -> None:
    world, store = await archived(tmp_path)
    before, chunks = bases_of(store, 7, 0), chunks_of(store, 7, 0)
    pruned = PrunedAt(tmp_path / "t", before[1][1], 3, world)  # it is looked at, checked, and then begun with
    found = await asyncio.to_thread(verify, pruned, scratch=str(tmp_path))
    after = bases_of(store, 7, 0)
    assert 0 < len(after) < len(before) and len(chunks_of(store, 7, 0)) < len(chunks)
    assert found.problems == []
    [one] = found.compared
    assert one.proven == one.last == len(world.shard.log) and one.states == len(after)


async def test_an_instant_that_is_pruned_while_it_is_read_is_not_called_damaged(tmp_path: Path) -> None:
    world, _ = await archived(tmp_path)
    store = DirectoryStore(tmp_path / "t")
    (tmp_path / "s").mkdir()
    at, chunk = BEGAN + 5 * SECOND, chunks_of(store, 7, 0)[0]
    with pytest.raises(StorageError, match="somebody deleted a part of the archive") as told:
        await asyncio.to_thread(
            Making(PrunedAt(tmp_path / "t", chunk.name, 1, world), tmp_path / "s").run, at, {}, None
        )
    assert not isinstance(told.value, CorruptBackup)
    (tmp_path / "again").mkdir()
    begins = f"begins at {list_archives(store)[0].since}"
    with pytest.raises(InvalidArgument, match=begins):
        Making(store, tmp_path / "again").run(at, {}, None)
    with pytest.raises(InvalidArgument, match=begins):
        indexes_at(store, at)


async def test_the_bytes_of_an_archive_are_counted(tmp_path: Path) -> None:
    """It said 146 files of 0.0 MB."""
    _, store = await archived(tmp_path)
    files = [path for path in (tmp_path / "t").rglob("*") if path.is_file()]
    found = verify(store, checksums_only=True)
    assert (found.pieces, found.bytes) == (len(files), sum(path.stat().st_size for path in files))
