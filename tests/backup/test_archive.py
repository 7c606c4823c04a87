"""The archive of a log, and what comes out of it, in one process: shards are replicas that are fed entries."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backup.archived import BEGAN, SECOND, World, restored
from backup.killing import Counted, Killed
from needle.backup.archive_format import Span
from needle.backup.archive_keeping import outdated
from needle.backup.archive_looking import list_archives
from needle.backup.archive_reading import bases_of, catalog_at, chain, chunks_of
from needle.backup.archiving import archive
from needle.backup.keeping import prune, verify
from needle.backup.owners import owners
from needle.backup.replaying import Replayed
from needle.backup.store import DirectoryStore
from needle.base.errors import (
    CorruptBackup,
    Forbidden,
    InvalidArgument,
    NeedleError,
    NoQuorum,
    RestoreDiffers,
    StorageError,
    Unavailable,
)
from needle.base.versions import KNOWN
from needle.local.process_cluster import wait_for
from needle.protocol import calls, commands
from needle.protocol.archive_calls import LogCall
from needle.protocol.move_commands import PrepareMove
from needle.protocol.stamps import STAMPED_SINCE, stamp
from needle.routing.shard_map import ShardMap
from needle.routing.strategy import RANGE
from needle.routing.topology import ShardInfo, Topology
from needle.shard.apply.holdings import Holdings, Transfer
from shard.replica_util import put


async def test_every_index_and_every_instant_comes_back_as_it_was(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    for _ in range(3):
        world.fill(10)
        await archiver.look(flush=True)
    shard = world.shard
    for index in range(len(shard.log) + 1):
        assert restored(store, tmp_path / f"i{index}", index=index) == shard.contents[index]
        if index:  # entry n was proposed at second n: it is there from then on, and not a microsecond before
            at = BEGAN + index * SECOND
            assert restored(store, tmp_path / f"a{index}", at=at) == shard.contents[index]
            assert restored(store, tmp_path / f"b{index}", at=at - 1) == shard.contents[index - 1]
    with pytest.raises(InvalidArgument, match="is archived"):
        restored(store, tmp_path / "late", at=world.now + 1)
    with pytest.raises(InvalidArgument, match="begins at"):
        restored(store, tmp_path / "early", at=BEGAN - 1)
    (told,) = list_archives(store)
    assert (told.cluster, told.since, told.until, told.gaps) == (
        "7", "2027-01-15T08:00:00Z", "2027-01-15T08:00:31Z", [],
    )  # fmt: skip
    assert verify(store).problems == []


async def test_a_shard_that_the_catalog_named_only_afterwards_is_looked_into(tmp_path: Path) -> None:
    """Ranges may have moved to it before the archiver heard of it: their documents would be missing."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store)
    world.fill(6)
    await archiver.look(flush=True)
    looked = world.now
    world.fill(4)
    world.topology = msgspec.structs.replace(
        world.topology, version=2, shards=(*world.topology.shards, ShardInfo(shard=1, replicas=("a",), founders=("a",)))
    )
    await archiver.look(flush=True)
    known = [catalog_at(store, 7, at)[1] for at in (looked, looked + 1, world.now)]
    assert known == [[0], [0, 1], [0, 1]]
    world.now += SECOND
    world.fill(1)
    with pytest.raises(InvalidArgument, match="until then the catalog is archived"):
        catalog_at(store, 7, world.now)


async def test_killed_anywhere_it_goes_on_where_the_store_says(tmp_path: Path) -> None:
    world, steps = World(tmp_path / "w"), 0
    world.fill(20)
    world.shard.first = 8  # so the state is copied first
    for at, after in [(at, after) for at in range(1, 40) for after in (False, True)]:
        store = DirectoryStore(tmp_path / f"t{at}-{after}")
        killed = True
        with pytest.raises(Killed) if at < 8 else _either():
            await world.archiver(Counted(store, at, after)).look(flush=True)
            killed = False
        world.fill(2)
        await world.archiver(store).look(flush=True)
        assert restored(store, tmp_path / f"r{at}-{after}", index=len(world.shard.log)) == world.shard.contents[-1]
        assert verify(store).problems == []
        steps = at
        if not killed:
            break
    assert 8 <= steps < 39


