"""What the simulated operator may do: the product promises nothing to a group that its operator takes apart."""

import pytest

from proof.sim.administration import keeps_quorum


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
