"""What stands behind an operator of a filter: values as callers write them, and as JSON has them.

Pure: it knows neither nodes, nor fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from needle.base.errors import invalid
from needle.base.filters.operators import Length, Names, Operand, Scalar, Values, kind
from needle.base.geo import METRES_MAX, Box, Circle, Place
from needle.base.instants import Instant, instant, is_date_time
from needle.base.plain import refused, scalar

VALUES_MAX: Final = 10_000
LENGTH_MAX: Final = 1 << 32
"""Documents are smaller than that."""
DATE: Final = "$date"


class Moment(Protocol):
    """A datetime with a time zone."""

    def isoformat(self) -> str: ...
    def utcoffset(self) -> Any: ...


Value = Scalar | Moment
Ordered = str | float | Moment


def plain(value: Any) -> Any:
    """An operand as JSON has it."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Length):
        if value.least == value.most:
            return value.least
        return {"$gte": value.least} if value.most is None else {"$gte": value.least, "$lte": value.most}
    if isinstance(value, Circle | Box):
        return msgspec.to_builtins(value)
    return {DATE: value.text} if isinstance(value, Instant) else value


def _scalar(where: str, value: object, kinds: tuple[str, ...]) -> Any:
    value = _typed(where, value)
    exact: object = value if isinstance(value, Instant) else scalar(where, value)
    if kind(exact) not in kinds:
        raise refused(where, value, f"{' or '.join(kinds)}; numbers finite, integers of 64 bits, text valid Unicode")
    return exact


def _typed(where: str, value: object) -> object:
    """{"$date": text} and datetimes as Instants; anything else as it is."""
    if isinstance(value, Mapping) and DATE in value:
        text = value[DATE] if len(value) == 1 else None
    elif hasattr(value, "isoformat") and hasattr(value, "utcoffset"):
        text = value.isoformat()
    else:
        return value
    at = instant(text) if isinstance(text, str) else None
    if at is None:
        form = '{"$date": "2024-01-01T00:00:00Z"} (RFC 3339), or in Python a datetime with a time zone'
        raise invalid(where, dict(value) if isinstance(value, Mapping) else value, form)
    return at


_ANY = ("null", "bool", "number", "string", "instant")
_ORDERED = ("number", "string", "instant")


def _ordered_value(where: str, value: object) -> Any:
    bound = _scalar(where, value, _ORDERED)
    if isinstance(bound, str) and instant(bound) is not None:
        # It would miss in silence whatever is written in another zone or with another fraction.
        raise invalid(
            where, bound, f'{{"{DATE}": "{bound}"}} or a datetime, to compare instants; text is ordered by code point'
        )
    if isinstance(bound, str) and is_date_time(bound):
        raise invalid(
            where,
            bound,
            f'a date-time with seconds and a zone, as {{"{DATE}": "2024-01-01T00:00:00Z"}} or a datetime with a zone; '
            "this is no instant, and text is ordered by code point",
        )
    return bound


def _values(where: str, value: object) -> Sequence[object]:
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = list(value)
    if not isinstance(value, list | tuple | set | frozenset) or len(value) > VALUES_MAX:
        raise refused(where, value, f"a list of at most {VALUES_MAX} values")
    if isinstance(value, set | frozenset):  # an order that does not depend on the hash seed
        return sorted(value, key=lambda item: (kind(item), str(item)))
    return value


def _pair(where: str, value: object) -> Any:
    pair = tuple(_ordered_value(where, item) for item in _values(where, value))
    if len(pair) != 2 or kind(pair[0]) != kind(pair[1]):
        raise invalid(where, value, "[low, high], both numbers, both strings or both instants")
    return pair


_BOUNDS: Final = ("$gt", "$gte", "$lt", "$lte")


def _length(where: str, value: object) -> Length:
    """From a number, or from bounds that both hold."""
    if not isinstance(value, Mapping):
        count = _count(where, value)
        return Length(count, count)
    least, most = 0, LENGTH_MAX
    for name, bound in value.items():
        if name not in _BOUNDS:
            raise refused(where, name, f"a number, or bounds: {', '.join(_BOUNDS)}")
        count = _count(where, bound)
        if name in ("$gt", "$gte"):
            least = max(least, count + (name == "$gt"))
        else:
            most = min(most, count - (name == "$lt"))
    if not value or least > most:
        raise invalid(where, dict(value), "bounds between which there is a whole number of 0 or more")
    return Length(least, most if most < LENGTH_MAX else None)


def _count(where: str, value: object) -> int:
    count = value.item() if isinstance(value, np.integer) else value
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < LENGTH_MAX:
        raise refused(where, value, f"how many elements: a whole number of at least 0, less than {LENGTH_MAX}")
    return int(count)


def _circle(where: str, value: object) -> Circle:
    form = '{"centre": {"lat": 52.5, "lon": 13.4}, "metres": 1000}'
    if not isinstance(value, Mapping) or set(value) != {"centre", "metres"}:
        raise refused(where, value, form)
    centre = value["centre"]
    if not isinstance(centre, Mapping) or set(centre) != {"lat", "lon"}:
        raise refused(f"{where} centre", centre, 'a place, as {"lat": 52.5, "lon": 13.4}')
    lat, lon = _degrees(f"{where} centre", centre, "lat", 90), _degrees(f"{where} centre", centre, "lon", 180)
    metres = _scalar(f"{where} metres", value["metres"], ("number",))
    if not 0 <= metres <= METRES_MAX:
        raise refused(f"{where} metres", metres, f"a number of 0 to {METRES_MAX:.0f}, half of the way around the earth")
    return Circle(Place(lat, lon), float(metres))


def _box(where: str, value: object) -> Box:
    if not isinstance(value, Mapping) or set(value) != {"south", "west", "north", "east"}:
        raise refused(where, value, '{"south": 52.3, "west": 13.0, "north": 52.7, "east": 13.8}, in degrees')
    south, north = _degrees(where, value, "south", 90), _degrees(where, value, "north", 90)
    west, east = _degrees(where, value, "west", 180), _degrees(where, value, "east", 180)
    if south > north:
        raise invalid(f"{where} south", south, f"no farther north than north, which is {north:g}")
    return Box(south, west, north, east)


def _degrees(where: str, value: Mapping[Any, Any], name: str, most: int) -> float:
    degrees = _scalar(f"{where} {name}", value[name], ("number",))
    if not -most <= degrees <= most:
        raise refused(f"{where} {name}", degrees, f"degrees: a number from -{most} to {most}")
    return float(degrees)


def _ids(where: str, value: object) -> Names:
    ids = Names(_scalar(where, item, ("string",)) for item in _values(where, value))
    if not all(ids):
        raise invalid(where, "", "ids, which are strings of at least one character")
    return ids


PARSERS: Final[dict[Operand, Callable[[str, Any], Any]]] = {
    Operand.VALUE: lambda where, value: _scalar(where, value, _ANY),
    Operand.ORDERED: _ordered_value,
    Operand.TEXT: lambda where, value: _scalar(where, value, ("string",)),
    Operand.FLAG: lambda where, value: _scalar(where, value, ("bool",)),
    Operand.VALUES: lambda where, value: Values(_scalar(where, item, _ANY) for item in _values(where, value)),
    Operand.PAIR: _pair,
    Operand.LENGTH: _length,
    Operand.IDS: _ids,
    Operand.CIRCLE: _circle,
    Operand.BOX: _box,
}
"""parser(where, value): the operand, or InvalidArgument. What an element has to match is a filter, so builder.py reads
it."""
