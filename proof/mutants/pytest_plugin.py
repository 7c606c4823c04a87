"""`pytest -p proof.mutants.pytest_plugin` with NEEDLE_MUTANT=<name>: plants the bug before tests are collected."""

from __future__ import annotations

import os

from proof.mutants.catalog import MUTANTS
from proof.mutants.planting import plant


def pytest_configure(config: object) -> None:
    """Raises KeyError for an unknown name and PlantingFailed: pytest ends with an internal error, not with failures."""
    plant(MUTANTS[os.environ["NEEDLE_MUTANT"]])
