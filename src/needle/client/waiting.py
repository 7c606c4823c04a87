"""How long a caller waits that was refused for now."""

from __future__ import annotations

from needle.base.errors import TooManyRequests


def wait_of(error: TooManyRequests) -> float:
    """How many seconds whoever was refused so has to wait."""
    wait = error.details.get("wait")
    return float(wait) if isinstance(wait, int | float) and wait > 0 else 1.0


def waited_for(error: TooManyRequests, left: float) -> float:
    """The same. Raises the error if there are only `left`."""
    seconds = wait_of(error)
    if seconds >= left:
        try:
            raise error
        finally:
            del error  # its traceback holds this frame
    return seconds
