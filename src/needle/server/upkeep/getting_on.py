"""Whether a rebalance gets on, and for how long it has waited, as the node sees it that carries it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from needle.routing.jobs import Job, Phase, Running

STILL_SECONDS: Final = 60.0
"""What has not changed for so long does not get on: how much was copied is told in large pieces now and then."""


class GettingOn:
    """What this coordinator has seen of the moves; a successor begins again."""

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


class Waiting:
    """For how long the rebalance that this node carries out has said that it waits; a successor begins again."""

    def __init__(self) -> None:
        self._since: tuple[int, float] | None = None
        """The rebalance, and the seconds at which it was seen to wait, or not."""
        self._waits = False

    def look(self, job: Job | None, leads: bool, now: float) -> None:
        """Now and then. leads: whether this node carries it out."""
        if job is None or job.over or not leads:
            self._since, self._waits = None, False
        elif self._since is None or self._since[0] != job.id or self._waits != bool(job.why):
            self._since, self._waits = (job.id, now), bool(job.why)

    def seconds(self, now: float) -> float | None:
        """None: this node carries none out."""
        if self._since is None:
            return None
        return now - self._since[1] if self._waits else 0.0
