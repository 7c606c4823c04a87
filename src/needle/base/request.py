"""Which request the code that runs here works for: its name in logs, its place in a trace, and what took how long.

It goes with tasks, and with calls to other nodes (rpc/codec.py), so that one request can be found in the logs of the
node that routes it and of the nodes that answer for shards. Invariant: nothing is decided by it. What is begun for a
request and outlives it belongs to nobody: `over` says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from needle.base.explain import ShardExplanation

ID_MAX: Final = 128
NO_TRACE: Final = ""
_TRACE = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Request:
    """id: as HTTP's x-request-id, "" without one. trace: the W3C traceparent of the span that is under way, "" without
    one. shard, term: of the replica that works for it here; -1 for none. parts: seconds by what took them. explains:
    whether a search is to say how it was answered, which is put into `explained`. over: it was answered.
    command: what it writes, once that was decoded."""

    __slots__ = ("command", "explained", "explains", "id", "over", "parts", "shard", "term", "trace")

    def __init__(self, id: str = "", trace: str = NO_TRACE, shard: int = -1, term: int = -1) -> None:
        self.id, self.trace, self.shard, self.term = id, trace, shard, term
        self.parts: dict[str, float] = {}
        self.explains, self.over = False, False
        self.command: object = None
        self.explained: list[ShardExplanation] = []

    def took(self, part: str, seconds: float) -> None:
        """So long this part took, in addition to what it took before."""
        self.parts[part] = self.parts.get(part, 0.0) + seconds


current: ContextVar[Request | None] = ContextVar("request", default=None)
"""That which the code that runs here works for; None if nobody wants to know."""


def is_id(text: str) -> bool:
    """Whether a request may be called so."""
    return 0 < len(text) <= ID_MAX and text.isascii() and text.isprintable()


def as_trace(text: str) -> str:
    """A traceparent as it is handed on; "" for what is none."""
    return text if _TRACE.fullmatch(text) else NO_TRACE


def over(request: Request | None) -> None:
    """It was answered."""
    if request is not None:
        request.over = True


class Stopwatch:
    """Measures a part of the request that is under way here; does nothing where nobody wants to know."""

    __slots__ = ("_began", "_clock", "_request")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._request, self._clock = current.get(), clock
        self._began = clock() if self._request is not None else 0.0

    def stop(self, part: str) -> None:
        """What was done since it was made is that part."""
        if self._request is not None:
            self._request.took(part, self._clock() - self._began)
