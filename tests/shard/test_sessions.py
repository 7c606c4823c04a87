"""The dedupe table: at most once, bounded, and the same on every replica."""

from __future__ import annotations

import pytest

from needle.base.commands import Session
from needle.base.errors import SessionExpired, VersionMismatch
from needle.base.model import WriteResult
from needle.shard import sessions
from needle.shard.sessions import SessionTable

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
    again = SessionTable(table.rows()).find(Session(session, 1, 0), 3)
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
    assert table.dirty()[1] == [11, 13]


def test_eviction_does_not_depend_on_a_restart() -> None:
    steady, restarted = SessionTable(sessions_max=3), SessionTable(sessions_max=3)
    for index in range(1, 40):
        for table in (steady, restarted):
            if index % 3:
                table.open(index, index)
            else:
                table.find(Session(index - 2, 1, 0), index)
        restarted = SessionTable(reversed(restarted.rows()), sessions_max=3)
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
    assert {at: row[0] for at, row in table.dirty()[0].items()} == {1: 1, 2: 2}
    assert table.dirty() == ({}, [])
    table.find(Session(2, 1, 0), 3)
    assert list(table.dirty()[0]) == [2]
