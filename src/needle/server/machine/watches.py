"""What a node watches of the machine that it runs on, for those who ask how it is."""

from __future__ import annotations

from needle.base.config import RaftConfig
from needle.base.runtime import Clock
from needle.server.machine.clock_rates import ClockRates
from needle.server.machine.flushes import FlushWatch


class Watches:
    """Of one node. flushes: of its Raft log. rates: of the clocks; only of a node that serves HTTP."""

    def __init__(self, config: RaftConfig, clock: Clock) -> None:
        self.flushes = FlushWatch(clock)
        self.rates = ClockRates(config.node_id, config.clock_error_max)
