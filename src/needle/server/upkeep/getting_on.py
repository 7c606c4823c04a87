"""Whether a rebalance gets on, as the node sees it that carries it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from needle.routing.jobs import Phase, Running

STILL_SECONDS: Final = 60.0
"""What has not changed for so long does not get on: how much was copied is told in large pieces now and then."""


class GettingOn:
    """What this coordinator has seen of the moves; a successor begins anew."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Phase, int]] = {}
        self._at = 0.0

    def look(self, running: Sequence[Running], now: float) -> bool:
        """Whether any of the moves has got on within STILL_SECONDS. now: seconds."""
        seen = {one.id: (one.phase, one.copied) for one in running}
        if any(self._seen.get(id_) != what for id_, what in seen.items()):
            self._at = now
        self._seen = seen
        return bool(seen) and now - self._at < STILL_SECONDS
