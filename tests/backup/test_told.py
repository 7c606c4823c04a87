"""The cluster is told of backups and archives, and says when they are too old."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

import needle
from harness.calm import CALM
from needle import backup as backups
from needle.backup.archive_reading import bases_of
from needle.backup.archiving import Archiver
from needle.backup.store import Store
from needle.base.errors import Forbidden, InvalidArgument, StorageError
from needle.catalog.state import execute
from needle.client.router.routes import BATCH_BYTES_MAX
from needle.client.shards import ask_leader
from needle.connecting import Credentials, connected
from needle.local.process_cluster import ProcessCluster
from needle.protocol import calls
from needle.protocol.archive_calls import BACKED_UP, BackedUpCall
from needle.protocol.catalog_commands import FORGET, NoteBackup
from needle.routing.plans import CATALOG
from needle.routing.topology import ClusterSettings, Topology

NODE = {"sharding": {"shards": 1, "replicas": 1}, **CALM}
HOUR = 3_600_000_000
NAMES = {"backup too old", "archive of the log behind"}


def test_the_last_one_counts_and_none_is_expected_once_it_is_said() -> None:
    now = Topology(settings=ClusterSettings(shard_count=1, replication_factor=1))
    for command, expected in (
        (NoteBackup(backup=7), (7, 0)),
        (NoteBackup(backup=5, archive=9), (7, 9)),
        (NoteBackup(archive=FORGET), (7, 0)),
        (NoteBackup(FORGET, FORGET), (0, 0)),
        (NoteBackup(backup=3), (3, 0)),
    ):
        now, _ = execute(now, 1, command)
        assert (now.backed_up, now.archived) == expected


async def told(client: needle.Client) -> set[str]:
    health = await client.health_check()
    return {one.name for one in health.conditions} & NAMES


async def test_it_says_so_while_they_are_too_old(tmp_path: Path) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    (tmp_path / "node").mkdir()
    async with ProcessCluster(tmp_path / "node", 1, **NODE) as cluster, cluster.connect() as client:
        await client.insert("a", [1.0, *[0.0] * 7])
        assert await told(client) == set()
        now = int(time.time() * 1e6)
        await client.change_catalog(NoteBackup(now - 27 * HOUR, now - 2 * HOUR))
        assert await told(client) == NAMES
        made = await backups.create(client, store, begin=True)
        assert made.told and await told(client) == {"archive of the log behind"}
        archiver = Archiver(client, store, begin=True)
        await archiver.look(flush=True)
        await archiver.look(flush=True)  # with which the leader hears what the first one has kept
        assert await told(client) == set()

        async def say(**said: int) -> None:
            body = calls.encode(BackedUpCall(**said))
            await ask_leader(client, CATALOG, BACKED_UP, lambda _: body, 10.0)

        await say(backup=now + 99 * HOUR)  # nothing is believed of the time to come
        later = await client.refresh_topology(confirmed=True)
        assert now < later.backed_up < now + HOUR
        with pytest.raises(InvalidArgument):
            await say(backup=FORGET)
        await client.forget_backups()
        await client.change_catalog(NoteBackup(now - 27 * HOUR))
        assert await told(client) == {"backup too old"}
        after = await client.refresh_topology(confirmed=True)
        assert (after.backed_up, after.archived) == (now - 27 * HOUR, 0)


async def test_a_backup_is_not_begun_where_no_disk_is_mounted(tmp_path: Path) -> None:
    """It was made below the mount point, and told of: no alert fired, and the disk of the system filled."""
    store, (target, disk) = backups.open_store(str(tmp_path / "target")), (tmp_path / "target", tmp_path / "disk")
    (tmp_path / "node").mkdir()
    async with ProcessCluster(tmp_path / "node", 1, **NODE) as cluster, cluster.connect() as client:
        await client.insert("a", [1.0, *[0.0] * 7])
        await backups.create(client, store)
        before = (await client.refresh_topology(confirmed=True)).backed_up
        target.rename(disk)
        target.mkdir()
        with pytest.raises(StorageError, match="if its disk is not mounted, mount it"):
            await backups.create(client, store)
        assert not any(target.iterdir())
        assert (await client.refresh_topology(confirmed=True)).backed_up == before
        target.rmdir()
        disk.rename(target)
        await backups.create(client, store)
        other = backups.open_store(str(tmp_path / "other"))
        await backups.create(client, other, begin=True)
        await backups.create(client, other)
        await client.forget_backups()
        await backups.create(client, backups.open_store(str(tmp_path / "third")))
    assert [len(backups.list_backups(one)) for one in (store, other)] == [2, 2]


async def test_what_is_noted_is_said_by_who_may_do_it(tmp_path: Path) -> None:
    """A note hides that nothing is backed up, or archived."""
    store, secret = backups.open_store(str(tmp_path / "target")), "0123456789abcdef" * 4
    (tmp_path / "node").mkdir()
    cluster = ProcessCluster(tmp_path / "node", 1, **NODE, require_keys=True, cluster_secret=secret)
    async with cluster:
        own = Credentials(secrets=(secret,))
        async with await connected(list(cluster.addresses.values()), "needle", BATCH_BYTES_MAX, own) as inside:
            keys = {role: (await inside.create_key(role, role)).key for role in ("reader", "admin")}
            keys["some"] = (await inside.create_key("some", "reader", filter={"tenant": "acme"})).key

        async def say(role: str, **said: int) -> None:
            body = calls.encode(BackedUpCall(**said))
            async with cluster.connect(api_key=keys[role]) as client:
                await ask_leader(client, CATALOG, BACKED_UP, lambda _: body, 10.0)

        async with cluster.connect(api_key=keys["reader"]) as reader:
            assert (await backups.create(reader, store)).told
            before = await reader.refresh_topology(confirmed=True)
        for role, said in (
            ("some", {"backup": 7}),
            ("reader", {"archive": 7}),
            ("reader", {"backup": 7, "archive": 7}),
        ):
            with pytest.raises(Forbidden):
                await say(role, **said)
        await say("reader", backup=before.backed_up + 1)
        await say("admin", archive=9)
        async with cluster.connect(api_key=keys["admin"]) as admin:
            now = await admin.refresh_topology(confirmed=True)
        assert (now.backed_up, now.archived) == (before.backed_up + 1, 9)


async def written(client: needle.Client, count: int) -> int:
    """How many entries the leader has in its log after so many writes."""
    for first in range(0, count, 20):
        await asyncio.gather(*(client.insert(f"d{first + n}", [1.0] * 8) for n in range(20)))
    (one,) = await client.cluster_status()
    assert one.status is not None
    return one.status.last_index - one.status.first_index


async def test_the_leader_keeps_its_log_for_the_archive(tmp_path: Path) -> None:
    """Else whoever archives copies the whole state whenever it was away for some entries."""
    store = backups.open_store(str(tmp_path / "target"))
    (tmp_path / "node").mkdir()
    settings = {**NODE, "snapshot_threshold": 50}
    async with ProcessCluster(tmp_path / "node", 1, **settings) as cluster, cluster.connect() as client:
        assert await written(client, 600) < 400  # it is cut for nobody's sake
        for _ in range(2):  # with the second look the leader hears what the first one has kept
            await Archiver(client, store).look(flush=True)
        assert await written(client, 600) > 590
        await Archiver(client, store).look(flush=True)
    (archived,) = backups.list_archives(store)
    assert archived.gaps == [] and len(bases_of(store, int(archived.cluster, 16), 0)) == 1


async def looked(client: needle.Client, store: Store) -> None:
    """By an archiver that ends then."""
    archiver = Archiver(client, store)
    await archiver.look(flush=True)
    await archiver.close()


async def test_a_node_that_was_restarted_keeps_its_log_until_the_archive_has_asked(tmp_path: Path) -> None:
    """It had forgotten for whom it kept it. Where no other replica had what the archive lacked, that was a gap."""
    store = backups.open_store(str(tmp_path / "target"))
    (tmp_path / "node").mkdir()
    settings = {**NODE, "snapshot_threshold": 50}
    async with ProcessCluster(tmp_path / "node", 1, **settings) as cluster:
        async with cluster.connect() as client:
            for _ in range(2):
                await looked(client, store)
            await written(client, 100)
        cluster.kill("node-1")
        cluster.restart("node-1")
        await cluster.ready()
        async with cluster.connect() as client:
            assert await written(client, 600) > 690
            await looked(client, store)
    (archived,) = backups.list_archives(store)
    assert archived.gaps == [] and len(bases_of(store, int(archived.cluster, 16), 0)) == 1
