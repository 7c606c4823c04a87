"""What the simulated operator may do: the product promises nothing to a group that its operator takes apart."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.errors import DeadlineExceeded, NeedleError, OutcomeUnknown
from proof.sim import administration
from proof.sim.administration import end_maintenance
from proof.sim.assigning import keeps_quorum
from proof.sim.disk_faults import DiskFaults


@pytest.mark.parametrize(
    ("voters", "rotten", "kept"),
    [
        (["n2", "n3"], set(), True),
        (["n2", "n3"], {"n2"}, False),  # seed 1855 of 2026-11-23: n1 was removed, then n2 could not start any more
        (["n2", "n3"], {"n1"}, True),
        (["n1", "n2", "n3"], {"n2"}, True),
        (["n1", "n2", "n3"], {"n2", "n3"}, False),
    ],
)
def test_what_remains_has_a_majority_of_good_disks(voters: list[str], rotten: set[str], kept: bool) -> None:
    assert keeps_quorum(voters, rotten) is kept


@pytest.mark.parametrize(("shares_with", "replaceable"), [({"n1", "n2"}, True), (set(), False)])
def test_disks_are_replaced_only_where_others_have_heard_of_them(shares_with: set[str], replaceable: bool) -> None:
    """A node whose replicas all went elsewhere told nobody anything: an older copy of its disks cannot be noticed."""
    fleet: Any = SimpleNamespace(
        spoilt=set(),
        retired=set(),
        machines={"n5": SimpleNamespace(process=object())},
        is_remembered=lambda name, others: True,
    )
    controls: Any = SimpleNamespace(
        may_lose=lambda name: True, finds_others=lambda name: True, sharing=lambda name: shares_with
    )
    unused: Any = SimpleNamespace()
    faults = DiskFaults(1, fleet, controls, unused, Counter())
    assert faults._is_replaceable("n5") is replaceable


async def test_the_end_of_maintenance_is_said_again_until_it_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(administration, "REPEAT_SECONDS", 0.0)
    failures: list[NeedleError] = [DeadlineExceeded("silent"), OutcomeUnknown("its leader is gone")]

    async def leave(name: str, timeout: float) -> None:
        if failures:
            raise failures.pop()

    await end_maintenance(leave, "n1", lambda: False)
    assert not failures
    failures.append(DeadlineExceeded("silent"))
    await end_maintenance(leave, "n1", lambda: True)
    assert failures, "a node that is gone is told nothing"
