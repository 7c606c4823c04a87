"""The dedupe table: at most once, bounded, and the same on every replica."""

from __future__ import annotations

import random

import msgspec
import pytest

from needle.base.errors import SessionExpired, VersionMismatch
from needle.base.model import WriteResult
from needle.protocol.commands import Session
from needle.shard.apply import sessions
from needle.shard.apply.sessions import Changed, SessionTable
from needle.shard.apply.stored_answers import ANSWER_BYTES
from needle.shard.documents.old_formats import rows_of_old_state
from needle.shard.documents.records import AppliedAt, WriteSet

DONE = WriteResult(version=5, index=5, existed=True, count=3)


def test_answers_are_kept_until_acknowledged() -> None:
    table = SessionTable()
    session = table.open(99, 1)
    for seq in (2, 1, 3):
        assert table.find(Session(session, seq, 0), 2) is None
        table.record(Session(session, seq, 0), DONE)
    assert table.find(Session(session, 1, 0), 3) == DONE
    assert table.find(Session(session, 3, 3), 4) == DONE
    forgotten = table.find(Session(session, 2, 3), 5)
    assert isinstance(forgotten, SessionExpired) and "not executed again" in forgotten.message
    # An older acknowledgement that comes late brings nothing back.
    assert isinstance(table.find(Session(session, 1, 0), 6), SessionExpired)


def test_refusals_are_remembered_too() -> None:
    table = SessionTable()
    session = table.open(99, 1)
    table.find(Session(session, 1, 0), 2)
    table.record(Session(session, 1, 0), VersionMismatch("no", actual=3))
    again = SessionTable(table.rows(), table.answers()).find(Session(session, 1, 0), 3)
    assert isinstance(again, VersionMismatch) and again.details == {"actual": 3}


def test_repeated_open_returns_the_same_session() -> None:
    table = SessionTable()
    assert table.open(99, 1) == 1
    assert table.open(98, 2) == 2
    assert table.open(99, 3) == 1
    assert len(table) == 2


def test_least_recently_used_session_is_evicted() -> None:
    table = SessionTable(sessions_max=2)
    table.open(1, 10)
    table.open(2, 11)
    table.find(Session(10, 1, 0), 12)
    assert table.open(3, 13) == 13
    assert isinstance(table.find(Session(11, 1, 0), 14), SessionExpired)
    assert table.find(Session(10, 1, 0), 15) is None
    assert table.open(2, 16) == 16
    assert table.dirty().evicted == [11, 13]


def test_eviction_does_not_depend_on_a_restart() -> None:
    steady, restarted = SessionTable(sessions_max=3), SessionTable(sessions_max=3)
    for index in range(1, 40):
        for table in (steady, restarted):
            if index % 3:
                table.open(index, index)
            else:
                table.find(Session(index - 2, 1, 0), index)
        restarted = SessionTable(reversed(restarted.rows()), restarted.answers(), sessions_max=3)
        assert restarted.rows() == steady.rows()


def test_unacknowledged_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "ANSWERS_MAX", 3)
    table = SessionTable()
    session = table.open(1, 1)
    for seq in range(1, 6):
        assert table.find(Session(session, seq, 0), seq) is None
        table.record(Session(session, seq, 0), DONE)
    assert isinstance(table.find(Session(session, 2, 0), 9), SessionExpired)
    assert table.find(Session(session, 3, 0), 10) == DONE


def test_only_what_changed_is_stored_again() -> None:
    table = SessionTable()
    table.open(1, 1)
    table.open(2, 2)
    assert {at: row[0] for at, row in table.dirty().sessions.items()} == {1: 1, 2: 2}
    assert table.dirty() == Changed({}, [], {})
    for seq in range(1, 2000):
        table.find(Session(2, seq, 0), 2 + seq)
        table.record(Session(2, seq, 0), DONE)
    table.dirty()
    table.find(Session(2, 2000, 3), 3000)
    table.record(Session(2, 2000, 3), DONE)
    changed = table.dirty()
    assert list(changed.sessions) == [2] and not changed.evicted
    # However many answers are kept: the new one, and those that the client has acknowledged.
    assert [(key, answer is None) for key, answer in changed.answers.items()] == [
        ((2, 1), True), ((2, 2), True), ((2, 2000), False),
    ]  # fmt: skip


