"""Commands in tests: what the fixture `run` is, and waiting for what one shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Run = Callable[..., str]
"""Runs a command of these words; what it prints. expect: its exit code, None for any."""


def until(holds: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first truthy answer of `holds`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, "not in time"
    return found
