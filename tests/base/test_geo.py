"""Places: sines that are the same on every machine, boxes that hold their circles."""

from __future__ import annotations

import hashlib
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from base.filter_reference import metres
from needle.base.geo import EARTH_METRES, METRES_MAX, Box, Circle, Place, cosine, place_of, sine

LATS, LONS = st.floats(-90, 90), st.floats(-180, 180)


@settings(max_examples=1000, deadline=None)
@given(st.floats(-360, 360))
def test_sines_are_those_of_the_library(degrees: float) -> None:
    assert abs(sine(degrees) - math.sin(math.radians(degrees))) < 2e-15
    assert abs(cosine(degrees / 4) - math.cos(math.radians(degrees / 4))) < 2e-15


def test_sines_are_the_same_bits_everywhere() -> None:
    """Of these sums and products: a platform that rounds otherwise would part replicas."""
    assert (sine(90.0), sine(180.0), sine(0.0), cosine(90.0)) == (1.0, 0.0, 0.0, 0.0)
    bits = "".join(sine(n / 7).hex() for n in range(0, 1260, 9))
    assert hashlib.sha256(bits.encode()).hexdigest()[:16] == "3f83e3d48c6e4070"


@settings(max_examples=1000, deadline=None)
@given(LATS, LONS, LATS, LONS, st.floats(0, METRES_MAX))
def test_a_circle_is_what_is_near_and_lies_in_its_box(
    lat: float, lon: float, other: float, another: float, reach: float
) -> None:
    centre, place = Place(lat, lon), Place(other, another)
    far = metres((lat, lon), (other, another))
    for radius in (reach, min(METRES_MAX, far), max(0.0, far - 1), min(METRES_MAX, far + 1)):
        circle = Circle(centre, radius)
        if abs(far - radius) > 0.9:
            assert circle.holds(place) is (far < radius)
        if circle.holds(place):
            assert circle.around().holds(place), circle.around()
    assert Circle(centre, 0).holds(centre) and Circle(centre, METRES_MAX).holds(place)


def test_the_line_of_180_degrees_and_the_poles() -> None:
    assert Circle(Place(0, 180), 0).holds(Place(0, -180)) and Circle(Place(90, 5), 0).holds(Place(90, -170))
    half = math.pi * EARTH_METRES
    assert half < METRES_MAX and Circle(Place(90, 0), half).holds(Place(-90, 3))
    whole = Box(-90, -180, 90, 180)
    assert all(whole.holds(Place(lat, lon)) for lat in (-90, 0, 90) for lon in (-180, 0, 180))
    for west, east in ((180, 180), (-180, -180), (180, -180), (170, 180), (-180, -170), (179, -179)):
        box = Box(-1, west, 1, east)
        assert box.holds(Place(0, 180)) and box.holds(Place(0, -180)) and not box.holds(Place(0, 0)), box
    assert Circle(Place(0, 179.999), 1000).around().east < 0


def test_what_is_a_place() -> None:
    assert place_of({"lat": 1, "lon": -2.5, "name": "x"}) == Place(1.0, -2.5)
    for wrong in ({"lat": 1}, {"lat": 90.1, "lon": 0}, {"lat": 1, "lon": 1e400}, {"lat": None, "lon": 1}, [1, 2], "1"):
        assert place_of(wrong) is None
