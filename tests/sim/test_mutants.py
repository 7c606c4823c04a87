"""The planted bugs still fit the product: a refactoring must not disarm one in silence."""

import pytest

from needle.sim.mutants.catalog import MUTANTS
from needle.sim.mutants.planting import Edit, Mutant, PlantingFailed, check_plantable


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bug_can_be_planted(name: str) -> None:
    check_plantable(MUTANTS[name])


def test_a_bug_that_does_not_fit_is_refused() -> None:
    gone = Mutant(name="gone", breaks="", edits=(Edit("multiraft.host:Host.submit", "no such piece", "pass"),))
    with pytest.raises(PlantingFailed, match="0 times, not once"):
        check_plantable(gone)
