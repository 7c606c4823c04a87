"""Places on the earth, and what lies within a circle or a box. Pure.

A place is an object with numbers `lat` (-90 to 90, degrees north) and `lon` (-180 to 180, degrees east); whatever else
it has does not count. The earth is a sphere of EARTH_METRES, so distances are right to 0.6 %.

Invariant: whether a place lies within is the same on every machine, for filters are also asked when the log is applied.
So sines are computed here from sums and products, which are the same everywhere, and not by the C library.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

EARTH_METRES: Final = 6_371_008.8
"""The mean radius."""
METRES_MAX: Final = 20_037_508.0
"""More than half of the way around."""
_DEGREES: Final = 57.29577951308232
_TERMS: Final = 11
_SLACK: Final = 1e-5
"""Degrees by which bounds that are only to leave nothing out are wider: a metre."""


class Place(msgspec.Struct, frozen=True):
    """lat, lon: degrees."""

    lat: float
    lon: float


def place_of(value: object) -> Place | None:
    """A value of metadata as a place; None if it is none."""
    if not isinstance(value, dict):
        return None
    lat: Any = value.get("lat")
    lon: Any = value.get("lon")
    return Place(float(lat), float(lon)) if _within(lat, 90) and _within(lon, 180) else None


def _within(value: Any, most: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -most <= value <= most


class Circle(msgspec.Struct, frozen=True):
    """What is no farther than so many metres from a place, along the earth."""

    centre: Place
    metres: float

    def holds(self, place: Place) -> bool:
        """Whether a place is in it."""
        half = self.metres / (2.0 * EARTH_METRES)
        if half >= math.pi / 2:
            return True
        here = self.centre
        if abs(place.lat - here.lat) > self.metres / EARTH_METRES * _DEGREES + _SLACK:
            return False  # which is what follows says, too, at thirty times the price
        up, across = sine((place.lat - here.lat) / 2.0), sine((place.lon - here.lon) / 2.0)
        square = up * up + cosine(here.lat) * cosine(place.lat) * across * across  # the haversine of the distance
        bound = sine(half * _DEGREES)
        return square <= bound * bound

    def around(self) -> Box:
        """A box that holds at least what the circle does."""
        reach = self.metres / EARTH_METRES * _DEGREES + _SLACK
        south, north = self.centre.lat - reach, self.centre.lat + reach
        if south <= -90 or north >= 90:  # a pole is in it, so that every longitude is
            return Box(max(south, -90.0), -180.0, min(north, 90.0), 180.0)
        share = math.sin(math.radians(reach)) / math.cos(math.radians(self.centre.lat))
        wide = math.degrees(math.asin(min(1.0, share))) + _SLACK
        if wide >= 180 - _SLACK:
            return Box(south, -180.0, north, 180.0)
        west, east = self.centre.lon - wide, self.centre.lon + wide
        return Box(south, west + 360 if west < -180 else west, north, east - 360 if east > 180 else east)


class Box(msgspec.Struct, frozen=True):
    """What lies between two latitudes, and eastward of `west` as far as `east`: over the line of 180 degrees if west is
    greater. A pole is in it if its latitude is, for it has every longitude."""

    south: float
    west: float
    north: float
    east: float

    def holds(self, place: Place) -> bool:
        """Whether a place is in it."""
        if not self.south <= place.lat <= self.north:
            return False
        return abs(place.lat) == 90 or any(west <= place.lon <= east for west, east in self.spans())

    def spans(self) -> list[tuple[float, float]]:
        """The longitudes, as ranges that do not go over the line of 180 degrees, which has two names."""
        if self.west > self.east:
            return [(self.west, 180.0), (-180.0, self.east)]
        spans = [(self.west, self.east)]
        if self.east == 180:
            spans.append((-180.0, -180.0))
        if self.west == -180:
            spans.append((180.0, 180.0))
        return spans


def sine(degrees: float) -> float:
    """Of an angle of -360 to 360 degrees, to some units in the last place."""
    if degrees < 0:
        return -sine(-degrees)
    if degrees > 180:
        return -sine(degrees - 180.0)
    if degrees > 90:
        degrees = 180.0 - degrees
    return _cosine(90.0 - degrees) if degrees > 45 else _sine(degrees)


def cosine(degrees: float) -> float:
    """Of a latitude."""
    return sine(90.0 - abs(degrees))


def _sine(degrees: float) -> float:
    """Taylor's sum, of up to 45 degrees."""
    x = degrees / _DEGREES
    total = term = x
    for n in range(2, 2 * _TERMS, 2):
        term = -term * x * x / (n * (n + 1))
        total += term
    return total


def _cosine(degrees: float) -> float:
    x = degrees / _DEGREES
    total = term = 1.0
    for n in range(1, 2 * _TERMS, 2):
        term = -term * x * x / (n * (n + 1))
        total += term
    return total
