"""What callers may say of the text that a collection is searched by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from needle.base.errors import InvalidArgument, invalid
from needle.base.filters.builder import field_path
from needle.base.plain import refused
from needle.base.text import ANALYZER_VERSION, LANGUAGES, TextField

ALLOWED = 'a field of metadata, such as "body", or {"field": "body", "language": "english"}'


def text_field(value: Any) -> TextField | None:
    """As it is kept, made of a TextField, a mapping of what it has, or a path; None of "", for none. Raises
    InvalidArgument."""
    if value == "":
        return None
    if isinstance(value, str):
        value = TextField(field=value)
    elif isinstance(value, Mapping):
        try:
            value = msgspec.convert(dict(value), _Given)
        except msgspec.ValidationError as error:
            raise InvalidArgument(
                f"text is {dict(value)!r}: {error}; allowed is {ALLOWED}"[:500], field="text"
            ) from error
        value = TextField(field=value.field, language=value.language)
    if not isinstance(value, TextField):
        raise refused("text", value, ALLOWED)
    check_text(value)
    return value


class _Given(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    field: str
    language: str = "english"


def check_text(text: TextField) -> None:
    """Raises InvalidArgument for what this release cannot keep."""
    field_path(text.field, "text.field")
    if text.language not in LANGUAGES:
        raise invalid("text.language", text.language, f"one of {', '.join(LANGUAGES)}")
    if isinstance(text.version, bool) or text.version != ANALYZER_VERSION:
        raise invalid("text.version", text.version, str(ANALYZER_VERSION))
