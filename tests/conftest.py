"""What every test gets: the log levels it found, whatever the programs did that it ran in this process."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Simulation and chaos silence the product's logs for their process."""
    log = logging.getLogger("needle")
    before = log.level
    yield
    log.setLevel(before)
