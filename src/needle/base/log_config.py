"""How a node tells what it does."""

from __future__ import annotations

from typing import Annotated, ClassVar

from needle.base.schema import Seconds, Settings, about


class LogConfig(Settings, frozen=True, kw_only=True):
    """What a node writes to its standard error: docs/logs.md.

    format: `text` for people, `json` for programs: a line is an object.
    level: Nothing below it is written.
    slow_request_seconds: A request that takes longer leaves a line that says how; 0 for none.
    """

    table: ClassVar[str] = "log"

    format: Annotated[str, about(allowed="text or json", pattern="^(text|json)$", option="--log-format")] = "text"
    level: Annotated[
        str,
        about(allowed="debug, info, warning or error", pattern="^(debug|info|warning|error)$", option="--log-level"),
    ] = "info"
    slow_request_seconds: Annotated[Seconds, about(0, 86_400)] = 0.0
