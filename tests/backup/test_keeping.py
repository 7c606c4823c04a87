"""Pieces, manifests, stores and who is at work in them, without a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from obstore.store import MemoryStore, S3Store

from harness.interrupted import INTERRUPTED
from needle.backup.archive_format import ARCHIVES
from needle.backup.archive_looking import list_archives
from needle.backup.around import Around
from needle.backup.format import (
    MANIFESTS,
    PIECES,
    CollectionBackup,
    Contents,
    Cutter,
    Manifest,
    PieceRef,
    decode_manifest,
    encode_manifest,
    encode_piece,
    manifest_name,
)
from needle.backup.keeping import MAKING, PRUNING, Mark, list_backups, prune, verify
from needle.backup.store import DirectoryStore, ObjectStore, Store, bucket_store, open_store
from needle.base.errors import CorruptBackup, InvalidArgument, StorageError, Unavailable, UnsupportedFormat
from needle.base.model import CollectionSpec
from needle.protocol.calls import DocumentBatch

SPEC = CollectionSpec(name="a", dimensions=384)


@pytest.fixture(params=["directory", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "directory":
        return DirectoryStore(tmp_path / "target")
    return ObjectStore(MemoryStore(), "memory")


def documents(count: int, changed: int = -1) -> DocumentBatch:
    """In the order of their ids; one may have other metadata."""
    vectors = np.random.default_rng(1).random((count, SPEC.dimensions), dtype=np.float32)
    metadata = [b'{"changed":1}' if n == changed else b"" for n in range(count)]
    return DocumentBatch([f"{n:06}" for n in range(count)], [1] * count, metadata, vectors.tobytes(), 1)


def parts(batch: DocumentBatch, page: int) -> list[DocumentBatch]:
    width = 4 * SPEC.dimensions
    return [
        DocumentBatch(batch.ids[at:end], [], batch.metadata[at:end], batch.vectors[at * width : end * width], 1)
        for at, end in ((at, at + page) for at in range(0, len(batch.ids), page))
    ]


def backup(store: Store, name: str, batch: DocumentBatch, page: int = 700) -> Manifest:
    """Made as `creating` makes one."""
    cutter, contents, refs = Cutter(SPEC.dimensions), Contents(), []
    pieces = [piece for part in parts(batch, page) for piece in cutter.cut(part)]
    for piece in [*pieces, *cutter.rest()]:
        ref, data = encode_piece(piece)
        store.put(ref.name, data)
        refs.append(ref)
    contents.add(batch)
    one = CollectionBackup(
        spec=SPEC, fields=(), documents=contents.documents, expiring=0, digest=contents.digest, cuts=[], pieces=refs
    )
    made = Manifest(
        id=name, format=1, began="2026-01-01T00:00:00Z", ended="", release="", cluster="", settings=None,
        collections=[one], aliases={},
    )  # fmt: skip
    store.put(manifest_name(name), encode_manifest(made))
    return made


def test_pieces_do_not_depend_on_pages_and_one_change_changes_one_piece(store: Store) -> None:
    names = [{ref.name for ref in backup(store, f"b{page}", documents(3000), page).pieces()} for page in (1, 700, 5000)]
    assert names[0] == names[1] == names[2] and len(names[0]) > 5
    changed = {ref.name for ref in backup(store, "changed", documents(3000, changed=1500)).pieces()}
    assert len(changed - names[0]) == 1
    fewer = {ref.name for ref in backup(store, "fewer", documents(2999)).pieces()}
    assert len(fewer - names[0]) <= 1


def test_contents_depend_on_everything_of_a_document_but_not_on_order_and_shards() -> None:
    batch, width = documents(3), 4 * SPEC.dimensions
    whole, apart = Contents(), Contents()
    whole.add(batch)
    for part in reversed(parts(batch, 1)):
        apart.add(part)
    assert (whole.digest, whole.documents) == (apart.digest, 3)
    other = [
        DocumentBatch(["000000", "000001", "x"], [1] * 3, batch.metadata, batch.vectors, 1),
        DocumentBatch(batch.ids, [1] * 3, [b"1", b"", b""], batch.vectors, 1),
        DocumentBatch(batch.ids, [1] * 3, batch.metadata, batch.vectors[width:] + batch.vectors[:width], 1),
        DocumentBatch(batch.ids, [1] * 3, batch.metadata, batch.vectors, 1, [0, 5, 0]),
    ]
    for one in other:
        found = Contents()
        found.add(one)
        assert found.digest != whole.digest
    lasting = Contents(lasting=5)
    lasting.add(other[-1])
    assert lasting.documents == 2


def test_every_flipped_bit_and_missing_file_is_found_and_named(tmp_path: Path) -> None:
    root = tmp_path / "target"
    store = open_store(str(root))
    backup(store, "one", documents(700))
    assert verify(store).problems == [] and verify(store).pieces >= 2
    rng = random.Random(1)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for at in [0, 64, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(5))]:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
            (problem,) = verify(store).problems
            assert path.name in problem, (path, at)
        path.write_bytes(whole[:-1])
        assert path.name in verify(store).problems[0]
        if path.suffix != ".manifest":
            path.unlink()
            assert f"{path.name} is missing" in verify(store).problems[0]
        path.write_bytes(whole)
    assert verify(store).problems == []


def test_a_manifest_that_names_too_little_is_noticed(store: Store) -> None:
    """Its checksum is right: it was made so, by a mistake."""
    made = backup(store, "one", documents(700))
    made.collections[0].pieces.pop()
    store.put(manifest_name("one"), encode_manifest(made))
    (problem,) = verify(store).problems
    assert "collection a" in problem and "the manifest says 700" in problem


def test_later_formats_and_renamed_manifests_are_refused(store: Store) -> None:
    made = backup(store, "one", documents(1))
    data = encode_manifest(made).replace(b'"format":1', b'"format":4')
    with pytest.raises(CorruptBackup, match="checksum"):
        decode_manifest("m", data)
    body = data.partition(b"\n")[2]
    with pytest.raises(UnsupportedFormat, match="format 4, and this release reads"):
        decode_manifest("m", hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    store.put(manifest_name("two"), encode_manifest(made))
    damage = [one.damage for one in list_backups(store)]
    assert damage == ["", "backups/two.manifest is the manifest of backup one: it was renamed"]


async def test_prune_deletes_what_nothing_names(store: Store) -> None:
    first, second = backup(store, "1", documents(3000)), backup(store, "2", documents(3000, changed=5))
    store.put(f"{PIECES}ab/{'ab' * 32}", b"of a backup that was killed")
    store.put(f"{MANIFESTS}3.manifest.partial-77777777", b"cut off")
    mine = {ref.name for ref in first.pieces()} - {ref.name for ref in second.pieces()}
    assert await prune(store, 1) == (["1"], len(mine) + 2)
    assert [one.id for one in list_backups(store)] == ["2"] and verify(store).problems == []
    assert set(store.names(PIECES)) == {ref.name for ref in second.pieces()}
    assert not store.names(PRUNING) and await prune(store, 1) == ([], 0)
    with pytest.raises(InvalidArgument, match="keep = 0"):
        await prune(store, 0)


NOBODY = 65534


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """As a user for whom permissions count, as they do not for root."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


