"""The archive beside a store that fails, files that are damaged, and files of others: it goes on, within its memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backup.archived import World, restored
from needle.backup import archiving
from needle.backup.archive_format import FORMAT, encode
from needle.backup.archive_looking import list_archives
from needle.backup.archive_reading import bases_of, catalogs_of, read_head
from needle.backup.archiving import CHUNK_BYTES
from needle.backup.instant import restore_at
from needle.backup.keeping import MAKING, prune, verify
from needle.backup.store import DirectoryStore
from needle.base.errors import InvalidArgument, StorageError, Unavailable
from needle.protocol import calls
from needle.protocol.archive_calls import BACKED_UP, LOG, LogCall
from shard.replica_util import put

HOUR = 3_600_000_000  # microseconds
LARGE = "x" * 60_000


class Full(DirectoryStore):
    """takes: whether it takes anything."""

    takes = True

    def put(self, name: str, data: bytes) -> None:
        if not self.takes:
            raise StorageError(f"{name}: no space left")
        super().put(name, data)


async def test_while_the_store_takes_nothing_no_more_is_read(tmp_path: Path) -> None:
    """Each look added an answer to what was held: an hour of a full target took all memory of the machine."""
    world, store = World(tmp_path / "w"), Full(tmp_path / "t")
    archiver = world.archiver(store)
    world.fill(1)
    await archiver.look(flush=True)
    store.takes, most = False, 0
    for n in range(40):
        for m in range(7):
            world.write(put([f"d{m}"], [[n, 1.0]], [{"n": LARGE}], collection="books@5"))
        try:
            await archiver.look()
        except StorageError:
            most = max(most, archiver.shards[0].bytes)
    assert CHUNK_BYTES <= most < CHUNK_BYTES + (1 << 20)
    store.takes = True
    await archiver.look(flush=True)
    assert restored(store, tmp_path / "a", index=len(world.shard.log)) == world.shard.contents[-1]


class Away(DirectoryStore):
    """away: whether it cannot be reached."""

    away = False

    def get(self, name: str) -> bytes | None:
        if self.away:
            raise StorageError(f"{name}: host is down")
        return super().get(name)


@pytest.mark.parametrize("away", [True, False])
async def test_while_the_target_takes_nothing_nodes_hear_that_their_logs_are_needed(tmp_path: Path, away: bool) -> None:
    """Nothing was asked of them then: a minute later they kept a 32nd of their logs' bytes, an hour later nothing."""
    world, full, gone = World(tmp_path / "w"), Full(tmp_path / "t"), Away(tmp_path / "t")
    archiver = world.archiver(gone if away else full)
    world.fill(5)
    await archiver.look(flush=True)
    kept, ask, asked = len(world.shard.log), world.ask, list[int]()

    async def noted(method: str, body: Any, *rest: Any) -> bytes:
        if method == LOG:
            asked.append(calls.decode(body(1.0), LogCall).kept)
        return await ask(method, body, *rest)

    world.client._shards.group(0).ask_leader = noted
    gone.away, full.takes = True, False
    for n in range(3 * CHUNK_BYTES // len(LARGE) // 7):
        for m in range(7):
            world.write(put([f"d{m}"], [[n, 1.0]], [{"n": LARGE}], collection="books@5"))
        asked.clear()
        with contextlib.suppress(StorageError):
            await archiver.look()
        assert asked and set(asked) == {kept}
    gone.away, full.takes = False, True
    await archiver.look(flush=True)
    assert list_archives(full)[0].gaps == []


async def test_the_cluster_hears_nothing_of_a_target_that_took_nothing_yet(tmp_path: Path) -> None:
    """An archiver that began again said each hour that it goes on, though its target took no entries: the alert of an
    archive that is behind went by that word."""
    world, store = World(tmp_path / "w"), Full(tmp_path / "t")
    told, ask = [], world.ask

    async def noted(method: str, *rest: Any) -> bytes:
        if method == BACKED_UP:
            told.append(world.now)
            return b""
        return await ask(method, *rest)

    world.client._shards.group(0).ask_leader = noted
    world.fill(1)
    await world.archiver(store).look(flush=True)
    assert told == [world.now]
    archiver, store.takes = world.archiver(store), False
    for _ in range(3):
        world.fill(3)
        world.now += HOUR
        with pytest.raises(StorageError):
            await archiver.look(flush=True)
    assert len(told) == 1
    store.takes = True
    await archiver.look(flush=True)
    assert told[1:] == [world.now]
    await archiver.close()


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("what", ["head", "catalog", "base"])
@pytest.mark.parametrize("again", [False, True])
async def test_a_damaged_file_does_not_stop_the_archive(tmp_path: Path, what: str, again: bool) -> None:
    """With a bit of `head` changed nothing was claimed any more; with one of a state or the catalog's, whoever began
    again archived nothing forever."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store, base_every=10.0)
    await archiver.look(flush=True)
    world.fill(20)
    await archiver.look(flush=True)
    assert archiver._basing is not None
    await archiver._basing
    names = {"head": "archive/7/head", "catalog": catalogs_of(store, 7)[-1], "base": bases_of(store, 7, 0)[-1][1]}
    flip(tmp_path / "t" / names[what])
    assert len(list_archives(store)) == 1
    world.fill(5)
    if again:
        archiver = world.archiver(store)
    await archiver.look(flush=True)
    assert archiver._basing is not None
    await archiver._basing
    if what != "catalog" or again:  # who knows what the catalog said writes it when that changes
        at = {"index": len(world.shard.log)} if what != "base" or again else {"index": 21}
        assert restored(store, tmp_path / "a", **at) == world.shard.contents[at["index"]]


async def test_a_damaged_state_is_passed_over_where_an_older_one_leads_there(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store, base_every=10.0)
    await archiver.look(flush=True)
    world.fill(20)
    await archiver.look(flush=True)
    assert archiver._basing is not None
    await archiver._basing
    flip(tmp_path / "t" / bases_of(store, 7, 0)[-1][1])
    assert restored(store, tmp_path / "a", at=world.now) == world.shard.contents[-1]
    assert verify(store).problems  # and it is told


async def test_a_scratch_directory_that_is_not_there_is_told_of_by_name(tmp_path: Path) -> None:
    """The command ended with a traceback, then with the advice to replace the disk."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(20)
    world.shard.first = 8
    await world.archiver(store).look(flush=True)
    with pytest.raises(InvalidArgument, match=r"scratch = .* a directory that is there"):
        await restore_at(world.client, store, world.now, scratch=str(tmp_path / "absent"))


async def test_an_archive_of_a_later_release_does_not_hide_what_else_there_is(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(5)
    await world.archiver(store).look(flush=True)
    data = encode(msgspec.structs.replace(read_head(store, 7), format=FORMAT + 1))
    store.put("archive/7/head", data)
    (told,) = list_archives(store)
    assert told.until == "" and "use the release that wrote the archive" in told.gaps[0]


async def test_files_of_others_beside_an_archive_do_no_harm(tmp_path: Path) -> None:
    """A target's `archive/old.tar` had list, verify, prune and restore end with a traceback."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    for name in ("archive/old.tar", "archive/2025/june/a.log", "archive/7/0/notes.log", "archive/7/x/y.base"):
        store.put(name, b"not ours")
    assert list_archives(store) == []
    world.fill(5)
    await world.archiver(store).look(flush=True)
    assert [one.cluster for one in list_archives(store)] == ["7"] and verify(store).problems == []
    await prune(store, archive_hours=1.0, around=world.around)
    assert restored(store, tmp_path / "a", at=world.now) == world.shard.contents[-1]
    assert len([name for name in store.names("archive/") if name.endswith((".tar", "a.log", "notes.log"))]) == 3


async def test_the_mark_of_an_archiver_that_was_killed_is_taken_away_when_it_is_old(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(5)
    await world.archiver(store).look(flush=True)
    store.put(f"{MAKING}base-0123456789abcdef", b"at work\n")
    with pytest.raises(Unavailable):
        await prune(store, archive_hours=1.0, around=world.around)
    os.utime(tmp_path / "t" / MAKING / "base-0123456789abcdef", (1, 1))
    await prune(store, archive_hours=1.0, around=world.around)
    assert not store.names(MAKING)


async def test_a_state_that_was_changed_on_its_way_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(20)
    world.shard.first = 8
    right = world.shard.chunk
    world.shard.chunk = lambda call: bytes([right(call)[0] ^ 1]) + right(call)[1:]  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="fails its checksum"):
        await world.archiver(store).look(flush=True)
    assert not bases_of(store, 7, 0) and archiving.CALL_SECONDS
