"""Random metadata and random filters for hypothesis, the filters made from the table of operators."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from needle.base.filters.operators import OPERATORS, Of, Operand

INSTANTS = (
    "2024-01-01T00:00:00Z",
    "2024-01-01T00:00:00+00:00",
    "2024-01-01 01:00:00.000+01:00",
    "2023-12-31t19:00:00.0000001-05:00",
    "2024-01-01T00:00:00.00000015z",
    "2024-01-01T00:00:00.5Z",
    "1969-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59.999Z",
)
NO_INSTANTS = ("2024-01-01T00:00:00", "2024-01-01", "2024-13-01T00:00:00Z", "2024-01-01T00:00:00+24:00")
IDS = tuple(f"d{n:02}" for n in range(30))
"""Of documents that the tests make; filters name some of these."""
LONG = "https://example.org/a/path/that/many/documents/share/and/that/is/long/"

numbers = st.integers(-2, 2) | st.sampled_from(
    [2**53, 2**53 + 1, float(2**53), 2**63 - 1, 2**63, 2**64 - 1, float(2**63), -(2**63), 0.5, 1.0, -0.0, 1e300, -1e300]
)
texts = st.sampled_from(
    ["", "a", "ab", "abc", "b", "é", "\U0001f600", "\x00", "a\x00", "a\x00b", "x" * 64, "x" * 65]
) | (st.sampled_from([LONG, LONG + "1", LONG + "2", LONG + "2" * 40, LONG[:47], LONG[:50], *NO_INSTANTS]))
scalars = st.none() | st.booleans() | numbers | texts | st.sampled_from(INSTANTS)
stored_numbers = st.sampled_from([2**64, 10**30, 10**400, -(2**63) - 1])
lats = st.sampled_from([-90, -89.5, -1, 0, 0.5, 52.52, 89.5, 90]) | st.integers(-9000, 9000).map(lambda n: n / 100)
lons = st.sampled_from([-180, -179.5, -1, 0, 13.4, 179.5, 180]) | st.integers(-18000, 18000).map(lambda n: n / 100)
places = st.fixed_dictionaries({"lat": lats, "lon": lons}) | st.sampled_from(
    [{"lat": 91, "lon": 0}, {"lat": 0, "lon": 180.5}, {"lat": "0", "lon": 0}, {"lat": True, "lon": 0}, {"lat": 0}]
)
trees = st.recursive(
    scalars | stored_numbers | places,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=6,
)
documents = st.none() | scalars | st.dictionaries(st.sampled_from(["a", "b", "c", "straße"]), trees, max_size=3)
paths = st.sampled_from(["a", "b", "a.b", "a.a.b", "c", "straße", "straße.b", "absent", "absent.a"])

dates = st.sampled_from(INSTANTS).map(lambda text: {"$date": text})
OPERANDS: dict[Operand, st.SearchStrategy[Any]] = {
    Operand.VALUE: scalars | dates,
    Operand.ORDERED: numbers | texts | dates,
    Operand.TEXT: texts | st.sampled_from(["https://", "2024", LONG[:60]]),
    Operand.FLAG: st.booleans(),
    Operand.VALUES: st.lists(scalars | dates, max_size=3),
    Operand.PAIR: st.tuples(numbers, numbers) | st.tuples(texts, texts) | st.tuples(dates, dates),
    Operand.LENGTH: st.integers(0, 3) | st.sampled_from([{"$gte": 1}, {"$gt": 1, "$lt": 4}, {"$lte": 2}, {"$lt": 1}]),
    Operand.ELEMENT: st.deferred(lambda: of_elements),
    Operand.IDS: st.lists(st.sampled_from(IDS), max_size=4),
    Operand.CIRCLE: st.builds(
        lambda lat, lon, metres: {"centre": {"lat": lat, "lon": lon}, "metres": metres},
        lats,
        lons,
        st.sampled_from([0, 1_000, 120_000, 1e6, 9e6, 2e7]),
    ),
    Operand.BOX: st.builds(
        lambda one, other, west, east: {"south": min(one, other), "west": west, "north": max(one, other), "east": east},
        lats,
        lats,
        lons,
        lons,
    ),
}


@st.composite
def leaves(draw: st.DrawFn, of: tuple[Of, ...] = tuple(Of)) -> dict[str, Any]:
    operator = draw(st.sampled_from([one for one in OPERATORS.values() if one.of in of]))
    operand = draw(OPERANDS[operator.operand])
    return {operator.name: operand} if operator.of is Of.ID else {draw(paths): {operator.name: operand}}


def joined(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.builds(lambda parts: {"$and": parts}, st.lists(inner, min_size=1, max_size=3)),
            st.builds(lambda parts: {"$or": parts}, st.lists(inner, min_size=1, max_size=3)),
            st.builds(lambda part: {"$not": part}, inner),
        ),
        max_leaves=5,
    )


conditions = joined(leaves())
of_elements = joined(leaves((Of.SCALARS, Of.ENDS))) | st.lists(
    leaves((Of.SCALARS,)).map(lambda leaf: next(iter(leaf.values()))), min_size=1, max_size=2
).map(lambda parts: {op: value for part in parts for op, value in part.items()})
