"""What nodes of this process have told in their logs."""

from __future__ import annotations

from typing import Any

import pytest


def told(caplog: pytest.LogCaptureFixture, kind: str) -> list[dict[str, Any]]:
    """The fields of each event of a kind; `caplog.set_level("INFO", "needle")` before."""
    return [vars(record) for record in caplog.records if vars(record).get("kind") == kind]
