"""How fast moves copy, as the coordinator sees them: the rebalance that runs, lately; and the latest moves, by which
the next plan says how long it takes.

Invariants: of the latest moves one counts from one look in which it copies to the next such look, once something has
come, so nothing of its other phases is in it, nor that it waited for its turn, nor are the pauses that a rebalance
makes. Bounded: what runs, and the last few moves of each kind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from needle.base.ids import NodeId
from needle.routing.copy_rates import CopyRates
from needle.routing.jobs import Job, JobState, Phase, Running
from needle.routing.pace import pauses
from needle.routing.planned_moves import MoveReplicas
from needle.server.upkeep.getting_on import STILL_SECONDS

LATELY_SECONDS: Final = 30.0
MOVES: Final = 16
"""The latest ones of a kind."""
SECONDS_MIN: Final = 2.0
"""A move that was seen to copy for less says nothing: a look comes twice a second."""
BUSY_MIN: Final = 0.05
"""Of that time. What pauses nearly always shows little of how fast it could copy."""


class Lately:
    """How fast the rebalance that runs has copied in the last LATELY_SECONDS, pauses included."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        """(when, bytes copied by then)."""
        self._job = 0
        """The rebalance that they are of."""

    def rate(self, job: Job, running: Sequence[Running], now: float) -> float:
        """Bytes a second; noted now. now: seconds."""
        samples = self._samples
        if self._job != job.id:
            samples.clear()
            self._job = job.id
        samples.append((now, job.moved_bytes + sum(one.copied for one in running)))
        while now - samples[0][0] > LATELY_SECONDS:
            samples.popleft()
        (since, before), (until, after) = samples[0], samples[-1]
        return max(0, after - before) / (until - since) if until > since else 0.0


@dataclass
class _Seen:
    """A move that copies. at, copied: of the last look. came: when something new came last. amount: of bytes to each
    new replica, or documents of key ranges, in `seconds`, of which the pauses took `rests`."""

    replicas: bool
    at: float
    copied: int
    came: float
    amount: float = 0.0
    seconds: float = 0.0
    rests: float = 0.0


class LearnedRates:
    """See the module; a successor begins again."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._replicas: deque[tuple[float, float]] = deque(maxlen=MOVES)
        self._ranges: deque[tuple[float, float]] = deque(maxlen=MOVES)
        """(amount, seconds without pauses) of each move."""

    def look(self, job: Job, running: Sequence[Running], now: float) -> None:
        """running: of `job`, with how far they are. now: seconds."""
        goes_on = job.state is not JobState.PAUSED  # what is paused is not slow
        copying = {one.id: one for one in running if one.phase is Phase.COPY and one.move.bytes and goes_on}
        for id_ in self._seen.keys() - copying.keys():
            self._end(self._seen.pop(id_))
        rested = self._rested(job, copying)
        for id_, one in copying.items():
            seen = self._seen.get(id_)
            if seen is None or not seen.copied or one.copied < seen.copied or now - seen.came > STILL_SECONDS:
                self._seen[id_] = _Seen(isinstance(one.move, MoveReplicas), now, one.copied, now)
                continue
            amount = _amount(one, one.copied - seen.copied)
            own = pauses(amount, job.config)
            seen.rests += max(rested.get(node, 0.0) for node in one.nodes) if seen.replicas else own
            seen.amount += amount
            seen.seconds += now - seen.at
            seen.came = now if amount else seen.came
            seen.at, seen.copied = now, one.copied

    def rates(self) -> CopyRates:
        """What they have shown."""
        return CopyRates(replica_bytes=_rate(self._replicas), range_documents=_rate(self._ranges))

    def _rested(self, job: Job, copying: Mapping[int, Running]) -> dict[NodeId, float]:
        """Seconds that each node rested since the last look: all replicas that it fetches share these rests."""
        found: dict[NodeId, float] = {}
        for id_, one in copying.items():
            seen = self._seen.get(id_)
            if seen is not None and seen.replicas:
                part = max(0, one.copied - seen.copied) / one.move.bytes
                for node in one.nodes:
                    rest = pauses(part * one.move.documents / len(one.nodes), job.config)
                    found[node] = found.get(node, 0.0) + rest
        return found

    def _end(self, seen: _Seen) -> None:
        if seen.seconds >= SECONDS_MIN and seen.amount:
            busy = max(seen.seconds - seen.rests, BUSY_MIN * seen.seconds)
            (self._replicas if seen.replicas else self._ranges).append((seen.amount, busy))


def _amount(one: Running, copied: int) -> float:
    """Of so many bytes of a move, in what its rate is told: bytes to each new replica, or documents of key ranges."""
    if isinstance(one.move, MoveReplicas):
        return copied / max(1, len(one.nodes))
    return one.move.documents * copied / one.move.bytes


def _rate(ended: Sequence[tuple[float, float]]) -> float | None:
    return sum(amount for amount, _ in ended) / sum(seconds for _, seconds in ended) if ended else None
