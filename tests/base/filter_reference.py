"""What a filter means, once more: written from docs/filters.md, on the dict form, with nothing of needle.base.

Slow and plain on purpose. Tests compare the product with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from typing import Any

Found = tuple[bool, list[Any], list[Any], str | None]
"""Whether something is there, the scalars that it stands for, what is there as it is, and the id of the document."""
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)  # noqa: UP017


def matches(condition: dict[str, Any], metadata: Any, id_: str | None = None) -> bool:
    return all(_level(key, below, metadata, id_) for key, below in condition.items())


def _level(key: str, below: Any, metadata: Any, id_: str | None) -> bool:
    if key == "$and":
        return all(matches(part, metadata, id_) for part in below)
    if key == "$or":
        return any(matches(part, metadata, id_) for part in below)
    if key == "$not":
        return not matches(below, metadata, id_)
    if key == "$ids":
        return EACH["$ids"]((False, [], [], id_), below)
    if not isinstance(below, dict) or "$date" in below:
        return EACH["$eq"](_find(metadata, key.split(".")), below)
    results = []
    for op, value in below.items():
        if op == "$not":
            results.append(not matches({key: value}, metadata, id_))
        else:
            results.append(EACH[op](_find(metadata, key.split(".")), value))
    return all(results)


def _find(metadata: Any, path: list[str]) -> Found:
    if not isinstance(metadata, dict):
        return False, [], [], None
    return _below([metadata[path[0]]] if path[0] in metadata else [], path[1:])


def _below(values: list[Any], path: list[str]) -> Found:
    if not values:
        return False, [], [], None
    if path:
        objects = [v for value in values for v in (value if isinstance(value, list) else [value])]
        return _below([v[path[0]] for v in objects if isinstance(v, dict) and path[0] in v], path[1:])
    scalars = [v for value in values for v in (value if isinstance(value, list) else [value])]
    return True, [v for v in scalars if not isinstance(v, list | dict)], values, None


def _instant(text: str) -> Fraction | None:
    parts = re.fullmatch(r"(.{10})[Tt ](.{8})(\.[0-9]+)?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))", text, re.DOTALL)
    if parts is None or not re.fullmatch(r"[0-9:-]*", parts[1] + parts[2]):
        return None
    try:
        at = datetime.fromisoformat(f"{parts[1]}T{parts[2]}+00:00")
    except ValueError:
        return None
    if parts[4] and (int(parts[5]) > 23 or int(parts[6]) > 59):
        return None
    minutes = int(parts[5] or 0) * 60 + int(parts[6] or 0)
    seconds = Fraction((at - EPOCH) // timedelta(seconds=1)) + Fraction(f"0{parts[3] or ''}")
    return seconds - (minutes if parts[4] == "+" else -minutes) * 60


def _typed(value: Any) -> tuple[str, Any]:
    """(type class, something that compares)."""
    if isinstance(value, dict):
        return "instant", _instant(value["$date"])
    if value is None or isinstance(value, bool | str):
        return type(value).__name__, value
    return "number", Fraction(value)


def _as(type_: str, item: Any) -> Any:
    """A stored scalar as a value of a type class; None if it is none."""
    if type_ == "instant":
        return _instant(item) if isinstance(item, str) else None
    found, value = _typed(item)
    return value if found == type_ else None


def _eq(found: Found, value: Any) -> bool:
    if value is None:
        return not found[0] or None in found[1]
    type_, wanted = _typed(value)
    return any(_as(type_, item) == wanted and _as(type_, item) is not None for item in found[1])


def _order(test: Callable[[Any, Any], bool]) -> Callable[[Found, Any], bool]:
    def holds(found: Found, bound: Any) -> bool:
        type_, wanted = _typed(bound)
        return any(_as(type_, item) is not None and test(_as(type_, item), wanted) for item in found[1])

    return holds


def _between(found: Found, bounds: Any) -> bool:
    return any(EACH["$gte"](_one(item), bounds[0]) and EACH["$lte"](_one(item), bounds[1]) for item in found[1])


def _one(item: Any) -> Found:
    return True, [item], [item], None


def _size(found: Found, wanted: Any) -> bool:
    bounds = wanted if isinstance(wanted, dict) else {"$eq": wanted}
    return any(isinstance(v, list) and all(EACH[op](_one(len(v)), n) for op, n in bounds.items()) for v in found[2])


def _elem_match(found: Found, condition: dict[str, Any]) -> bool:
    items = [item for v in found[2] if isinstance(v, list) for item in v]
    if condition and all(op in EACH for op in condition):
        scalars = [item for item in items if not isinstance(item, list | dict)]
        return any(all(EACH[op](_one(item), value) for op, value in condition.items()) for item in scalars)
    return any(isinstance(item, dict) and matches(condition, item) for item in items)


def _places(found: Found) -> list[tuple[float, float]]:
    """(lat, lon) in degrees."""
    items = [item for v in found[2] for item in (v if isinstance(v, list) else [v])]
    pairs = [(item.get("lat"), item.get("lon")) for item in items if isinstance(item, dict)]
    numbers = [pair for pair in pairs if all(isinstance(n, int | float) and not isinstance(n, bool) for n in pair)]
    return [(float(lat), float(lon)) for lat, lon in numbers if abs(lat) <= 90 and abs(lon) <= 180]


def metres(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Along the sphere: the angle between the two directions, which is right for near ones and for far ones."""
    a, b = (
        (math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat))
        for lat, lon in (map(math.radians, place) for place in (one, other))
    )
    across = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    return 6_371_008.8 * math.atan2(math.hypot(*across), sum(x * y for x, y in zip(a, b, strict=True)))


def _in_circle(found: Found, circle: dict[str, Any]) -> bool:
    centre = circle["centre"]["lat"], circle["centre"]["lon"]
    return any(metres(place, centre) <= circle["metres"] + 1e-3 for place in _places(found))


def _in_box(found: Found, box: dict[str, Any]) -> bool:
    def eastward(lon: float) -> Fraction:
        return (Fraction(lon) - Fraction(box["west"])) % 360

    wide = 360 if (box["west"], box["east"]) == (-180, 180) else eastward(box["east"])
    return any(
        box["south"] <= lat <= box["north"] and (abs(lat) == 90 or eastward(lon) <= wide) for lat, lon in _places(found)
    )


EACH: dict[str, Callable[[Found, Any], bool]] = {
    "$eq": _eq,
    "$ne": lambda found, value: not _eq(found, value),
    "$gt": _order(lambda item, bound: bool(item > bound)),
    "$gte": _order(lambda item, bound: bool(item >= bound)),
    "$lt": _order(lambda item, bound: bool(item < bound)),
    "$lte": _order(lambda item, bound: bool(item <= bound)),
    "$between": _between,
    "$in": lambda found, values: any(_eq(found, value) for value in values),
    "$nin": lambda found, values: not any(_eq(found, value) for value in values),
    "$all": lambda found, values: len(values) > 0 and all(_eq(found, value) for value in values),
    "$contains": lambda found, text: any(isinstance(item, str) and item.find(text) >= 0 for item in found[1]),
    "$starts_with": lambda found, text: any(isinstance(item, str) and item[: len(text)] == text for item in found[1]),
    "$exists": lambda found, wanted: found[0] == wanted,
    "$size": _size,
    "$elemMatch": _elem_match,
    "$geo_radius": _in_circle,
    "$geo_box": _in_box,
    "$ids": lambda found, ids: any(found[3] == one for one in ids),
}
