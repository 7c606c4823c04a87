"""How long a caller waits that was refused for now."""

from __future__ import annotations

from needle.base.errors import TooManyRequests


def waited_for(error: TooManyRequests, left: float) -> float:
    """How many seconds whoever was refused so has to wait. Raises the error if there are only `left`."""
    wait = error.details.get("wait")
    seconds = float(wait) if isinstance(wait, int | float) and wait > 0 else 1.0
    if seconds >= left:
        raise error
    return seconds
