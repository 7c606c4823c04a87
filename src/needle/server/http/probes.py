"""GET /metrics, /livez and /readyz: for monitoring, as text.

/metrics: needs the role monitor where keys are asked for; the others tell nothing that is worth a key. /livez: 200
while the node does its work; 503 when a restart would help. /readyz: 200 when it has caught up and knows a leader; 503
with the reason otherwise, also in maintenance and while stopping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.responses import Response

from needle.base.runtime import Blocking
from needle.server.http.message import Receive, Scope, Send
from needle.server.http.paths import Path
from needle.server.ports import Exposition

TEXT = "text/plain; charset=utf-8"


class Health(Protocol):
    """The node, as its probes see it."""

    def alive(self) -> bool: ...
    def not_ready(self) -> str: ...


class _Text:
    """One path, as ASGI. answer: status, content type, body."""

    def __init__(self, answer: Callable[[], tuple[int, str, bytes]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, kind, body = self._answer()
        await Response(body, status, media_type=kind)(scope, receive, send)


class _Metrics:
    """/metrics, as ASGI: read on the event loop, written down in a thread."""

    def __init__(self, metrics: Exposition, blocking: Blocking, check: Callable[[Scope], None]) -> None:
        self._metrics, self._blocking, self._check = metrics, blocking, check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check(scope)
        text = await self._blocking(await self._metrics.read())
        await Response(text, 200, media_type=self._metrics.content_type)(scope, receive, send)


def probes(
    health: Health,
    metrics: Exposition,
    draining: Callable[[], bool],
    check: Callable[[Scope], None],
    blocking: Blocking,
) -> list[Path]:
    """The routes. check: raises for who may not read the metrics. blocking: runs a function in a thread."""

    def live() -> tuple[int, str, bytes]:
        return (200, TEXT, b"ok\n") if health.alive() else (503, TEXT, b"stopped\n")

    def ready() -> tuple[int, str, bytes]:
        why = "stopping" if draining() else health.not_ready()
        return (503, TEXT, f"not ready: {why}\n".encode()) if why else (200, TEXT, b"ok\n")

    return [
        Path("/metrics", _Metrics(metrics, blocking, check), methods=["GET"]),
        Path("/livez", _Text(live), methods=["GET"]),
        Path("/readyz", _Text(ready), methods=["GET"]),
    ]
