"""What a key may ask of a node in a second: what passes, what waits, and for how long."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from needle.base.errors import InvalidArgument, Overloaded, TooManyRequests
from needle.base.rates import Meter, Rates, check_rates
from needle.client.waiting import waited_for


def refused(meter: Meter, now: float) -> float:
    with pytest.raises(TooManyRequests) as error:
        meter.admit(now)
    assert isinstance(error.value, Overloaded)
    assert error.value.retryable
    return float(str(error.value.details["wait"]))


def test_requests_pass_by_the_rate_with_one_second_at_once() -> None:
    meter = Meter(Rates(requests=5))
    for _ in range(5):
        meter.admit(100.0)
    assert refused(meter, 100.0) == pytest.approx(0.001)
    meter.admit(100.1)
    assert refused(meter, 100.1) == pytest.approx(0.1)
    assert meter.refused == {"requests": 2, "documents": 0, "bytes": 0}
    for _ in range(5):
        meter.admit(1000.0)  # a day of rest is worth one second, too
    refused(meter, 1000.0)


@pytest.mark.parametrize(("rates", "paid", "limit"), [(Rates(documents=10), (100, 0), "documents"),
                                                      (Rates(bytes=10), (0, 100), "bytes")])  # fmt: skip
def test_what_is_larger_than_a_second_passes_and_is_waited_for(rates: Rates, paid: tuple[int, int], limit: str) -> None:
    meter = Meter(rates)
    meter.admit(0.0)
    meter.pay(*paid)
    assert refused(meter, 0.0) == pytest.approx(9.0)
    assert refused(meter, 8.0) == pytest.approx(1.0)
    assert meter.refused[limit] == 2
    meter.admit(9.5)


def test_a_rate_below_one_a_second_lets_one_through() -> None:
    meter = Meter(Rates(requests=0.1))
    meter.admit(0.0)
    refused(meter, 0.0)
    meter.admit(1.0)
    assert refused(meter, 2.0) == pytest.approx(8.0)


def test_other_rates_hold_at_once_and_forgive() -> None:
    meter = Meter(Rates(bytes=1))
    meter.admit(5.0)
    meter.pay(0, 10**9)
    refused(meter, 5.0)
    meter.change(Rates(requests=2))
    meter.admit(5.0)
    meter.pay(0, 10**9)
    meter.admit(5.0)
    refused(meter, 5.0)


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    meter = Meter(Rates(requests=1))
    meter.admit(10.0)
    for now in (10.0, 9.0, -math.inf):
        refused(meter, now)


@given(st.floats(0.1, 1e6), st.lists(st.tuples(st.floats(0, 5), st.integers(0, 10**6)), max_size=60))
def test_never_more_than_the_rate_and_one_request(rate: float, requests: list[tuple[float, int]]) -> None:
    meter, now, paid, last = Meter(Rates(documents=rate)), 0.0, 0, 0
    for pause, documents in requests:
        now += pause
        try:
            meter.admit(now)
        except TooManyRequests as error:
            wait = float(str(error.details["wait"]))
            assert wait <= paid / rate + 0.001
        else:
            meter.pay(documents, 0)
            paid, last = paid + documents, documents
        assert paid <= max(1.0, rate) + rate * now + max(last, max((d for _, d in requests), default=0)) + 1e-6 * paid


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e13])
def test_rates_that_are_none_are_refused(value: float) -> None:
    for name in ("requests", "documents", "bytes"):
        with pytest.raises(InvalidArgument, match=name):
            check_rates(Rates(**{name: value}))


def test_who_has_no_time_to_wait_is_told_at_once() -> None:
    error = TooManyRequests("no", wait=0.5)
    assert waited_for(error, 1.0) == 0.5
    with pytest.raises(TooManyRequests):
        waited_for(error, 0.4)
    assert waited_for(TooManyRequests("of another release"), 2.0) == 1.0