class _either:
    """Killed or not."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, at: Any) -> bool:
        return kind is Killed


async def test_a_log_that_was_cut_leaves_a_gap_that_is_told_and_goes_on_behind_it(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(10)
    await world.archiver(store).look(flush=True)
    world.fill(30)
    world.shard.first = 31
    await world.archiver(store).look(flush=True)
    copied = world.now
    world.fill(5)
    await world.archiver(store).look(flush=True)
    assert restored(store, tmp_path / "a", index=9) == world.shard.contents[9]
    assert restored(store, tmp_path / "b", at=copied) == world.shard.contents[41]
    assert restored(store, tmp_path / "c", index=44) == world.shard.contents[44]
    with pytest.raises(CorruptBackup, match="lacks the entries behind 11"):
        restored(store, tmp_path / "d", at=BEGAN + 20 * SECOND)
    (told,) = list_archives(store)
    assert told.gaps == ["shard 0: entries 12 to 41 are missing"]
    assert verify(store).problems == []  # nothing is damaged


@pytest.mark.parametrize("begun", [True, False])
async def test_what_a_leader_of_a_snapshot_lacks_the_other_replicas_give(tmp_path: Path, begun: bool) -> None:
    """A replica that came by a snapshot, and leads then, has no entries behind it: instants up to there were lost."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(10)
    if begun:
        await world.archiver(store).look(flush=True)
    world.followers = [copy.copy(world.shard), copy.copy(world.shard)]
    world.followers[0].first = 20
    world.fill(30)
    world.shard.first = 31
    await world.archiver(store).look(flush=True)
    assert list_archives(store)[0].gaps == [] and [index for index, _ in bases_of(store, 7, 0)] == [0]
    for index in (9, 15, 25, 40):
        assert restored(store, tmp_path / f"{index}", index=index) == world.shard.contents[index]


async def test_a_replica_that_is_just_restarted_is_waited_for_and_one_that_is_gone_is_not(tmp_path: Path) -> None:
    """All nodes were killed at once, one that came by a snapshot leads, and the others are not up yet."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(10)
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    whole, empty = copy.copy(world.shard), copy.copy(world.shard)
    whole.log, empty.log = world.shard.log, world.shard.log[:4]
    world.followers = [whole, empty]
    world.down = {"0"}
    world.fill(30)
    world.shard.first, empty.first = 31, 1
    for _ in range(3):
        with pytest.raises(Unavailable, match=r"go back to entry 12, and another replica .* 0 does not .*; 1 has app"):
            await archiver.look(flush=True)
    world.down.clear()
    await archiver.look(flush=True)
    assert list_archives(store)[0].gaps == [] and [index for index, _ in bases_of(store, 7, 0)] == [0]
    assert restored(store, tmp_path / "there", index=25) == world.shard.contents[25]

    world.down = {"0"}
    world.fill(30)
    world.shard.first = 61
    with pytest.raises(Unavailable, match="go back to entry 42"):
        await archiver.look(flush=True)
    world.now += 121 * SECOND
    await archiver.look(flush=True)
    assert list_archives(store)[0].gaps == ["shard 0: entries 42 to 71 are missing"]


async def test_a_replica_is_waited_for_again_though_another_was_once(tmp_path: Path) -> None:
    """The first time another leader had the entries after all."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(10)
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    world.followers, world.down = [copy.copy(world.shard)], {"0"}
    for at in (12, 42):
        world.fill(30)
        world.shard.first = at + 19
        with pytest.raises(Unavailable, match=f"go back to entry {at}"):
            await archiver.look(flush=True)
        world.shard.first = 1
        await archiver.look(flush=True)
        world.now += 121 * SECOND
    assert list_archives(store)[0].gaps == []


