"""What is said of a rebalance that is not over to who asks for what would need another one."""

from __future__ import annotations

import pytest

from needle.base.errors import InvalidArgument
from needle.routing.jobs import OVER, Job, JobState, RebalanceConfig, check_over
from needle.routing.plans import Wish


def refused(state: JobState, healing: bool = False) -> str:
    """What a caller is told while a rebalance is so."""
    with pytest.raises(InvalidArgument) as caught:
        check_over(Job(id=7, wish=Wish(), config=RebalanceConfig(), state=state, healing=healing))
    assert caught.value.details == {"field": "rebalance"} and not caught.value.retryable
    return caught.value.message


@pytest.mark.parametrize("state", sorted(set(JobState) - OVER))
def test_who_has_to_wait_is_told_for_what_and_how_to_look_at_it(state: JobState) -> None:
    said = refused(state)
    assert "rebalance 7 " in said and "`needle rebalance --status`" in said
    assert ("`needle rebalance --cancel`" in said) is (state is not JobState.CANCELLING)
    assert ("`needle rebalance --resume`" in said) is (state is JobState.PAUSED)


def test_one_that_nobody_asked_for_is_told_as_such() -> None:
    assert "the cluster began by itself because nodes are gone" in refused(JobState.RUNNING, healing=True)


@pytest.mark.parametrize("state", sorted(OVER))
def test_one_that_is_over_keeps_nobody(state: JobState) -> None:
    check_over(Job(id=7, wish=Wish(), config=RebalanceConfig(), state=state))
    check_over(None)
