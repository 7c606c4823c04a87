"""GET /openapi.json, and /docs: a page to read it and to try it, which loads nothing from elsewhere."""

from __future__ import annotations

import functools
from importlib import resources

import msgspec
from starlette.responses import Response

from needle.server.http import openapi
from needle.server.http.message import Receive, Scope, Send
from needle.server.http.paths import Path

_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'none'"
_FILES = {
    "/docs": ("docs.html", "text/html"),
    "/docs.js": ("docs.js", "text/javascript"),
    "/docs.css": ("docs.css", "text/css"),
}


@functools.cache
def _document() -> bytes:
    return msgspec.json.encode(openapi.document())


@functools.cache
def _file(name: str) -> bytes:
    return resources.files("needle.server.http").joinpath(name).read_bytes()


class _Static:
    """One path, as ASGI."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._path == "/openapi.json":
            body, kind = _document(), "application/json"
        else:
            name, kind = _FILES[self._path]
            body = _file(name)
        headers = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff"}
        await Response(body, headers=headers, media_type=kind)(scope, receive, send)


def routes() -> list[Path]:
    """The page's."""
    return [Path(path, _Static(path), methods=["GET"]) for path in ("/openapi.json", *_FILES)]
