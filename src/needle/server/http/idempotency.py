"""The header `idempotency-key` (docs/http.md): which request it belongs to. Pure.

Invariant: a request with a key that this door does not serve is refused, never executed as if it had none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from needle.client.asking import asked_for
from needle.protocol.commands import Asked
from needle.server.http.problems import HttpError
from needle.server.http.routes import Route

NAME: Final = "idempotency-key"
CHARS_MAX: Final = 255


def key_of(headers: Iterable[tuple[bytes, bytes]], route: Route) -> str | None:
    """The key of a request, if it has one that counts: a read is repeated freely. Raises HttpError."""
    given = [value for name, value in headers if name == NAME.encode()]
    if not given or route.role == "reader":
        return None
    if not route.keyed:
        text = f"{route.method} {route.path} takes no {NAME}: leave it out. Writes of documents take one"
        raise HttpError(400, "invalid_argument", text, field=NAME)
    key = given[0].decode("latin-1")
    if len(given) > 1 or not 1 <= len(key) <= CHARS_MAX or not key.isascii() or not key.isprintable():
        text = f"{key[:80]!r} is no {NAME}: one, of 1 to {CHARS_MAX} printable ASCII characters, is allowed"
        raise HttpError(400, "invalid_argument", text, field=NAME)
    return key


def request_of(
    caller: str, key: str, route: Route, path: Sequence[str], query: bytes, packed: bool, body: bytes
) -> Asked:
    """caller: the name of its API key. path: in parts. query, body: as they were sent, but not gzip."""
    what = msgspec.msgpack.encode((route.method, route.path, path, query, packed))
    return asked_for(caller, key, [what, body])
