"""Which route a path means: compared part by part as it came, and each part decoded afterwards.

Invariant: what is sent percent-encoded is a character of a name and nothing else. A decoded `/` divides no path, a
newline ends none, and bytes that are no UTF-8 are refused: else two names would be one, and a request about the one
would reach the other.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from starlette.routing import Match, Route

from needle.server.http.message import Scope
from needle.server.http.problems import HttpError

_NAME: Final = re.compile(r"{(\w+)(:path)?}")


def parts_of(scope: Scope) -> list[str]:
    """The decoded parts of a request's path. Raises HttpError."""
    raw: bytes = scope["raw_path"]
    try:
        if b"%" not in raw:
            return raw.decode().split("/")
        return [unquote_to_bytes(part).decode() for part in raw.split(b"/")]
    except UnicodeDecodeError:
        text = f"the path {raw[:200].decode('latin-1')!r} is not UTF-8 once it is percent-decoded"
        raise HttpError(400, "invalid_argument", text, field="path") from None


class Path(Route):
    """A route. path: with {names} of one part each; {name:path}, at the end, is all that is left, with its slashes."""

    def __init__(self, path: str, endpoint: Any, *, methods: list[str]) -> None:
        super().__init__(path, endpoint, methods=methods)
        self._parts = [(part, _NAME.fullmatch(part)) for part in path.split("/")]
        self._rest = path.endswith(":path}")

    def names_in(self, parts: list[str]) -> dict[str, str] | None:
        """What stands for each name; None if the path is not of this route."""
        count = len(self._parts)
        if len(parts) != count:
            if not self._rest or len(parts) < count:
                return None
            parts = [*parts[: count - 1], "/".join(parts[count - 1 :])]
        found = {}
        for (wanted, name), part in zip(self._parts, parts, strict=True):
            if name is not None and (part or name[2]):
                found[name[1]] = part
            elif part != wanted:
                return None
        return found

    def matches(self, scope: Any) -> tuple[Match, Any]:
        """See Route."""
        names = self.names_in(scope["needle.parts"])
        if names is None:
            return Match.NONE, {}
        served = scope["method"] in (self.methods or ())
        return Match.FULL if served else Match.PARTIAL, {"endpoint": self.endpoint, "path_params": names}
