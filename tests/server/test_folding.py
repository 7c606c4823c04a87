"""A storm of one event is a few lines, and one that says how many more there were."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from needle.server.process.folding import EVENTS_MAX, LINES_MAX, WINDOW_SECONDS, FoldingHandler


class Lines:
    def __init__(self) -> None:
        self.now, self.stream = 0.0, io.StringIO()
        self.handler = FoldingHandler(self.stream, lambda: self.now)

    def tell(self, text: str, *arguments: object, level: int = logging.INFO, **fields: object) -> None:
        record = logging.LogRecord("needle.test", level, "", 0, text, arguments, None)
        vars(record).update(fields)
        self.handler.handle(record)

    def all(self) -> list[str]:
        return self.stream.getvalue().splitlines()


def test_of_one_event_ten_lines_are_written_and_then_how_many_more_there_were() -> None:
    lines = Lines()
    for n in range(1000):
        lines.tell("refused: %s", n)
    assert lines.all() == [f"refused: {n}" for n in range(LINES_MAX)]
    lines.now = WINDOW_SECONDS
    lines.tell("something else")
    assert lines.all()[LINES_MAX:] == ["refused: 999 (and 989 more like this in 10 s)", "something else"]
    lines.tell("refused: %s", "again")  # a new window
    assert lines.all()[-1] == "refused: again"


def test_one_line_that_was_held_back_is_written_as_it_is() -> None:
    lines = Lines()
    for n in range(LINES_MAX + 1):
        lines.tell("refused: %s", n)
    lines.now = WINDOW_SECONDS
    lines.tell("something else")
    assert lines.all()[LINES_MAX:] == [f"refused: {LINES_MAX}", "something else"]


def test_nothing_is_left_out_of_what_is_rare() -> None:
    lines = Lines()
    for n in range(50):
        lines.now = n * WINDOW_SECONDS / (LINES_MAX - 1)
        lines.tell("now and then: %s", n)
    assert lines.all() == [f"now and then: {n}" for n in range(50)]


def test_events_of_other_shards_methods_and_levels_are_other_events() -> None:
    lines = Lines()
    for n in range(LINES_MAX + 1):
        lines.tell("x", group="shard 0")
        lines.tell("x", group=f"shard {n + 1}")
        lines.tell("x", level=logging.ERROR)
    assert len(lines.all()) == LINES_MAX + LINES_MAX + 1 + LINES_MAX


def test_what_was_left_out_is_told_at_the_end_with_the_fields_of_the_last() -> None:
    lines = Lines()
    told: list[logging.LogRecord] = []
    lines.handler.setFormatter(
        type("F", (), {"format": lambda _, record: told.append(record) or record.getMessage()})()
    )
    for n in range(LINES_MAX + 5):
        lines.tell("%d", n, kind="k", term=n)
    lines.handler.close()
    last = vars(told[-1])
    assert (last["kind"], last["term"], last["folded"]) == ("k", LINES_MAX + 4, 5)


def test_memory_is_bounded_and_no_traceback_is_kept() -> None:
    lines = Lines()
    for n in range(EVENTS_MAX + 100):
        lines.tell(f"text {n}")
    assert len(lines.handler._seen) == EVENTS_MAX and len(lines.all()) == EVENTS_MAX + 100
    try:
        raise ValueError("x")
    except ValueError:
        record = logging.LogRecord("needle.test", logging.ERROR, "", 0, "bug", (), sys.exc_info())
    lines.handler.handle(record)
    assert "ValueError: x" in lines.stream.getvalue()
    assert all(seen.last.exc_info is None for seen in lines.handler._seen.values())


@pytest.mark.parametrize("text", ["100 % of it", "%(x)s"])
def test_a_folded_text_is_no_template_any_more(text: str) -> None:
    lines = Lines()
    for _ in range(LINES_MAX + 3):
        lines.tell("%s", text)
    lines.handler.close()
    assert lines.all()[-1].startswith(text)


def test_a_line_that_cannot_be_made_ends_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever logs next goes on: a library's mistake was raised by it."""
    lines = Lines()
    for _ in range(LINES_MAX + 2):
        lines.tell("%d of them", "many")
    lines.now = WINDOW_SECONDS
    lines.tell("next")
    assert lines.all() == ["next"]
    assert "Logging error" in capsys.readouterr().err


def test_lines_with_a_list_for_a_name_are_written() -> None:
    lines = Lines()
    lines.tell("lists", group=["a", "list"])
    assert lines.all() == ["lists"]
