"""What a browser shows, from files of the package: `/openapi.json` and `/docs`, to read and to try it; `/ui`, the
dashboard.

Invariant: what is served is a table that is made once, of the files that the package has; no path of a request is ever
looked up on the disk. The pages load nothing from elsewhere and run no script that stands in them, so what documents
and names hold cannot become one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

import msgspec
import xxhash
from starlette.responses import Response

from needle.server.http import openapi
from needle.server.http.message import Receive, Scope, Send
from needle.server.http.paths import Path

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # kept, and asked for by its ETag: the next release is seen at once
}
_KINDS: Final = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "json": "application/json",
    "svg": "image/svg+xml",
}
_HERE: Final = resources.files("needle.server.http")


class Page:
    """One file, as ASGI. body: reads it; asked once."""

    def __init__(self, kind: str, body: Callable[[], bytes]) -> None:
        self._kind, self._body = kind, functools.cache(body)

    @functools.cached_property
    def _tag(self) -> str:
        return f'"{xxhash.xxh3_128_hexdigest(self._body())}"'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {**_HEADERS, "etag": self._tag}
        if self._tag.encode() in _asked_tags(scope):
            await Response(status_code=304, headers=headers)(scope, receive, send)
            return
        await Response(self._body(), headers=headers, media_type=self._kind)(scope, receive, send)


def _asked_tags(scope: Scope) -> list[bytes]:
    """Of `if-none-match`: what the caller has."""
    given: list[bytes] = [value for name, value in scope["headers"] if name == b"if-none-match"]
    return [tag.strip().removeprefix(b"W/") for value in given for tag in value.split(b",")]


def _file(file: Traversable) -> Page:
    return Page(_KINDS[file.name.rpartition(".")[2]], file.read_bytes)


@functools.cache
def _pages() -> dict[str, Page]:
    """By path."""
    found = {"/openapi.json": Page(_KINDS["json"], lambda: msgspec.json.encode(openapi.document()))}
    for name in ("docs.html", "docs.js", "docs.css"):
        found[f"/{name.removesuffix('.html')}"] = _file(_HERE / name)
    for file in (_HERE / "ui").iterdir():
        if file.name.rpartition(".")[2] in _KINDS:
            found[f"/ui/{file.name}"] = _file(file)
    found["/ui"] = found["/ui/"] = found.pop("/ui/index.html")
    return found


def routes() -> list[Path]:
    """The pages'."""
    return [Path(path, page, methods=["GET"]) for path, page in _pages().items()]
