"""The lines that a node writes to its standard error, as text or as JSON.

Invariant: one event is one line, whatever is in it, for names come from outside; in text a bug's traceback follows.
It must not know what is told.
"""

from __future__ import annotations

import logging
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from needle.base.log_config import LogConfig

_UNSEEN = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
"""What moves a terminal's cursor, or begins a line."""


def write_logs(node_id: str, config: LogConfig, stream: TextIO) -> None:
    """From now on all loggers of this process write to `stream`."""

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
        *((named,) if as_json else ()),
    ]
    renderer = structlog.processors.JSONRenderer(sort_keys=True) if as_json else _text
    handler = logging.StreamHandler(stream)
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


def _text(_: WrappedLogger, __: str, event: EventDict) -> str:
    said: dict[str, Any] = dict(event)
    head = f"{said['time']} {said['level'].upper()} {said['logger']}: {said['event']}".translate(_UNSEEN)
    return f"{head}\n{said['exception']}" if "exception" in said else head