def test_an_answer_that_was_never_stored_need_not_be_deleted() -> None:
    """Each such row cost every replica a look into its file."""
    table = SessionTable()
    table.open(1, 1)
    for seq in range(1, 9):
        table.find(Session(1, seq, seq), 1 + seq)
        table.record(Session(1, seq, seq), DONE)
    assert list(table.dirty().answers) == [(1, 8)]
    table.find(Session(1, 9, 9), 20)
    table.record(Session(1, 9, 9), DONE)
    assert [(key, answer is None) for key, answer in table.dirty().answers.items()] == [((1, 8), True), ((1, 9), False)]


def waits(answers: dict[tuple[int, int], bytes | None]) -> WriteSet:
    return WriteSet(
        at=AppliedAt(), collections={}, removed=[], documents=[], vectors=[], ids={}, graves=[], manifests={},
        sessions={}, sessions_removed=[], answers=answers, first_rows={},
    )  # fmt: skip


def test_what_came_and_went_while_batches_waited_is_in_no_commit() -> None:
    waiting = waits({(5, 1): None, (5, 2): b"kept", (0, 7): None})
    waiting.merge(waits({(5, 2): None, (5, 3): b"new", (0, 7): b"again"}))
    # Of requests with a key (session 0) a number may come again: what is stored of it has to go.
    waiting.merge(waits({(0, 7): None, (5, 1): None}))
    assert waiting.answers == {(5, 1): None, (5, 3): b"new", (0, 7): None}


def test_all_answers_together_are_bounded_in_bytes_and_a_restart_changes_nothing() -> None:
    size = len(msgspec.msgpack.encode([5, 5, True, 3])) + ANSWER_BYTES
    steady, restarted = (SessionTable(bytes_max=10 * size) for _ in range(2))
    rng = random.Random(5)
    for index in range(1, 4):
        for table in (steady, restarted):
            table.open(index, index)
    numbers = dict.fromkeys((1, 2, 3), 0)
    for index in range(4, 400):
        which = rng.choice([1, 2, 3])
        numbers[which] += 1
        acked = max(0, numbers[which] - rng.randrange(1, 9))
        for table in (steady, restarted):
            assert table.find(Session(which, numbers[which], acked), index) is None
            table.record(Session(which, numbers[which], acked), DONE)
            assert table.kept_bytes == size * len(table.answers()) <= 10 * size
        restarted = SessionTable(restarted.rows(), restarted.answers(), bytes_max=10 * size)
        assert (restarted.rows(), restarted.answers()) == (steady.rows(), steady.answers())
    assert len(steady.answers()) > 5
    # Whoever was idle for longest has its answers forgotten, and is told so: nothing is executed again.
    for seq in range(numbers[1] + 1, numbers[1] + 12):
        steady.find(Session(1, seq, 0), 1000 + seq)
        steady.record(Session(1, seq, 0), DONE)
    assert {session for session, _, _ in steady.answers()} == {1}
    forgotten = steady.find(Session(2, numbers[2], 0), 2000)
    assert isinstance(forgotten, SessionExpired) and "not executed again" in forgotten.message


def test_sessions_of_an_older_file_are_read() -> None:
    state = msgspec.msgpack.encode([3, {2: [1, 1, False, 1], 4: [5, 5, True, 3], 3: ["version_mismatch", "no", {}]}])
    session, answers = rows_of_old_state(7, (5).to_bytes(16, "little"), 9, state)
    table = SessionTable([session], answers)
    assert table.find(Session(7, 4, 0), 10) == DONE
    assert isinstance(table.find(Session(7, 3, 0), 11), VersionMismatch)
    assert [seq for _, seq, _ in table.answers()] == [3, 4]
