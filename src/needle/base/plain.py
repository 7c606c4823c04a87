"""What Python values mean as JSON: one table for ids, names, metadata and the operands of filters.

| Python | JSON |
|---|---|
| None; bool, numpy.bool_ | null; true, false |
| int and its subclasses (IntEnum), numpy integers; from -2^63 to 2^64 - 1 | number |
| float and its subclasses, numpy floats; finite | number |
| str and its subclasses (StrEnum), numpy.str_; valid Unicode | string |
| datetime with a time zone (pandas.Timestamp, too) | string: RFC 3339, which filters know as an instant |
| list, tuple; numpy arrays of the above | array |
| dict and other mappings with strings as keys; dataclasses | object |

Invariant: everything else is refused by its place and its type, because any guess at what it means (a Decimal as text,
a set in some order, 1 as the key "1") would be stored as what no filter of the caller's finds. Pure.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from needle.base.errors import InvalidArgument, shown
from needle.base.instants import instant

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**64 - 1
DEPTH_MAX: Final = 64
ALLOWED: Final = (
    "None, bool, int of 64 bits, finite float, str, datetime with a time zone, numpy scalars of these, "
    "and lists and dicts (with str keys) of them"
)
_SCALARS: Final = "None, bool, int of 64 bits, finite float, str, datetime with a time zone, numpy scalars of these"
_ARRAY_KINDS: Final = "biufU"
_NO_SCALAR: Final = object()
_EXACT: Final = frozenset((str, bool, type(None)))


def refused(field: str, value: object, allowed: str) -> InvalidArgument:
    """`errors.invalid` that also names the value's type."""
    kind = type(value).__qualname__
    text = f"{field} = {shown(value)}, {'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}, is not allowed: {allowed}"
    return InvalidArgument(text, field=field)


def text(value: object, field: str, allowed: str = "a non-empty string") -> str:
    """A non-empty string that UTF-8 can encode, as an exact str."""
    if not isinstance(value, str) or not value:
        raise refused(field, value, allowed)
    return _unicode(field, value)


def scalar(field: str, value: object) -> bool | int | float | str | None:
    """A scalar of the table as the exact Python type of its JSON form."""
    found = _scalar(field, value)
    if found is _NO_SCALAR:
        raise refused(field, value, _SCALARS)
    return found  # type: ignore[return-value]


def plain(field: str, value: object) -> Any:
    """`value` made of exact dict, list, str, int, float, bool and None only; the same object where it is already, and
    then its strings are not checked to be Unicode."""
    return value if _is_plain(value, DEPTH_MAX) else converted(field, value)


def converted(field: str, value: object) -> Any:
    """As `plain`, all of it checked and copied."""
    return _converted(field, value, DEPTH_MAX)


def _is_plain(value: object, depth: int) -> bool:
    """Most metadata is: it is looked at once, and not copied."""
    kind = type(value)
    if kind is dict:
        if depth < 1:
            return False
        for key, item in value.items():  # type: ignore[attr-defined]
            if type(key) is not str or not (type(item) in _EXACT or _is_plain(item, depth - 1)):
                return False
        return True
    if kind is list:
        return depth >= 1 and all(_is_plain(item, depth - 1) for item in value)  # type: ignore[attr-defined]
    if kind is int:
        return INT_MIN <= value <= INT_MAX  # type: ignore[operator]
    if kind is float:
        return math.isfinite(value)  # type: ignore[arg-type]
    return kind in _EXACT


def _converted(field: str, value: object, depth: int) -> Any:
    found = _scalar(field, value)
    if found is not _NO_SCALAR:
        return found
    if depth < 1:
        raise refused(field, value, f"values nested at most {DEPTH_MAX} deep")
    if isinstance(value, Mapping):
        return _object(field, value, depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        return _object(field, fields, depth)
    if isinstance(value, np.ndarray) and value.dtype.kind in _ARRAY_KINDS and not isinstance(value, np.ma.MaskedArray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_converted(f"{field}[{n}]", item, depth - 1) for n, item in enumerate(value)]
    raise refused(field, value, ALLOWED)


def _object(field: str, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise refused(f"key of {field}", key, "a string, as JSON's keys are")
        name = _unicode(f"key of {field}", key)
        if name in made:
            raise refused(f"key of {field}", key, "different keys")
        made[name] = _converted(f"{field}.{name[:80]}", item, depth - 1)
    return made


def _scalar(field: str, value: object) -> object:
    """The exact scalar, or _NO_SCALAR if the type is none of the table's."""
    if value is None or type(value) is bool:
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.timedelta64):
        return _NO_SCALAR  # though numpy counts it among its integers
    if isinstance(value, int | np.integer):
        number = int(value)
        if not INT_MIN <= number <= INT_MAX:
            raise refused(field, value, "an integer of 64 bits")
        return number
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            raise refused(field, value, "a finite number (no NaN, no infinity)")
        return float(value)
    if isinstance(value, str):
        return _unicode(field, value)
    if hasattr(value, "isoformat") and hasattr(value, "utcoffset"):
        moment = value.isoformat()
        if not isinstance(moment, str) or instant(moment) is None:
            raise refused(field, value, "a datetime with a time zone")
        return moment
    return _NO_SCALAR


def _unicode(field: str, value: str) -> str:
    exact = str.__str__(value)
    if not exact.isascii():
        try:
            exact.encode()
        except UnicodeEncodeError:
            raise refused(field, value, "a string that UTF-8 can encode (no lone surrogates)") from None
    return exact
