"""Nothing that has to know every operator lacks one, and each means what docs/filters.md says."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base import filter_reference, filter_strategies
from base.test_filters import CASES
from needle.base.errors import InvalidArgument
from needle.base.filters import builder as filters
from needle.base.filters import operands
from needle.base.filters.builder import Filter
from needle.base.filters.operators import OPERATORS, Of, Operand, Operator
from needle.base.instants import instant_key

UTC = timezone.utc  # noqa: UP017
DOCS = Path(__file__).parents[2] / "docs" / "filters.md"
WRITTEN = {
    Operand.VALUE: ("v", "v"),
    Operand.ORDERED: ("v", "v"),
    Operand.TEXT: ("v", "v"),
    Operand.FLAG: ("True", "true"),
    Operand.VALUES: ("values", "[...]"),
    Operand.PAIR: ("low, high", "[low, high]"),
    Operand.LENGTH: ("n", "n"),
    Operand.ELEMENT: ("condition", "condition"),
    Operand.IDS: ("ids", "[...]"),
    Operand.CIRCLE: ("centre, metres", '{"centre": c, "metres": m}'),
    Operand.BOX: ("south, west, north, east", "box"),
}
SAMPLES: dict[Operand, Any] = {
    Operand.VALUE: 1,
    Operand.ORDERED: 1,
    Operand.TEXT: "a",
    Operand.FLAG: True,
    Operand.VALUES: [1],
    Operand.PAIR: [1, 2],
    Operand.LENGTH: 1,
    Operand.ELEMENT: {"a": {"$eq": 1}},
    Operand.IDS: ["a"],
    Operand.CIRCLE: {"centre": {"lat": 52.5, "lon": 13.4}, "metres": 1000},
    Operand.BOX: {"south": -1, "west": 170, "north": 1, "east": -170},
}


def test_the_page_for_users_has_each_operator_as_the_table_says() -> None:
    rows = []
    for one in OPERATORS.values():
        python, json = WRITTEN[one.operand]
        written = f"f, {python}", f'{{f: {{"{one.name}": {json}}}}}'
        if one.of is Of.ID:
            written = python, f'{{"{one.name}": {json}}}'
        rows.append(f"| `Filter.{one.builder}({written[0]})` | `{written[1]}` | {one.means} |")
    assert "\n".join(["| builder | dict form | holds when |", "|---|---|---|", *rows, ""]) in DOCS.read_text()


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=lambda one: one.name)
def test_each_operator_is_whole(operator: Operator) -> None:
    value = SAMPLES[operator.operand]
    arguments = list(value.values()) if operator.operand in (Operand.CIRCLE, Operand.BOX) else [value]
    arguments = value if operator.operand is Operand.PAIR else arguments
    of_id = operator.of is Of.ID

    def written(operand: Any) -> dict[str, Any]:
        return {operator.name: operand} if of_id else {"f": {operator.name: operand}}

    built = getattr(Filter, operator.builder)(*([] if of_id else ["f"]), *arguments)
    assert built.to_dict() == written(value)
    assert Filter.from_json(built.to_json()) == built and built.since == operator.since
    with pytest.raises(InvalidArgument, match=re.escape(operator.name)):
        Filter.parse(written(object()))
    assert operator.name in filter_reference.EACH, "the tests' own evaluator lacks it"
    for expected in (True, False):
        found = [case for case, holds in CASES if holds is expected and f"'{operator.name}'" in str(case)]
        assert found or operator.name == "$eq", f"no documented case of {operator.name} that is {expected}"


def test_nothing_knows_an_operator_or_operand_that_is_not_in_the_table() -> None:
    assert filter_reference.EACH.keys() == OPERATORS.keys()
    assert {*filters.COMPARISONS, filters.IDS} == OPERATORS.keys()
    of_filters = {Operand.ELEMENT: "a filter, which the builder reads"}
    for table in (operands.PARSERS | of_filters, filter_strategies.OPERANDS, WRITTEN, SAMPLES):
        assert set(table) == set(Operand)


@settings(max_examples=400, deadline=None)
@given(filter_strategies.conditions, st.lists(filter_strategies.documents, min_size=1, max_size=5))
def test_the_evaluation_agrees_with_a_plain_reading_of_the_docs(condition: dict[str, Any], metadata: list[Any]) -> None:
    try:
        parsed = Filter.parse(condition)
    except InvalidArgument as error:
        assert "$date" in error.message or "both" in error.message  # ordering by text that is an instant
        return
    again = Filter.from_json(parsed.to_json())
    for one in metadata:
        id_ = filter_strategies.IDS[len(str(one)) % 5]
        assert parsed.matches(one, id_) is filter_reference.matches(condition, one, id_) is again.matches(one, id_)


# --- instants --------------------------------------------------------------------------------------------------------
SAME = (
    "2024-01-01T00:00:00Z",
    "2024-01-01T00:00:00+00:00",
    "2023-12-31 19:00:00.000-05:00",
    "2024-01-01t00:00:00-00:00",
)


@pytest.mark.parametrize("stored", SAME)
@pytest.mark.parametrize("asked", [*({"$date": text} for text in SAME), datetime(2024, 1, 1, tzinfo=UTC)], ids=str)
def test_an_instant_matches_however_it_was_written(stored: str, asked: Any) -> None:
    document = {"at": stored, "many": ["x", stored]}
    for field in document:
        for op in ("$eq", "$gte", "$lte"):
            assert Filter.parse({field: {op: asked}}).matches(document)
        assert Filter.parse({field: asked}).matches(document)
        assert Filter.between(field, asked, asked).matches(document) and Filter.in_(field, [asked]).matches(document)
        for op in ("$gt", "$lt", "$ne"):
            assert not Filter.parse({field: {op: asked}}).matches(document)


@pytest.mark.parametrize("op", ["$gt", "$gte", "$lt", "$lte", "$between"])
@pytest.mark.parametrize("text", SAME)
def test_ordering_by_a_plain_string_that_is_an_instant_is_refused_with_the_form_to_write(op: str, text: str) -> None:
    value = [text, "3"] if op == "$between" else text
    with pytest.raises(InvalidArgument) as caught:
        Filter.parse({"at": {op: value}})
    assert f'{{"$date": "{text}"}}' in caught.value.message and "at" in caught.value.message


NO_ZONE = (
    "2024-01-01T00:00:00",
    "2024-01-01 00:00:00",
    "2024-01-01t00:00:00.123",
    "2024-01-01T00:00",
    "2024-01-01T24:61:99",
)
NO_SECONDS = ("2024-01-01T00:00Z", "2024-01-01T00:00+01:00", "2024-01-01T00:00:00+0100", "2024-01-01 00:00:00 Z")


@pytest.mark.parametrize("op", ["$gt", "$gte", "$lt", "$lte", "$between"])
@pytest.mark.parametrize("text", [*NO_ZONE, *NO_SECONDS])
def test_ordering_by_a_date_time_that_is_no_instant_is_refused_too(op: str, text: str) -> None:
    for value in [[text, "3"], ["0", text]] if op == "$between" else [text]:
        with pytest.raises(InvalidArgument, match="seconds and a zone") as caught:
            Filter.parse({"at": {op: value}})
        assert repr(text) in caught.value.message and f"filter at {op}" in caught.value.message
    assert Filter.parse({"at": text}).matches({"at": text})  # equality stays equality of text


def test_days_and_prefixes_are_ordered_as_text() -> None:
    days = Filter.between("day", "2024-01-01", "2024-01-31")
    assert days.matches({"day": "2024-01-31"}) and not days.matches({"day": "2024-02-01"})
    assert not days.matches({"day": "2024-01-31T00:00:00Z"})  # as docs/filters.md says
    for prefix in ("2024", "2024-01", "2024-01-01T10", "24-01-01T00:00:00"):
        assert Filter.gte("at", prefix).matches({"at": prefix + "0"})


BAD_INSTANTS: list[Any] = [
    {"$date": "2024-01-01"},
    {"$date": "2024-01-01T00:00:00"},
    {"$date": "2024-02-30T00:00:00Z"},
    {"$date": 5},
    {"$date": None},
    {"$date": "2024-01-01T00:00:00Z", "$gt": 1},
    datetime(2024, 1, 1),
    date(2024, 1, 1),
    time(1, tzinfo=UTC),
]


@pytest.mark.parametrize("value", BAD_INSTANTS, ids=str)
@pytest.mark.parametrize("shape", [lambda v: {"at": v}, lambda v: {"at": {"$gte": v}}, lambda v: {"at": {"$in": [v]}}])
def test_what_is_no_instant_is_refused_by_name(value: Any, shape: Any) -> None:
    with pytest.raises(InvalidArgument, match="at"):
        Filter.parse(shape(value))


@given(
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)),
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)),
    st.integers(-1439, 1439),
)
def test_instants_order_as_datetimes_do(one: datetime, other: datetime, offset: int) -> None:
    zone = timezone(timedelta(minutes=offset))
    first, second = one.replace(tzinfo=UTC), other.replace(tzinfo=zone)
    a, b = instant_key(first.isoformat()), instant_key(second.isoformat(sep=" "))
    assert a is not None and b is not None
    assert (a < b, a == b) == (first < second, first == second)
    assert instant_key(first.astimezone(zone).isoformat()) == a


def test_leap_seconds_and_leap_days() -> None:
    assert instant_key("2016-12-31T23:59:60Z") == instant_key("2017-01-01T00:00:00Z")
    assert instant_key("2016-12-31T18:59:60-05:00") == instant_key("2017-01-01T00:00:00Z")
    assert instant_key("2016-12-31T22:59:60Z") is None
    assert instant_key("2000-02-29T00:00:00Z") is not None
    assert instant_key("1900-02-29T00:00:00Z") is None
    assert instant_key("0000-02-29T00:00:00Z") is not None
    assert instant_key("２０２４-01-01T00:00:00Z") is None
