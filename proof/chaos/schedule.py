"""Which faults a chaos run injects, drawn from the seed before the run begins. Pure.

The order of the faults is the seed's; when exactly each meets the processes is the machine's. Durations are election
timeouts, so that a slower cluster gets the same run. It must not know processes or clients.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec

from proof.sim.machine import stream

KINDS = {
    "kill": 16,
    "kill-minority": 5,
    "pause": 14,
    "isolate": 10,
    "silence": 10,
    "one-way": 7,
    "cut-link": 6,
    "slow-link": 5,
    "disk-full": 6,
    "step-down": 8,
    "force-election": 5,
    "maintenance": 5,
    "kill-all": 2,
    "kill-catalog": 8,
    "lose-shard": 6,
    "cut-router": 12,
    "move": 6,
}
"""Weight of each kind of fault; injector.py says what they are."""
TARGETS = ("leader", "leader", "follower", "any")
TOGETHER_CHANCE = 0.2
LONELY = (
    *("kill-minority", "kill-all", "disk-full", "step-down", "force-election", "maintenance"),
    *("kill-catalog", "lose-shard", "move"),
)
"""Kinds that come alone: the others may come in pairs."""


class Fault(msgspec.Struct, frozen=True):
    """One fault. target: leader, follower or any, resolved when it begins. timeouts: how long it lasts, in election
    timeouts. amount: 0..1, how bad."""

    number: int
    kind: str
    target: str
    timeouts: float
    amount: float

    def __str__(self) -> str:
        return f"{self.number}: {self.kind} on {self.target} for {self.timeouts:.1f} timeouts"


class Round(msgspec.Struct, frozen=True):
    """Faults that begin together. calm: seconds of normal work before them."""

    calm: float
    faults: tuple[Fault, ...]


def schedule(seed: int) -> Iterator[Round]:
    """Rounds without end. Every kind comes once, in an order of the seed's, before any comes by weight."""
    rng = stream(seed, "chaos")
    number = 0
    first = list(KINDS)
    rng.shuffle(first)
    while True:
        chosen = [first.pop() if first else _kind(rng)]
        if chosen[0] not in LONELY and rng.random() < TOGETHER_CHANCE:
            other = _kind(rng)
            chosen += [other] if other not in LONELY and other != chosen[0] else []
        faults = tuple(_fault(rng, number + n, kind) for n, kind in enumerate(chosen))
        number += len(faults)
        yield Round(0.3 + rng.expovariate(1 / 0.7), faults)


def _kind(rng: random.Random) -> str:
    return rng.choices(list(KINDS), weights=list(KINDS.values()))[0]


def _fault(rng: random.Random, number: int, kind: str) -> Fault:
    # Some faults end before anyone can notice, most outlast an election.
    timeouts = rng.uniform(0.2, 1.0) if rng.random() < 0.3 else 2.0 + rng.expovariate(1 / 3.0)
    return Fault(number, kind, TARGETS[rng.randrange(len(TARGETS))], min(timeouts, 12.0), rng.random())
