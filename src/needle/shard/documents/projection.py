"""The parts of a document's metadata that a reader asked for. Pure.

A path is as in changes of metadata: "a.b" is key b of the object under key a, and never goes into an array. What is
not there is left out; what is asked for keeps its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import CorruptDocuments, invalid
from needle.base.filters.builder import field_path

FIELDS_MAX: Final = 256

_objects: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode: Final = msgspec.json.encode
_Wanted = dict[str, Any]
"""What is wanted below each key; None: all of it."""


def projection(fields: Sequence[str] | None) -> Callable[[bytes], bytes]:
    """What makes of metadata (JSON; b"" is null) what these paths leave of it; None: all. Raises InvalidArgument."""
    if fields is None:
        return lambda data: data
    if len(fields) > FIELDS_MAX:
        raise invalid("fields", f"{len(fields)} paths", f"at most {FIELDS_MAX}")
    wanted: _Wanted = {}
    paths = [field_path(path, "fields") for path in fields]
    for path in sorted(paths, key=len):  # what holds another one comes before it
        _want(wanted, path)
    return lambda data: _projected(data, wanted)


def _want(wanted: _Wanted, path: Sequence[str]) -> None:
    *way, last = path
    level = wanted
    for key in way:
        below = level.setdefault(key, {})
        if below is None:
            return
        level = below
    level[last] = None


def _projected(data: bytes, wanted: _Wanted) -> bytes:
    found = _part(data, wanted) if data else None
    return b"" if found is None else _encode(found)


def _part(data: bytes | msgspec.Raw, wanted: _Wanted) -> dict[str, Any] | None:
    """None: it is no object."""
    try:
        fields = _objects.decode(data)
    except msgspec.ValidationError:
        return None
    except DECODE_ERRORS as error:
        raise CorruptDocuments(f"stored metadata is not JSON: {error}") from error
    part: dict[str, Any] = {}
    for key, below in wanted.items():
        value = fields.get(key)
        if value is None:
            continue
        kept = value if below is None else _part(value, below)
        if kept is not None:
            part[key] = kept
    return part