class Full(DirectoryStore):
    """A disk without a free block: a file without contents needs none."""

    def put(self, name: str, data: bytes) -> None:
        if data:
            raise StorageError(f"{name}: No space left on device") from OSError(errno.ENOSPC, "No space left on device")
        super().put(name, data)


async def test_old_backups_can_be_deleted_where_there_is_no_room_left(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    first, second = backup(store, "1", documents(3000)), backup(store, "2", documents(3000, changed=5))
    mine = {ref.name for ref in first.pieces()} - {ref.name for ref in second.pieces()}
    assert await prune(Full(tmp_path), 1) == (["1"], len(mine))
    assert not store.names(PRUNING) and verify(store).problems == []


async def test_a_directory_that_may_not_be_read_does_not_look_empty() -> None:
    """Of an archive that another user's archiver wrote nothing was seen, so prune deleted the pieces that it names."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o777)
        with as_nobody():
            store = open_store(f"{root}/target")
            kept = backup(store, "1", documents(10))
            store.put("archive/7/0/0000000000000001.base", b"of another user")
            os.chmod(f"{root}/target/archive", 0)
            for look in (lambda: store.names(ARCHIVES), lambda: list_archives(store), lambda: verify(store)):
                with pytest.raises(StorageError, match="Permission denied"):
                    look()
            with pytest.raises(StorageError, match="Permission denied"):
                await prune(store, 1)
            assert set(store.names(PIECES)) == {ref.name for ref in kept.pieces()}
            os.chmod(f"{root}/target/archive", 0o700)


class PrunedMeanwhile:
    """A store of which somebody prunes all but the newest backup when a file is read."""

    def __init__(self, store: Store, when: str) -> None:
        self._store, self._when = store, when
        self.put, self.names, self.delete = store.put, store.names, store.delete

    def get(self, name: str) -> bytes | None:
        if name == self._when:
            self._when = ""
            asyncio.run(prune(self._store, 1))
        return self._store.get(name)


def test_what_is_pruned_meanwhile_is_no_damage(store: Store) -> None:
    first = backup(store, "20260101T000000Z-1", documents(3000))
    backup(store, "20260102T000000Z-1", documents(3000, changed=2999))
    files = {name: store.get(name) for name in [*store.names(MANIFESTS), *store.names(PIECES)]}
    last = next(ref.name for ref in reversed(list(first.refs())))
    for when in (manifest_name(first.id), last):
        for name, data in files.items():
            store.put(name, data or b"")
        found = verify(PrunedMeanwhile(store, when))
        assert (found.backups, found.problems) == (1, [])
        for name, data in files.items():
            store.put(name, data or b"")
        with pytest.raises(InvalidArgument, match="needle backup list"):
            verify(PrunedMeanwhile(store, when), first.id)
    for name, data in files.items():
        store.put(name, data or b"")
    [left] = list_backups(PrunedMeanwhile(store, manifest_name(first.id)))
    assert left.id == "20260102T000000Z-1" and not left.damage


async def test_prune_deletes_nothing_that_is_no_file_of_a_backup(store: Store) -> None:
    """The directory above the target was named, which has a folder of the same name, with other backups."""
    others = [
        "backups/monday.sql",
        "backups/old/1.manifest",
        "pieces/chess.png",
        "pieces/ab/cd",
        "making/movie",
        "pruning/a",
    ]
    for name in others:
        store.put(name, b"of somebody else")
    if isinstance(store, DirectoryStore):
        for name in others[4:]:
            os.utime(store._root / name, (1, 1))
    else:
        others = others[:4]
        store.delete("making/movie")
    with pytest.raises(InvalidArgument, match="there is no backup at this target"):
        await prune(store, 1)
    assert len(store.names("pruning/")) == 1
    backup(store, "1", documents(10))
    backup(store, "2", documents(20))
    assert (await prune(store, 1))[0] == ["1"] and verify(store).problems == []
    assert all(store.get(name) == b"of somebody else" for name in others)


async def test_prune_deletes_nothing_if_it_cannot_know_what_is_needed(store: Store) -> None:
    backup(store, "1", documents(10))
    backup(store, "2", documents(20))
    store.put(manifest_name("2"), b"damaged")
    there = store.names(PIECES)
    with pytest.raises(CorruptBackup, match=r"backups/2\.manifest"):
        await prune(store, 1)
    assert set(store.names(PIECES)) == set(there) and len(list_backups(store)) == 2


async def test_of_a_backup_and_a_prune_one_gives_way(store: Store) -> None:
    backup(store, "1", documents(10))
    async with Mark(store, f"{MAKING}x", PRUNING, "somebody prunes"):
        with pytest.raises(Unavailable, match="a backup is being made"):
            await prune(store, 1)
        async with Mark(store, f"{MAKING}y", PRUNING, "somebody prunes"):
            pass  # two backups do not hinder each other
    async with Mark(store, f"{PRUNING}x", MAKING, "a backup is being made"):
        with pytest.raises(Unavailable, match="somebody prunes"):
            async with Mark(store, f"{MAKING}x", PRUNING, "somebody prunes"):
                pass
    assert not store.names(MAKING) and not store.names(PRUNING)


async def test_the_mark_of_a_dead_one_counts_for_an_hour(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    backup(store, "1", documents(10))
    dead = f"{MAKING}20260101T000000Z-000000-abcd"
    store.put(dead, b"")
    stat = os.stat(tmp_path / dead)
    os.utime(tmp_path / dead, (stat.st_atime, stat.st_mtime - 3500))
    with pytest.raises(Unavailable, match="killed within the last hour"):
        await prune(store, 1)
    os.utime(tmp_path / dead, (stat.st_atime, stat.st_mtime - 3700))
    assert await prune(store, 1) == ([], 0)
    assert not store.names(MAKING)


async def test_a_mark_is_renewed_and_who_was_taken_for_dead_hears_of_it(tmp_path: Path) -> None:
    store, slept, go_on = open_store(str(tmp_path)), asyncio.Queue[None](), asyncio.Queue[None]()

    async def rest(_: float) -> None:
        slept.put_nowait(None)
        await go_on.get()

    async with Mark(store, f"{MAKING}x", PRUNING, "somebody prunes", Around(rest=rest)) as mark:
        await slept.get()
        os.utime(tmp_path / MAKING / "x", (1, 1))
        go_on.put_nowait(None)
        await slept.get()  # it rests again: it was renewed
        assert store.names(MAKING)[f"{MAKING}x"].modified > 1
        await mark.check()
        store.delete(f"{MAKING}x")
        with pytest.raises(StorageError, match="took this one for dead"):
            await mark.check()
        go_on.put_nowait(None)
        await slept.get()
        assert not store.names(MAKING)  # it does not come back by itself


async def test_a_mark_that_is_left_while_it_is_renewed_is_gone(tmp_path: Path) -> None:
    """Its thread goes on when the renewal is cancelled."""
    store = DirectoryStore(tmp_path)
    mark = Mark(store, f"{MAKING}one", PRUNING, "somebody prunes")
    leaving, own_time = threading.Thread(target=mark._leave), mark.own_time

    def looked() -> float:
        found = own_time()
        leaving.start()
        leaving.join(0.2)  # it is over before the mark is written, unless it has to wait for that
        return found

    async with mark:
        mark.own_time = looked  # type: ignore[method-assign]
        await asyncio.to_thread(mark._again)
        leaving.join()
        assert store.names(MAKING) == {}


def test_stores(store: Store) -> None:
    store.put("x/a", b"1")
    store.put("x/a", b"22")
    store.put("y/b", b"")
    assert store.get("x/a") == b"22" and store.get("x/none") is None
    assert {name: stat.size for name, stat in store.names("x/").items()} == {"x/a": 2}
    store.delete("x/a")
    store.delete("x/a")
    assert store.names("x/") == {} and store.names("none/") == {}


def test_what_a_bucket_refuses_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT": "http://127.0.0.1:1", "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "c",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    store = ObjectStore(S3Store("bucket", retry_config={"max_retries": 0}), "s3://bucket")
    with pytest.raises(StorageError, match=r"s3://bucket: pieces/a: .*127\.0\.0\.1:1/") as refused:
        store.get("pieces/a")
    assert "\n" not in refused.value.message


@contextlib.contextmanager
def silent_bucket() -> Iterator[tuple[dict[str, str], threading.Event]]:
    """One that takes connections and never answers: the variables by which it is found, and whether it was asked."""
    asked, held, listener = threading.Event(), list[socket.socket](), socket.create_server(("127.0.0.1", 0))

    def take() -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                held.append(listener.accept()[0])
                if held[-1].recv(1):
                    asked.set()

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
    names = {"AWS_ENDPOINT": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "c"}
    try:
        yield {**names, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for one in held:
            one.close()


def test_a_bucket_that_says_nothing_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was asked for three minutes."""
    with silent_bucket() as (names, asked):
        for name, value in {**names, "AWS_TIMEOUT": "1s"}.items():
            monkeypatch.setenv(name, value)
        began = time.monotonic()
        with pytest.raises(StorageError, match="s3://bucket/a: backups/"):
            bucket_store("s3://bucket/a", again=0.8).names(MANIFESTS)
        assert asked.is_set() and time.monotonic() - began < 15


@pytest.mark.parametrize("words", [("list",), ("prune", "--keep", "1")])
def test_ctrl_c_is_heard_while_a_bucket_says_nothing(words: tuple[str, ...]) -> None:
    with silent_bucket() as (names, asked):
        command = [sys.executable, "-c", INTERRUPTED, "backup", words[0], "s3://bucket/a", *words[1:]]
        with subprocess.Popen(command, env={**os.environ, **names}, stderr=subprocess.PIPE) as process:
            try:
                assert asked.wait(60)
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=25)  # without it the request ends after 30
                assert process.returncode in (1, 130)
            finally:
                process.kill()


def test_targets(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="ftp://x is not allowed: a directory, or s3://bucket/prefix"):
        open_store("ftp://x")
    assert isinstance(open_store("s3://bucket/a"), ObjectStore)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        open_store(str(tmp_path / "file")).put("a/b", b"")


def test_a_ref_names_its_file() -> None:
    assert PieceRef("abcd", 1, 1).name == "pieces/ab/abcd"


def test_a_target_where_nothing_is_is_not_whole(tmp_path: Path) -> None:
    """A disk that is not mounted passed every timer."""
    with pytest.raises(InvalidArgument, match="no backup and no archive"):
        verify(DirectoryStore(tmp_path / "nothing"))


async def test_a_prune_where_no_archive_is_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no logs are archived at this target"):
        await prune(DirectoryStore(tmp_path / "nothing"), archive_hours=1.0)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("hours", [float("inf"), float("nan"), 0.0, -1.0, 1e12])
async def test_hours_of_an_archive_are_a_number_of_them(tmp_path: Path, hours: float) -> None:
    """Infinity ended the command with a traceback."""
    with pytest.raises(InvalidArgument, match="archive_hours"):
        await prune(DirectoryStore(tmp_path / "t"), archive_hours=hours)
