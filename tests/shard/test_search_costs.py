"""What searches take is followed up and down, whatever runs beside them, and sharing is tried again."""

from __future__ import annotations

import pytest

from needle.shard.search_costs import KEPT, SHARED_EVERY, WHOLE_EVERY, SearchCosts

LONG = 20 * SHARED_EVERY
"""Searches after which everything is known."""


def search(costs: SearchCosts, seconds: float, dearer: float) -> bool:
    """One search that idle threads may share, of which a replica takes so long alone. Whether it was shared."""
    shared = costs.shares()
    for _ in range(2 if shared else 1):
        costs.note(seconds * dearer if shared else seconds, alone=not shared)
    return shared


def shared(costs: SearchCosts, seconds: float, dearer: float, count: int = SHARED_EVERY * WHOLE_EVERY) -> float:
    """Of so many searches, the share that was shared."""
    return sum(search(costs, seconds, dearer) for _ in range(count)) / count


def test_until_it_is_known_searches_are_shared_but_for_a_few_that_tell_what_they_take_alone() -> None:
    costs = SearchCosts()
    assert costs.pays and shared(costs, 1.0, 1.0, WHOLE_EVERY) == 1 - 1 / WHOLE_EVERY


@pytest.mark.parametrize(("dearer", "share"), [(1.1, 1 - 1 / WHOLE_EVERY), (1.6, 1 / SHARED_EVERY)])
def test_what_takes_much_longer_beside_others_is_not_shared_but_for_a_few(dearer: float, share: float) -> None:
    costs = SearchCosts()
    shared(costs, 1.0, dearer, LONG)
    assert shared(costs, 1.0, dearer) == share and costs.pays is (dearer < 1.3)


@pytest.mark.parametrize("factor", [0.05, 20.0])
@pytest.mark.parametrize(("before", "after"), [(1.6, 1.1), (1.1, 1.6), (1.1, 1.1), (1.6, 1.6)])
def test_what_was_learned_does_not_last_when_searches_change(before: float, after: float, factor: float) -> None:
    """Both ways: there are more rows or fewer, and sharing pays now, or no more."""
    costs = SearchCosts()
    shared(costs, 1.0, before, LONG)
    shared(costs, factor, after, 6 * KEPT)
    assert costs.takes == pytest.approx(factor, rel=1.0)  # soon: of the longer ones, those beside others count, too
    shared(costs, factor, after, LONG)
    assert costs.pays is (after < 1.3)


@pytest.mark.parametrize("factor", [0.05, 20.0])
def test_what_searches_take_is_followed_though_no_job_ever_runs_alone(factor: float) -> None:
    costs = SearchCosts()
    shared(costs, 1.0, 1.6, LONG)
    for _ in range(6 * KEPT):
        costs.note(factor * 1.6, alone=False)
    assert costs.takes == pytest.approx(factor * 1.6, rel=0.1)


def test_what_searches_take_is_known_from_the_first_job_on() -> None:
    costs = SearchCosts()
    for jobs in range(1, KEPT):
        costs.note(1.0, alone=jobs % 2 == 0)
        assert costs.takes == pytest.approx(1.0)


def test_the_first_job_of_a_kind_is_no_measure() -> None:
    costs = SearchCosts()
    for alone in (True, False):
        costs.note(1000.0 if alone else 1.0, alone=alone)
        for _ in range(KEPT):
            costs.note(1.0 if alone else 1.6, alone=alone)
    assert not costs.pays
