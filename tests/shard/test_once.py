"""What a shard remembers of requests with idempotency keys: each write once, bounded, the same on every replica."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from needle.base.errors import (
    AlreadyExists,
    CollectionNotFound,
    KeyReused,
    NeedleError,
    OutcomeForgotten,
    VersionMismatch,
)
from needle.base.model import WriteResult
from needle.multiraft.ports import Applied
from needle.protocol.commands import (
    Asked,
    Change,
    ChangeWhere,
    Command,
    CreateCollection,
    Delete,
    Once,
    OpenSession,
    Patch,
    Session,
    encode,
)
from needle.shard.apply import once
from needle.shard.apply.once import SECONDS_MAX, OnceTable
from shard.replica_util import open_replica, put, spec

ASKED = Asked(b"k" * 16, b"r" * 16)
OTHER = Asked(b"k" * 16, b"s" * 16)
SECOND = 1_000_000


def done(index: int = 5, count: int = 1) -> WriteResult:
    return WriteResult(version=index, index=index, existed=False, count=count)


def insert(*ids: str) -> Any:
    return put(list(ids), [[1.0, 2.0, 3.0]] * len(ids))


def executed(table: OnceTable, write: Command, result: Any, index: int = 5, at: int = 0, asked: Asked = ASKED) -> None:
    assert table.find(asked, write) is None
    table.record(Once(asked, at, write), index, result)  # type: ignore[arg-type]


def test_a_write_is_remembered_with_its_answer_or_its_refusal() -> None:
    table = OnceTable()
    executed(table, insert("a"), done())
    executed(table, Delete("c", ["b"]), VersionMismatch("no", actual=3), 6)
    again = OnceTable(table.answers())
    assert again.find(ASKED, insert("a")) == done()
    refused = again.find(ASKED, Delete("c", ["b"]))
    assert isinstance(refused, VersionMismatch) and refused.details == {"actual": 3}
    assert again.answers() == table.answers() and again.kept_bytes == table.kept_bytes


def test_what_could_not_be_done_for_now_is_not_remembered() -> None:
    table = OnceTable()
    executed(table, insert("a"), CollectionNotFound("not yet"))
    assert len(table) == 0 and table.dirty() == {}


def test_another_request_with_the_same_key_is_refused() -> None:
    table = OnceTable()
    executed(table, insert("a"), done())
    for write in (insert("a"), insert("z")):
        assert isinstance(table.find(OTHER, write), KeyReused)
    assert table.find(Asked(b"x" * 16, b"r" * 16), insert("a")) is None


def test_parts_of_a_batch_that_is_cut_in_another_way() -> None:
    table = OnceTable()
    executed(table, insert("a", "b"), done(5, 2))
    executed(table, insert("c", "d"), done(6, 2), 6)
    assert table.find(ASKED, insert("e")) is None  # a part that was not reached
    assert table.find(ASKED, insert("a")) == done(5, 2)
    assert table.find(ASKED, insert("b", "c")) == done(6, 2)  # each of them is written
    assert isinstance(table.find(ASKED, insert("a", "e")), OutcomeForgotten)
    # How many of some documents were deleted cannot be told of more of them.
    table = OnceTable()
    executed(table, Delete("c", ["a", "b"]), done(5, 2))
    assert table.find(ASKED, Delete("c", ["a", "b"])) == done(5, 2)
    assert isinstance(table.find(ASKED, Delete("c", ["a"])), OutcomeForgotten)


def test_writes_about_ranges_are_the_same_only_with_the_same_ranges() -> None:
    table = OnceTable()
    first = ChangeWhere("c", b"{}", None, owned=7)
    executed(table, first, WriteResult(version=5, index=5, count=9, reached=40, upto=90))
    following = ChangeWhere("c", b"{}", None, after=40, upto=90, owned=7)
    assert table.find(ASKED, following) is None
    assert isinstance(table.find(ASKED, ChangeWhere("c", b"{}", None, owned=8)), OutcomeForgotten)
    assert isinstance(table.find(ASKED, ChangeWhere("c", b"{}", None, within=[(b"a", None)])), OutcomeForgotten)


def test_records_are_bounded_in_number_bytes_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    few = OnceTable(records_max=3)
    for n in range(5):
        executed(few, insert("a"), done(n), n, asked=Asked(b"%16d" % n, b"r" * 16))
    assert [number >> once.BROUGHT_BITS for _, number, _ in few.answers()] == [2, 3, 4]
    assert few.dirty().keys() == {(0, n << once.BROUGHT_BITS) for n in range(5)}
    small = OnceTable(bytes_max=3 * once.RECORD_BYTES)
    for n in range(5):
        executed(small, insert("a"), done(n), n, asked=Asked(b"%16d" % n, b"r" * 16))
    assert len(small) == 2 and small.kept_bytes <= 3 * once.RECORD_BYTES
    old = OnceTable()
    for n, at in enumerate((0, SECONDS_MAX * SECOND, SECONDS_MAX * SECOND + 1)):
        executed(old, insert("a"), done(n), n, at, Asked(b"%16d" % n, b"r" * 16))
    assert [number >> once.BROUGHT_BITS for _, number, _ in old.answers()] == [1, 2]


def test_what_is_remembered_is_taken_to_another_shard() -> None:
    source, target = OnceTable(), OnceTable()
    for n in range(10):
        executed(source, insert(f"d{n}"), done(n), n, asked=Asked(b"%16d" % n, b"r" * 16))
    executed(source, Delete("c", ["x"]), AlreadyExists("no"), 10)
    reached, step = -1, 100
    while True:
        rows, reached = source.rows_after(reached, 300)
        if not rows:
            break
        assert len(rows) < 11
        assert target.bring(rows, step) == len(rows)
        assert target.bring(rows, step + 1) == 0  # by another driver, once more
        step += 2
    assert len(target) == 11
    brought = target.find(Asked(b"%16d" % 3, b"r" * 16), insert("d3"))
    assert isinstance(brought, WriteResult) and brought.version == 3 and brought.index >= 100
    assert isinstance(target.find(ASKED, Delete("c", ["x"])), AlreadyExists)
    executed(source, insert("late"), done(11), 11, asked=Asked(b"late" * 4, b"r" * 16))
    rows, _ = source.rows_after(reached, 300)
    assert len(rows) == 1 and target.bring(rows, step) == 1
    again = OnceTable(target.answers())
    assert again.answers() == target.answers()


def apply(replica: Any, index: int, *commands: Command) -> list[Any]:
    return list(replica.apply([Applied(index + n, 1, encode(one), None) for n, one in enumerate(commands)]))


def test_a_request_that_comes_again_under_another_session_is_not_executed_again(tmp_path: Path) -> None:
    replica = open_replica(tmp_path)
    apply(replica, 1, CreateCollection(spec()), OpenSession(7), OpenSession(8))
    write = insert("a")
    asked = [put(["a"], [[1.0, 2.0, 3.0]], session=Session(session, 1, 1)) for session in (2, 3)]
    (first,) = apply(replica, 4, Once(ASKED, 0, asked[0]))
    apply(replica, 5, put(["a"], [[9.0, 9.0, 9.0]]))  # somebody else's, in between
    (second,) = apply(replica, 6, Once(ASKED, 0, asked[1]))
    assert first == second and isinstance(first, WriteResult) and first.index == 4
    (late,) = apply(replica, 7, Once(ASKED, 0, asked[0]))
    assert late == first
    (reused,) = apply(replica, 8, Once(OTHER, 0, write))
    assert isinstance(reused, KeyReused)
    replica.save()
    assert replica.view.collections["c"].visible == 1
    replica.close()
    again = open_replica(tmp_path)
    assert apply(again, 9, Once(ASKED, 0, write)) == [first]
    again.verify()
    again.close()


def test_a_patch_that_appends_is_executed_once_in_one_batch_too(tmp_path: Path) -> None:
    replica = open_replica(tmp_path)
    apply(replica, 1, CreateCollection(spec()), put(["a"], [[1.0, 2.0, 3.0]], [{"tags": []}]))
    patch = Patch("c", ["a"], Change(append=[("tags", b'["x"]')]))
    where = ChangeWhere("c", b"{}", Change(append=[("tags", b'["y"]')]))
    by_filter = Asked(b"f" * 16, b"r" * 16)
    results = apply(
        replica, 3, Once(ASKED, 0, patch), Once(ASKED, 0, patch), Once(by_filter, 0, where), Once(by_filter, 0, where)
    )
    assert results[0] == results[1] and results[2] == results[3] and results[2].count == 1
    replica.save()
    (record,) = replica._current.store.load().records
    assert record.next_ordinal == 3  # the insert, and each of both changes once
    replica.close()


def test_any_order_of_requests_leaves_replicas_equal(tmp_path: Path) -> None:
    """One applies entry by entry and is opened again now and then, the other in batches."""
    rng = random.Random(5)
    steady, restarted = open_replica(tmp_path / "a"), open_replica(tmp_path / "b")
    commands: list[Command] = [CreateCollection(spec())]
    for n in range(120):
        asked = Asked(b"%16d" % rng.randrange(30), b"%16d" % rng.randrange(2))
        name = f"d{rng.randrange(9)}"
        write: Any = rng.choice([insert(name), Delete("c", [name]), ChangeWhere("c", b"{}", None)])
        commands.append(Once(asked, n * SECOND * 1800, write))
    told: list[Any] = []
    for at in range(0, len(commands), 11):
        told += apply(steady, at + 1, *commands[at : at + 11])
    for at, command in enumerate(commands):
        (result,) = apply(restarted, at + 1, command)
        assert _shown(result) == _shown(told[at])
        if rng.random() < 0.1:
            restarted.close()
            restarted = open_replica(tmp_path / "b")
    assert restarted.sessions.answers() == steady.sessions.answers() and len(steady.sessions.once) > 10
    assert restarted.digest() == steady.digest()
    steady.close()
    restarted.close()


def _shown(result: Any) -> Any:
    return (result.code, result.message) if isinstance(result, NeedleError) else result
