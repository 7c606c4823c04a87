"""Reading what a request says behind its path's question mark. It must not know what is asked."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import InvalidArgument, invalid
from needle.server.http.unreadable import SHOWN_CHARACTERS, blamed

QUERY_FIELDS_MAX: Final = 1000


def no_query(query: bytes) -> None:
    """For a request that has a body: `?dry_run=true` beside it would be passed over. Raises InvalidArgument."""
    if query:
        raise invalid("query", query[:200].decode("latin-1"), "nothing: what this request says stands in its body")


def from_query(kind: type[msgspec.Struct], query: bytes) -> Any:
    """What a query says, as a `kind`. Raises InvalidArgument."""
    given: dict[str, Any] = {}
    try:
        said = parse_qsl(query.decode(), keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS_MAX)
    except ValueError:
        allowed = f"UTF-8, percent-encoded, of at most {QUERY_FIELDS_MAX} fields"
        raise invalid("query", query[:200].decode("latin-1"), allowed) from None
    for name, value in said:
        if name in ("fields", "vectors"):
            given.setdefault(name, []).extend(value.split(","))
        elif name in given:
            raise InvalidArgument(f"{name} is given twice", field=name)
        else:
            given[name] = value
    try:
        return msgspec.convert(given, kind, strict=False)
    except DECODE_ERRORS as error:
        field, allowed = blamed(str(error), kind)
        value = f"; it is {str(given[field])[:SHOWN_CHARACTERS]!r}" if field in given else ""
        text = f"the query is wrong: {error}{value}" + (f"; {allowed}" if allowed else "")
        raise InvalidArgument(text, field=field or "query") from None
