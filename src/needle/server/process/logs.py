"""The lines that a node writes to its standard error, as text or as JSON.

Invariant: one event is one line, whatever is in it, for names come from outside; in text a bug's traceback follows, in
lines that begin with two spaces. A line is bounded, and so is how often one event is told (folding.py). Of what could
be an API key only its beginning is told.
It must not know what is told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from needle.base.access import without_keys
from needle.base.log_config import LogConfig
from needle.base.request import current
from needle.server.process.folding import FoldingHandler

_UNSEEN = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
"""What moves a terminal's cursor, or begins a line."""
TEXT_MAX = 8192
"""Characters of an event, or of one of its fields."""


def write_logs(node_id: str, config: LogConfig, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
    """From now on all loggers of this process write to `stream`. clock: seconds that do not go back."""

    def named(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["node"] = node_id
        return event

    as_json = config.format == "json"
    chain = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        _bounded,
        *((named,) if as_json else ()),
    ]
    renderer = structlog.processors.JSONRenderer(sort_keys=True) if as_json else _text
    handler = FoldingHandler(stream, clock)
    handler.addFilter(_of_request)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=chain,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level = logging.getLevelNamesMapping()[config.level.upper()]
    root.setLevel(max(level, logging.INFO))  # libraries tell much that is nobody's concern
    logging.getLogger("needle").setLevel(level)


def _of_request(record: logging.LogRecord) -> bool:
    """Put down which request the line belongs to, now: a folded one is written while another is served. Raft's lines
    belong to none: its turns serve all, whoever has them begun."""
    request = current.get()
    if request is None or request.over or record.name.startswith("needle.multiraft"):
        return True
    for name, value, none in (("request", request.id, ""), ("shard", request.shard, -1), ("term", request.term, -1)):
        if value != none:
            record.__dict__.setdefault(name, value)
    return True


def _bounded(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Callers put keys where ids of requests and names of collections belong, and who reads logs may not have them."""
    for name, value in event.items():
        if name == "exception":
            event[name] = without_keys(value)
        elif not name.startswith("_"):
            event[name] = _bounded_value(value)
    return event


def _bounded_value(value: object) -> object:
    """Keys are left out first: what is left of one that was cut through would not be known as one."""
    if isinstance(value, list):
        return [_bounded_value(item) for item in value]
    if isinstance(value, dict):
        return {_bounded_value(name): _bounded_value(item) for name, item in value.items()}
    if isinstance(value, int | float | bool | None):
        return value
    text = without_keys(value if isinstance(value, str) else str(value))
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}... ({len(text)} characters)"


def _text(_: WrappedLogger, __: str, event: EventDict) -> str:
    said: dict[str, Any] = dict(event)
    of = f" (request {said['request']})" if "request" in said else ""
    head = f"{said['time']} {said['level'].upper()} {said['logger']}: {said['event']}{of}".translate(_UNSEEN)
    if "exception" not in said:
        return head
    told = said["exception"].split("\n")  # what a bug stumbled over is in it: no line of it looks like an event's
    return "\n".join([head, *(f"  {line.translate(_UNSEEN)}" for line in told)])
