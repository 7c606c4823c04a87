"""Space of what is gone is given back, and what was deleted cannot be read from the file any more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from client.fake_shards import virtually
from needle.base.errors import DiskFull
from needle.protocol.commands import CreateCollection, Delete, DropCollection
from needle.shard import upkeep
from needle.shard.caretaker import AGE_SECONDS, IDLE_SECONDS, LOOK_SECONDS
from needle.shard.documents.writer import DocumentWriter, Doomed
from shard.replica_util import Log, caretaker, open_replica, put, spec

PAD = "secret" * 100


def database(directory: Path) -> Path:
    (path,) = directory.glob("state-*/documents.db")
    return path


@pytest.mark.parametrize("how", ["delete", "drop", "replace"])
def test_what_is_gone_leaves_the_disk(tmp_path: Path, how: str) -> None:
    replica, log = open_replica(tmp_path, purge=1000), Log()
    replica.apply(log.add(CreateCollection(spec()), CreateCollection(spec("kept"))))
    replica.apply(log.add(put(["k"], [[1, 2, 3]], collection="kept")))
    ids = [f"d{n}" for n in range(500)]
    for _ in range(8):
        replica.apply(log.add(put(ids, [[7, 7, 7]] * 500, [{"pad": PAD}] * 500)))
    replica.checkpoint()
    large = database(tmp_path).stat().st_size
    if how == "delete":
        replica.apply(log.add(Delete("c", ids)))
    elif how == "drop":
        replica.apply(log.add(DropCollection("c")))
    else:
        replica.apply(log.add(put(ids, [[1, 2, 3]] * 500)))
    while replica.tidy(all_of_it=True):
        pass
    assert database(tmp_path).stat().st_size < large / 7
    wal = database(tmp_path).with_name("documents.db-wal")
    assert not wal.exists() or wal.stat().st_size == 0
    assert PAD.encode() not in database(tmp_path).read_bytes()
    replica.verify()
    assert not replica.tidy(all_of_it=True)
    replica.close()
    again = open_replica(tmp_path)
    again.verify()
    assert [one.id for one in again.get("kept", ["k"], True)] == ["k"]


@pytest.mark.parametrize("full", [False, True], ids=["a long log is emptied", "a full disk has the log's room"])
def test_deleting_does_not_need_the_room_again_that_it_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """On a full disk it would never end: what is deleted goes through the write-ahead log, page by page."""
    replica, log = open_replica(tmp_path, purge=1000), Log()
    replica.apply(log.add(CreateCollection(spec())))
    for batch in range(20):
        ids = [f"d{batch}-{n}" for n in range(500)]
        replica.apply(log.add(put(ids, [[7, 7, 7]] * 500, [{"pad": PAD}] * 500)))
    replica.checkpoint()
    wal = database(tmp_path).with_name("documents.db-wal")
    for batch in range(20):
        replica.apply(log.add(Delete("c", [f"d{batch}-{n}" for n in range(500)])))
    delete, longest = DocumentWriter.purge, [0]

    def purge(writer: DocumentWriter, doomed: Doomed, rows_max: int) -> bool:
        if full and wal.stat().st_size > 2 << 20:
            raise DiskFull("no space left")
        more = delete(writer, doomed, rows_max)
        longest[0] = max(longest[0], wal.stat().st_size)
        return more

    monkeypatch.setattr(DocumentWriter, "purge", purge)
    if not full:
        monkeypatch.setattr(upkeep, "WAL_BYTES", 1 << 20)
    while replica.tidy(all_of_it=True):
        pass
    assert longest[0] < 5 << 20 and wal.stat().st_size == 0
    assert database(tmp_path).stat().st_size < 1 << 20
    replica.verify()
    replica.close()


@pytest.mark.parametrize("how", ["delete", "drop"])
def test_however_much_is_dead_a_bounded_part_of_it_is_named_and_deleted_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Nothing is applied while it is named, nor while a transaction deletes."""
    monkeypatch.setattr(upkeep, "DOOMED_ROWS", 100)
    monkeypatch.setattr(upkeep, "PURGE_ROWS", 30)
    replica, log = open_replica(tmp_path, purge=1000), Log()
    replica.apply(log.add(CreateCollection(spec())))
    ids = [f"d{n}" for n in range(500)]
    replica.apply(log.add(put(ids, [[7, 7, 7]] * 500), Delete("c", ids)))
    if how == "drop":
        replica.apply(log.add(DropCollection("c")))
    named, deleted = [0], [0]
    name, delete = DocumentWriter.doomed, DocumentWriter.purge

    def doomed(writer: DocumentWriter, *arguments: int) -> Doomed:
        found = name(writer, *arguments)
        named.append(len(found.rows))
        return found

    def purge(writer: DocumentWriter, doomed: Doomed, rows_max: int) -> bool:
        before = graves(writer)
        more = delete(writer, doomed, rows_max)
        deleted.append(before - graves(writer))
        return more

    monkeypatch.setattr(DocumentWriter, "doomed", doomed)
    monkeypatch.setattr(DocumentWriter, "purge", purge)
    while replica.tidy(all_of_it=True):
        pass
    assert max(named) == 100 and max(deleted) == 30
    assert not graves(replica._store.writer)
    replica.verify()
    replica.close()


