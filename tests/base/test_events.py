"""The table of events is what the program tells: each row is told somewhere, with exactly its fields."""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from needle.base import events
from needle.base.events import EVENTS, LEADER_ELECTED, Event, tell

SOURCE = Path(events.__file__).parents[1]
RESERVED = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message",
    "asctime",
    "event",
    "level",
    "logger",
    "node",
    "kind",
}


def told() -> Iterator[tuple[str, str, set[str], bool]]:
    """Each call of `tell`: where, of what, the fields by name, and whether there are more that a dict brings."""
    for path in SOURCE.rglob("*.py"):
        if path == Path(events.__file__):
            continue
        text = path.read_text()
        if "from needle.base.events import" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tell":
                names = {keyword.arg for keyword in node.keywords if keyword.arg}
                assert isinstance(node.args[0], ast.Name)
                yield f"{path.name}:{node.lineno}", node.args[0].id, names, any(k.arg is None for k in node.keywords)


def test_each_event_is_told_with_its_fields() -> None:
    rows: dict[str, Event] = {name: value for name, value in vars(events).items() if isinstance(value, Event)}
    assert set(EVENTS) == {row.kind for row in rows.values()} and len(EVENTS) == len(rows)
    seen = set()
    for where, name, fields, more in told():
        if name not in rows:
            assert name == "event", where  # one of several, chosen there
            continue
        seen.add(name)
        wanted = set(rows[name].fields)
        assert fields <= wanted if more else fields == wanted, f"{where}: {fields ^ wanted}"
    by_role = {"LEADER_ELECTED", "LEADER_RESIGNED", "ELECTION_BEGUN", "PREVOTE_BEGUN"}
    assert set(rows) - seen == by_role


def test_no_field_has_a_name_that_a_line_uses_itself() -> None:
    for event in EVENTS.values():
        assert not RESERVED & set(event.fields), event.kind


def test_a_line_has_the_text_its_kind_and_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "needle")
    tell(LEADER_ELECTED, group="shard 3", term=7, why="it was told to")
    record = caplog.records[0]
    assert record.getMessage() == "shard 3: this node leads in term 7; it asked for votes because it was told to"
    assert record.msg == LEADER_ELECTED.text  # by which a storm of it is known
    assert {"kind": "leader_elected", "group": "shard 3", "term": 7}.items() <= vars(record).items()


def test_nothing_is_made_of_a_line_that_nobody_wants(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "needle")

    class Costly:
        def __str__(self) -> str:
            raise AssertionError

    tell(LEADER_ELECTED, group=Costly(), term=1, why="")
    assert caplog.records == []
