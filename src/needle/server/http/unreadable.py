"""Why a body or a query cannot be read: the field, what stands there, and what may. It must not know what is asked."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from enum import Enum
from itertools import islice
from typing import Any, Final

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import InvalidArgument
from needle.base.plain import DEPTH_MAX

NEAR_BYTES: Final = 30
"""Of a body that is no JSON: so much of it is shown before and behind the place."""
SHOWN_OF_BYTES: Final = 64 * 1024
"""Of a larger body no value is shown: it would be read once more for that."""
SHOWN_CHARACTERS: Final = 60
LOOKED_AT_BYTES: Final = 128 * 1024
LOOKED_AT_TOKENS: Final = 10_000
"""Of a body that is nested too deep, to tell in which field: on the event loop."""
_TOKENS: Final = re.compile(rb'[][{}]|"((?:[^"\\]++|\\.)*+)(?:"(\s*+:)?|\\?\Z)', re.DOTALL)
"""A text that is cut off is one token too: looked for its end from each quote in it, a body would take minutes."""
_UNKNOWN: Final = re.compile(r"unknown field `([^`]*)`")


def place_of(why: str) -> str:
    """The field that a decoder's refusal names; "" for none."""
    found = re.search(r" - at `\$\.?([^`]*)`$", why)
    return found[1] if found else ""


def blamed(why: str, kind: Any) -> tuple[str, str]:
    """The field that a refusal of a `kind` is about, "" for none; and what may stand there, if the refusal does not say
    it itself: the names of an object's fields, or the words of a choice."""
    place = place_of(why)
    meant = _at(kind, place)
    if unknown := _UNKNOWN.search(why):
        names = ", ".join(sorted(_fields(meant)))
        return ".".join(filter(None, (place, unknown[1]))), f"it may say {names or 'nothing'}"
    words = ", ".join(_words(meant))
    return place, f"it may be {words}" if words else ""


def unreadable(error: Exception, data: bytes, packed: bool, kind: Any = None) -> InvalidArgument:
    """Why a body that should be a `kind` is refused: which field it is about, or what stands where it ends to be
    JSON."""
    why, field = str(error), "body"
    place, allowed = blamed(why, kind)
    if isinstance(error, RecursionError):
        why = f"values are nested too deep: in metadata at most {DEPTH_MAX} deep, and filters less"
        field = field if packed else _field_at(data, DEPTH_MAX) or field
    elif place:
        field = place
        why = "; ".join(filter(None, (why, _shown(data, packed, place, why), allowed)))
    elif not packed and (byte := re.search(r"\(byte (\d+)\)$", why)):
        at = int(byte[1])
        why += f", near {data[max(0, at - NEAR_BYTES) : at + NEAR_BYTES].decode(errors='replace')!r}"
        if data[at : at + 3] == b"NaN" or data[at : at + 8].lstrip(b"-").startswith(b"Inf"):
            why += "; numbers have to be finite"
    said = "MessagePack" if packed else "JSON"
    return InvalidArgument(f"the body is not what is taken here, as {said}: {why}", field=field)


def _shown(data: bytes, packed: bool, place: str, why: str) -> str:
    """What stands at a place where a bound is crossed: other refusals show it, or what it is."""
    if not re.search("(>|<)=", why) or "length" in why or len(data) > SHOWN_OF_BYTES:
        return ""
    value: Any
    try:
        value = (msgspec.msgpack if packed else msgspec.json).decode(data)
        for name, index in _steps(place):
            value = value[int(index)] if index else value[name]
    except (*DECODE_ERRORS, LookupError, TypeError):
        return ""
    return f"it is {str(value)[:SHOWN_CHARACTERS]}"


def _steps(place: str) -> Iterator[tuple[str, str]]:
    """The name of a field or the number of an element, step by step."""
    return ((found[1] or "", found[2] or "") for found in re.finditer(r"([^.\[\]]+)(?![^\[]*\])|\[(\d+)\]", place))


def _at(kind: Any, place: str) -> Any:
    """The type that stands at a place of a `kind`; None where that is not one."""
    for name, _ in _steps(place):
        kinds = _fields(kind)
        if not name or name not in kinds:
            return None
        kind = kinds[name]
    return kind


def _fields(kind: Any) -> dict[str, Any]:
    """The types of an object's fields, by name."""
    structs = [one for one in _choices(kind) if isinstance(one, type) and issubclass(one, msgspec.Struct)]
    return {field.encode_name: field.type for one in structs for field in msgspec.structs.fields(one)}


def _words(kind: Any) -> list[str]:
    """The words of enumerations and literals."""
    words = list[str]()
    for one in _choices(kind):
        if isinstance(one, type) and issubclass(one, Enum):
            words += [str(member.value) for member in one]
        elif typing.get_origin(one) is typing.Literal:
            words += map(str, typing.get_args(one))
    return words


def _choices(kind: Any) -> list[Any]:
    """The types that a union or an annotated type is made of."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _choices(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return [one for part in typing.get_args(kind) for one in _choices(part)]
    return [kind]


def _field_at(data: bytes, depth: int) -> str:
    """The first field of a JSON object whose value is nested deeper; "" if it is far behind the beginning."""
    level, name = 0, b""
    for token in islice(_TOKENS.finditer(data, 0, LOOKED_AT_BYTES), LOOKED_AT_TOKENS):
        first = data[token.start()]
        level += (first in b"[{") - (first in b"]}")
        if level == 1 and token[2]:
            name = token[1]
        if level > depth:
            return name.decode(errors="replace")
    return ""