def graves(writer: DocumentWriter) -> int:
    (count,) = writer._connection.execute("SELECT count(*) FROM graves").fetchone()
    return int(count)


def test_what_was_deleted_before_a_stop_leaves_the_disk_after_it(tmp_path: Path) -> None:
    """The rows were deleted, the pages that held them were not written over yet: nothing is dead any more."""
    replica, log = open_replica(tmp_path, purge=1000), Log()
    replica.apply(log.add(CreateCollection(spec()), put(["a"], [[1, 2, 3]], [{"pad": PAD}])))
    replica.checkpoint()
    replica.apply(log.add(Delete("c", ["a"])))
    assert replica.tidy(all_of_it=True)
    replica.close()
    again = open_replica(tmp_path)
    while again.tidy(all_of_it=True):
        pass
    assert not [path for path in tmp_path.rglob("documents.db*") if PAD.encode() in path.read_bytes()]
    again.close()


def test_while_writes_go_on_little_stays(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path, purge=1000), Log()
    replica.apply(log.add(CreateCollection(spec())))
    ids = [f"d{n}" for n in range(500)]
    for _ in range(30):
        replica.apply(log.add(put(ids, [[7, 7, 7]] * 500, [{"pad": PAD}] * 500)))
        while replica.tidy(all_of_it=False):
            pass
    assert database(tmp_path).stat().st_size < 12 * 500 * len(PAD)


@pytest.mark.parametrize("writes", [False, True], ids=["at rest", "while writes go on"])
def test_a_caretaker_gives_space_back_by_itself(tmp_path: Path, writes: bool) -> None:
    async def work() -> None:
        replica, log = open_replica(tmp_path, purge=100_000), Log()
        replica.apply(log.add(CreateCollection(spec())))
        replica.checkpoint()
        empty = database(tmp_path).stat().st_size
        ids = [f"d{n}" for n in range(500)]
        replica.apply(log.add(put(ids, [[7, 7, 7]] * 500, [{"pad": PAD}] * 500), Delete("c", ids)))
        replica.checkpoint()
        large = database(tmp_path).stat().st_size

        loop = asyncio.get_running_loop()
        caring = asyncio.create_task(caretaker(replica).run())
        await asyncio.sleep(IDLE_SECONDS - 1)
        assert database(tmp_path).stat().st_size == large
        end = loop.time() + (AGE_SECONDS if writes else IDLE_SECONDS) + 3 * LOOK_SECONDS
        while loop.time() < end:
            if writes:
                replica.apply(log.add(put(["a"], [[1, 2, 3]])))
            await asyncio.sleep(LOOK_SECONDS / 2)
        assert database(tmp_path).stat().st_size - empty < (large - empty) / 20
        assert PAD.encode() not in database(tmp_path).read_bytes()
        caring.cancel()
        await asyncio.gather(caring, return_exceptions=True)
        replica.close()

    virtually(work())


def test_what_stays_for_change_feeds_is_given_back_when_the_disk_gets_short(tmp_path: Path) -> None:
    async def work() -> None:
        replica, log = open_replica(tmp_path, purge=100_000, feed_rows_bytes=32 << 20), Log()
        replica.apply(log.add(CreateCollection(spec())))
        ids = [f"d{n}" for n in range(500)]
        replica.apply(log.add(put(ids, [[7, 7, 7]] * 500, [{"pad": PAD}] * 500), put(ids, [[1, 2, 3]] * 500)))
        replica.checkpoint()
        begins, short = replica.effects.start, [False]
        caring = asyncio.create_task(caretaker(replica, short=lambda: short[0]).run())
        await asyncio.sleep(IDLE_SECONDS + 3 * LOOK_SECONDS)
        assert (graves(replica._store.writer), replica.effects.start) == (500, begins)
        short[0] = True
        await asyncio.sleep(2 * LOOK_SECONDS)
        assert graves(replica._store.writer) == 0
        assert replica.effects.start > begins, "readers who are behind begin again"
        assert PAD.encode() not in database(tmp_path).read_bytes()
        caring.cancel()
        await asyncio.gather(caring, return_exceptions=True)
        replica.close()

    virtually(work())


def test_looking_whether_there_is_enough_to_purge_reads_no_dead_rows(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path, purge=10_000), Log()
    replica.apply(log.add(CreateCollection(spec())))
    ids = [f"d{n}" for n in range(500)]
    for _ in range(3):
        replica.apply(log.add(put(ids, [[7, 7, 7]] * 500)))
    replica.save()
    statements: list[str] = []
    writer = replica._store.writer._connection
    writer.set_exec_trace(lambda _, statement, __: statements.append(statement) or True)
    assert not replica.tidy(all_of_it=False)
    assert statements and not any("row FROM graves" in statement for statement in statements)
    writer.set_exec_trace(None)
    assert replica.tidy(all_of_it=True)
