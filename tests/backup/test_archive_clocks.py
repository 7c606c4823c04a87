"""The archive where clocks differ or are put back: an instant is answered right, or refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backup.archived import BOOKS, SECOND, World, restored
from needle.backup.archive_reading import read_head
from needle.backup.store import DirectoryStore
from needle.base.errors import ClusterTooOld, InvalidArgument
from needle.protocol.stamps import STAMPED_SINCE
from shard.replica_util import put


def number(world: World, n: int) -> None:
    world.write(put(["a"], [[n, 1.0]], [{"n": n}], collection="books@5"))


async def test_a_clock_that_ran_ahead_hides_no_acknowledged_write(tmp_path: Path) -> None:
    """One entry of a leader whose clock was a year ahead had all that came behind it count as later, silently."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    world.fill(5)
    right = world.now
    world.now += 365 * 86_400 * SECOND
    number(world, 77)
    world.now, world.shard.term = right + SECOND, 2
    for n in range(5):
        number(world, n)
    await archiver.look(flush=True)
    assert restored(store, tmp_path / "a", at=right) == world.shard.contents[6]
    for at in (world.now, world.now - 2 * SECOND):
        with pytest.raises(InvalidArgument, match=r"put back, or two clocks differed.*--index"):
            restored(store, tmp_path / f"b{at}", at=at)
    assert restored(store, tmp_path / "c", index=len(world.shard.log)) == world.shard.contents[-1]


async def test_requests_that_changed_places_in_one_leaders_hands_do_no_harm(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    world.fill(3)
    later = world.now + SECOND
    number(world, 8)
    world.now -= SECOND + 2000
    number(world, 9)
    world.now = later + SECOND
    await archiver.look(flush=True)
    assert restored(store, tmp_path / "a", at=later - 1000) == world.shard.contents[4]


async def test_what_was_archived_up_to_a_clock_is_not_claimed_when_it_is_put_back(tmp_path: Path) -> None:
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store)
    world.fill(3)
    world.now += 60 * SECOND
    await archiver.look(flush=True)
    ahead = world.now
    world.now, world.shard.term = ahead - 50 * SECOND, 2
    number(world, 9)
    await archiver.look(flush=True)
    assert read_head(store, 7).shards[0] == (5, world.now)
    number(world, 10)  # acknowledged before `ahead`, and not archived
    with pytest.raises(InvalidArgument, match="archived until"):
        restored(store, tmp_path / "a", at=ahead)


async def test_a_collection_that_was_dropped_while_the_catalog_was_asked_was_there_before(tmp_path: Path) -> None:
    """What the catalog said was noted with the clock from before it was asked, which may take seconds."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    world.fill(5)
    before = world.now
    asked = world.topology

    async def refresh(**_: object) -> object:
        world.now += 5 * SECOND
        world.topology = msgspec.structs.replace(asked, version=2, collections=(), dropped=(BOOKS.id,))
        return world.topology

    world.client.refresh_topology = refresh
    await archiver.look(flush=True)
    asked = world.topology
    await archiver.look(flush=True)
    assert restored(store, tmp_path / "a", at=before + 2 * SECOND) == world.shard.contents[-1]


async def test_a_log_that_does_not_say_when_is_not_archived(tmp_path: Path) -> None:
    """All that an older cluster wrote would count as of before any instant."""
    world, store = World(tmp_path / "w"), DirectoryStore(tmp_path / "t")
    world.topology = msgspec.structs.replace(world.topology, cluster_version=STAMPED_SINCE - 1)
    with pytest.raises(ClusterTooOld, match="all nodes run this release"):
        await world.archiver(store).look(flush=True)
    assert not store.names("")
