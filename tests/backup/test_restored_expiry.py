"""Documents of a backup whose instant has passed since."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import needle
from harness.calm import CALM
from needle import backup as backups
from needle.backup.around import Around
from needle.backup.format import Contents, Piece, encode_manifest, encode_piece, manifest_name
from needle.backup.keeping import read_manifest, read_piece
from needle.backup.restore_expiry import LateInstants, not_passed, with_instants
from needle.backup.store import Store
from needle.base.errors import InvalidArgument, NeedleError, Overloaded, invalid
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.protocol.commands import NEVER
from needle.system import SystemClock

NODE = {"sharding": {"shards": 1, "replicas": 1}, **CALM}
LATER = "2090-01-01T00:00:00Z"
LONG_AGO = 1_500_000_000_000_000
NOW = 1_700_000_000_000_000


def piece(*expires: int) -> Piece:
    return Piece(ids=[f"{n}" for n in range(3)], metadata=[b""] * 3, expires=list(expires), vectors=bytes(24))


def test_none_expires_sooner_than_in_a_moment() -> None:
    given = with_instants(piece(0, NOW - 1, NOW + 99_000_000), lives=False)
    assert given.expires == [NEVER, NOW - 1, NOW + 99_000_000]
    assert not_passed(given, NOW, 10.0).expires == [NEVER, NOW + 10_000_000, NOW + 99_000_000]
    assert not_passed(given, NOW, 100.0).expires == [NEVER, NOW + 100_000_000, NOW + 100_000_000]
    assert with_instants(piece(), lives=False).expires == [] == not_passed(piece(), NOW, 10.0).expires
    assert with_instants(piece(), lives=True).expires == [NEVER] * 3


def late(now: int | None) -> NeedleError:
    error = invalid("expires_at", 1, "later")
    return error if now is None else InvalidArgument(error.message, **error.details, now=now)


def test_the_clock_of_the_leader_that_refuses_counts() -> None:
    here, old = NOW + 7_200_000_000, with_instants(piece(0, LONG_AGO, NOW + 99_000_000), lives=False)
    instants = LateInstants()
    assert instants.given(old, here, 10.0) == old
    assert not any(instants.heard(one, here) for one in (invalid("id", 1, "other"), Overloaded("busy"), None))
    assert instants.given(old, here, 10.0) == old
    assert instants.heard(late(NOW), here)
    assert instants.given(old, here, 10.0).expires == [NEVER, NOW + 10_000_000, NOW + 99_000_000]
    assert instants.heard(late(NOW + 5_000_000), here + 1_000_000)  # of another shard
    assert instants.given(old, here, 10.0).expires[1] == NOW + 14_000_000
    silent, far = LateInstants(), LateInstants()
    assert silent.heard(late(None), NOW) and far.heard(late(NOW + 7_200_000_000), NOW)
    assert silent.given(old, NOW, 10.0).expires[1] == NOW + 10_000_000
    assert far.given(old, NOW, 10.0).expires[1] == NOW + 2_010_000_000


def aged(store: Store, backup: str) -> None:
    """Have all that expires in a backup have expired long ago."""
    manifest = read_manifest(store, backup)
    (collection,) = manifest.collections
    contents, refs = Contents(), []
    for ref in collection.pieces:
        old = read_piece(store, ref)
        made, data = encode_piece(msgspec.structs.replace(old, expires=[one and LONG_AGO for one in old.expires]))
        store.put(made.name, data)
        refs.append(made)
        contents.add(read_piece(store, made))
    collection = msgspec.structs.replace(collection, pieces=refs, digest=contents.digest)
    store.put(manifest_name(backup), encode_manifest(msgspec.structs.replace(manifest, collections=[collection])))


async def ids(client: needle.Client) -> list[str]:
    return [one.id async for one in client.scan()]


class Ahead(SystemClock):
    """Two hours, as by a wrong time zone."""

    def wall(self) -> float:
        return super().wall() + 7200


@pytest.mark.parametrize("clock", [SystemClock(), Ahead()])
async def test_a_backup_with_documents_that_have_expired_comes_back(tmp_path: Path, clock: SystemClock) -> None:
    """Nodes refused them, so that nothing of such a backup could ever be restored. And by a clock of the machine that
    restores that was ahead they came back for as long as that."""
    store = backups.open_store(str(tmp_path / "target"))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    async with ProcessCluster(tmp_path / "first", 1, **NODE) as cluster, cluster.connect() as client:
        for n in range(9):
            await client.insert(f"d{n}", [float(n + 1)] * 8, expires_at=None if n % 3 else LATER)
        made = await backups.create(client, store)
    aged(store, made.manifest.id)
    assert backups.verify(store).problems == []
    async with ProcessCluster(tmp_path / "second", 1, **NODE) as cluster, cluster.connect() as client:
        assert (await backups.restore(client, store, around=Around(clock=clock))).documents == 9

        async def gone() -> bool:
            return await ids(client) == [f"d{n}" for n in range(9) if n % 3]

        await wait_for(gone, 60, "what has expired being gone")
