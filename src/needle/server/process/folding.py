"""Folds storms in a node's log: of one event that comes again and again a few lines are written, and then how many more
there were.

Invariant: in `WINDOW_SECONDS` at most `LINES_MAX` lines of one event are written, and how many were left out is told
with the next line of any kind that comes after that time. One event: the text as it stands in the source, of one shard
or node. Kept are `EVENTS_MAX` of them; where there are more, the one that was seen first is closed. Time comes in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, NamedTuple, TextIO

LINES_MAX: Final = 10
WINDOW_SECONDS: Final = 10.0
EVENTS_MAX: Final = 1024
_ABOUT: Final = ("group", "shard", "node_name", "method")

Event = tuple[object, ...]


class _Seen(NamedTuple):
    since: float
    lines: int
    last: logging.LogRecord


class FoldingHandler(logging.StreamHandler[TextIO]):
    """Writes records to a stream. clock: seconds that do not go back."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        super().__init__(stream)
        self._clock = clock
        self._seen: dict[Event, _Seen] = {}
        """In the order of `since`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock held."""
        now = self._clock()
        self._close_over(now)
        event = _event_of(record)
        seen = self._seen.get(event)
        if seen is None:
            if len(self._seen) >= EVENTS_MAX:
                self._close(next(iter(self._seen)), now)
            seen = _Seen(now, 0, record)
        if seen.lines < LINES_MAX:
            super().emit(record)
        record.exc_info = None  # a traceback keeps alive what its functions held
        self._seen[event] = _Seen(seen.since, seen.lines + 1, record)

    def close(self) -> None:
        """Tell what was left out."""
        self.acquire()
        try:
            for event in list(self._seen):
                self._close(event, self._clock())
        finally:
            self.release()
        super().close()

    def _close_over(self, now: float) -> None:
        while self._seen:
            event, seen = next(iter(self._seen.items()))
            if now - seen.since < WINDOW_SECONDS:
                return
            self._close(event, now)

    def _close(self, event: Event, now: float) -> None:
        since, lines, last = self._seen.pop(event)
        if lines <= LINES_MAX:
            return
        try:
            text = last.getMessage()
        except Exception:  # noqa: BLE001 - arguments that its text does not take: as every handler does, say so
            self.handleError(last)
            return
        # As the last of them, so that it is found where they are: by its shard, its kind and its logger.
        folded = logging.makeLogRecord(last.__dict__)
        more = lines - LINES_MAX - 1
        folded.msg = f"{text} (and {more} more like this in {now - since:.0f} s)" if more else text
        folded.args, folded.exc_info, folded.exc_text = (), None, None
        folded.__dict__["folded"] = lines - LINES_MAX
        super().emit(folded)


def _event_of(record: logging.LogRecord) -> Event:
    told = record.__dict__
    return (record.name, record.levelno, str(record.msg), *(str(told.get(name)) for name in _ABOUT))
