"""`pytest -p needle.sim.mutants.pytest_plugin` with NEEDLE_MUTANT=<name>: plants the bug before tests are collected."""

from __future__ import annotations

import os

from needle.sim.mutants.catalog import MUTANTS
from needle.sim.mutants.planting import plant


def pytest_configure(config: object) -> None:
    """Raises KeyError for an unknown name and PlantingFailed: pytest ends with an internal error, not with failures."""
    plant(MUTANTS[os.environ["NEEDLE_MUTANT"]])