async def test_damage_is_found(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    for _ in range(3):
        world.fill(6)
        archiver = world.archiver(store)
        await archiver.look(flush=True)
        if archiver._basing is not None:
            await archiver._basing  # a state that is being copied: its mark comes and goes
        await archiver.close()
    before = dict(store.names(""))
    for name in before:
        path = tmp_path / "t" / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert verify(store).problems, name
        path.write_bytes(data)
        if name.endswith(".log"):
            path.unlink()
            assert any("are missing" in problem for problem in verify(store).problems), name
            path.write_bytes(data)
    assert verify(store).problems == []


async def test_a_state_that_is_not_the_recorded_one_is_not_restored(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(6)
    world.shard.digests[len(world.shard.log)] = "0" * 32
    await world.archiver(store).look(flush=True)
    with pytest.raises(RestoreDiffers, match=r"digest .* at index 7"):
        restored(store, tmp_path / "a", index=7)
    with pytest.raises(RestoreDiffers):  # what comes behind the place proves it, too
        restored(store, tmp_path / "b", index=3)


async def test_a_cluster_that_lost_what_is_archived_is_told_of(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(6)
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    world.shard.log.pop()
    with pytest.raises(StorageError, match="lost writes"):
        await archiver.look(flush=True)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("copied", [False, True])
async def test_a_cluster_that_wrote_others_in_their_place_is_told_of(tmp_path: Path, again: bool, copied: bool) -> None:
    """The archive went on behind entries that no replica has, and no instant behind them could be restored."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(6)
    world.shard.first = 3 if copied else 1
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    world.shard.log[-1] = msgspec.structs.replace(world.shard.log[-1], term=2)
    world.fill(5)
    with pytest.raises(StorageError, match="lost writes"):
        await (world.archiver(store) if again else archiver).look(flush=True)


async def test_states_are_copied_now_and_then_and_prune_keeps_what_leads_to_the_last_hours(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store, base_every=15.0)
    for _ in range(8):
        world.fill(6)
        await archiver.look(flush=True)
        assert archiver._basing is not None
        await archiver._basing
    assert len(bases_of(store, 7, 0)) >= 3
    middle = BEGAN + 30 * SECOND
    world.now = middle + 3600 * SECOND
    assert outdated(store, middle)
    await prune(store, archive_hours=1.0, around=world.around)
    assert not outdated(store, middle) and verify(store).problems == []
    for index in range(30, len(world.shard.log) + 1):
        at = BEGAN + index * SECOND
        assert restored(store, tmp_path / f"a{index}", at=at) == world.shard.contents[index]
    with pytest.raises(NeedleError):
        restored(store, tmp_path / "old", at=BEGAN + 3 * SECOND)
    with pytest.raises(InvalidArgument):
        await prune(store, around=world.around)


async def test_a_state_is_told_of_only_when_the_entries_before_it_are_there(tmp_path: Path) -> None:
    """Whoever began again at it left the entries out that had been read, and not been kept yet."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store, every=1e9, base_every=10.0)
    await archiver.look(flush=True)
    world.fill(20)
    await archiver.look()  # reads, and keeps nothing
    archiver.shards[0].kept = 1
    await archiver.look()
    for _ in range(200):
        await asyncio.sleep(0.001)
    assert [index for index, _ in bases_of(store, 7, 0)] == [0]
    await archiver.look(flush=True)
    assert archiver._basing is not None
    await archiver._basing
    assert [index for index, _ in bases_of(store, 7, 0)] == [0, len(world.shard.log)]


async def test_two_archivers_at_one_target_do_no_harm(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    one, other = world.archiver(store), world.archiver(store)
    for n in range(8):
        world.fill(3)
        await (one, other)[n % 3 == 0].look(flush=True)
    await other.look(flush=True)
    for index in (4, 9, len(world.shard.log)):
        assert restored(store, tmp_path / f"i{index}", index=index) == world.shard.contents[index]
    assert verify(store).problems == [] and len(chunks_of(store, 7, 0)) >= 8


def test_files_lead_on_also_where_they_overlap() -> None:
    spans = sorted([Span(1, 4, "a"), Span(3, 9, "b"), Span(5, 6, "c"), Span(11, 12, "d")])
    assert [span.name for span in chain(spans, 0)] == ["a", "b"]
    assert [span.name for span in chain(spans, 5)] == ["b"]
    assert [span.name for span in chain(spans, 10)] == ["d"]


MAP = ShardMap(1, RANGE, 2, (b"", b"m"), (0, 1))
MOVED = (b"g", b"m")


def at_cut(phase: str, arrived: bool, forgotten: bool = False) -> dict[int, Replayed]:
    """Shard 0 gives [g, m) to shard 1."""
    gave = phase in ("released", "over")
    source = Holdings(RANGE, 2, ((b"", b"g") if gave else (b"", b"m"),), 0, 0, (Transfer(3, False, (MOVED,), phase),))
    takes = Transfer(3, True, (MOVED,), "over" if arrived else "open")
    target = Holdings(RANGE, 2, ((b"g" if arrived else b"m", None),), 0, 0, (takes,))
    return {
        shard: Replayed(
            shard=shard, index=9, directory="", holdings=held, collections={}, dropped=set(),
            forgotten={3} if forgotten and not shard else set(),
        )
        for shard, held in enumerate((source, target))
    }  # fmt: skip


@pytest.mark.parametrize(
    ("phase", "arrived", "of"),
    [
        ("open", False, 0),
        ("frozen", False, 0),
        ("released", False, 0),
        ("released", True, 1),
        ("over", True, 1),
        ("frozen", True, 1),
    ],
)
def test_a_range_that_is_on_its_way_has_one_owner(phase: str, arrived: bool, of: int) -> None:
    """The last two where the clocks of the two leaders disagree."""
    owned = owners(at_cut(phase, arrived), MAP)
    assert owned == {0: [(b"", b"g" if of else b"m")], 1: [(b"g" if of else b"m", None)]}


def test_a_range_that_nobody_has_any_more_is_refused() -> None:
    for found in (at_cut("over", False), at_cut("released", False, forgotten=True)):
        with pytest.raises(StorageError, match="earlier or later"):
            owners(found, MAP)
    still = {shard: msgspec.structs.replace(one, holdings=None) for shard, one in at_cut("open", False).items()}
    assert owners(still, MAP) == {0: [(b"", b"m")], 1: [(b"m", None)]}


def test_what_a_shard_has_that_is_not_archived_there_is_not_answered_with_less() -> None:
    """It came and went while no archiver ran: the source's copy was taken for what there was."""
    found = {0: at_cut("released", True)[0]}
    with pytest.raises(StorageError, match="shard 0 had given a range of keys to a shard of which nothing is archived"):
        owners(found, ShardMap(1, RANGE, 1, (b"",), (0,)))


def test_an_entry_says_when_it_was_proposed() -> None:
    move = PrepareMove(1, 1, True, [(b"a", None)], [], RANGE, 2)
    for command in (put(["a"], [[1.0, 2.0]]), move, commands.DropCollection("a")):
        data = commands.entry(command, Topology(cluster_version=KNOWN), 1234)
        assert stamp(data) == 1234 and commands.decode_logged(data) == command
        former = commands.entry(command, Topology(cluster_version=STAMPED_SINCE - 1), 1234)
        assert former == commands.encode(command) and stamp(former) == 0
        assert commands.decode_logged(former) == command
        with pytest.raises(NeedleError):  # what callers send is not stamped, and is looked at before it is decoded
            commands.decode(data)


async def test_nodes_that_do_not_answer_at_the_start_are_waited_for(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.fill(3)

    async def refused(timeout: float) -> None:
        raise error

    world.client.catalog_status = refused
    error: NeedleError = NoQuorum("a majority is down")

    async def archived() -> None:
        await wait_for(lambda: bool(chunks_of(store, 7, 0)), 30, "entries at the target")

    await archive(world.client, store, every=0.0, around=world.around, until=archived)
    error = Forbidden("not with this key")
    with pytest.raises(Forbidden):
        await archive(world.client, store, around=world.around, until=archived)


async def test_the_other_replicas_hear_now_and_then_how_far_it_is(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    heard: list[tuple[str, LogCall]] = []
    answered = world.client._shards.group(0).ask_replica

    async def ask_replica(address: str, method: str, body: bytes, timeout: float) -> bytes:
        heard.append((address, calls.decode(body, LogCall)))
        if address == "0":
            raise Unavailable("it is down")
        return await answered(address, method, body, timeout)

    world.followers = [copy.copy(world.shard), copy.copy(world.shard)]
    world.client._shards.group(0).ask_replica = ask_replica
    archiver = world.archiver(store)
    for _ in range(45):
        world.fill(1)
        await archiver.look(flush=True)
    await archiver.close()
    assert [one for one, _ in heard] == ["0", "1"] * 3
    told = [call for address, call in heard if address == "1"]
    assert [call.until - BEGAN for call in told] == sorted({call.until - BEGAN for call in told})
    assert all(call.follower and call.kept and call.until <= world.now for call in told)


async def test_a_replica_that_hangs_holds_up_no_look(tmp_path: Path) -> None:
    """Each minute the archive of all shards waited until the slowest was told, or the time for it was up."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    asked: list[str] = []

    async def ask_replica(address: str, *_: Any) -> bytes:
        asked.append(address)
        await asyncio.Event().wait()
        raise AssertionError

    world.followers = [copy.copy(world.shard)]
    world.client._shards.group(0).ask_replica = ask_replica
    archiver = world.archiver(store)
    async with asyncio.timeout(30):
        for _ in range(70):
            world.fill(1)
            await archiver.look(flush=True)
        assert asked == ["0"], "which is not asked again while it has not answered"
        await archiver.close()
    assert restored(store, tmp_path / "a", index=len(world.shard.log)) == world.shard.contents[-1]
