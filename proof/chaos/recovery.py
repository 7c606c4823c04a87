"""How long the cluster takes to acknowledge a write again after a fault, and why when it is long.

Probe clients write one after the other until one is acknowledged; any client's write counts, if it was begun after the
fault. It must not know what the faults are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from proof.checkers.history import History, Operation
from proof.checkers.violation import Violation
from proof.sim.client import Client

PROBE_EVERY = 0.1
RECOVERY_SECONDS_MAX = 60.0
BOUND_TIMEOUTS = 3.0
WRITES = ("put", "insert", "cas", "delete")


class Recovery(msgspec.Struct):
    """One measurement. after: begin or heal of a fault. elections: new terms, in the shard with most of them."""

    after: str
    what: str
    seconds: float
    bound: float
    elections: int
    reason: str = ""


class Probes:
    """Measures recoveries."""

    def __init__(
        self,
        clients: list[Client],
        history: History,
        key: Callable[[int], str],
        counts: Callable[[Operation], bool],
    ) -> None:
        """key: of a probe, by the number of operations so far. counts: whose writes are those of the group."""
        self._clients, self._history = clients, history
        self._key, self._counts = key, counts
        self._writing: dict[asyncio.Task[bool], Client] = {}

    async def measure(self, since: float, seen: int) -> float:
        """Seconds from `since` (of the loop's clock) to the answer of the first write begun after it. seen: how many
        operations there were then. Raises Violation after RECOVERY_SECONDS_MAX."""
        loop = asyncio.get_running_loop()
        while True:
            found = self._acknowledged(since, seen)
            if found is not None:
                return found - since
            if loop.time() - since > RECOVERY_SECONDS_MAX:
                raise Violation("liveness", f"no write was acknowledged within {RECOVERY_SECONDS_MAX:g} s")
            for task in [task for task in self._writing if task.done()]:
                task.result()
                del self._writing[task]
            busy = set(self._writing.values())
            idle = next((client for client in self._clients if client not in busy), None)
            if idle is not None:
                self._writing[asyncio.ensure_future(idle.put(self._key(seen)))] = idle
            await asyncio.wait(self._writing, timeout=PROBE_EVERY, return_when=asyncio.FIRST_COMPLETED)

    async def finish(self) -> None:
        """Wait for probes that have no answer yet: a cancelled write would have no end in the history."""
        await asyncio.gather(*self._writing)
        self._writing.clear()

    def _acknowledged(self, since: float, seen: int) -> float | None:
        times = [
            op.returned_time
            for op in self._history.operations[seen:]
            if op.outcome == "ok" and op.kind in WRITES and op.time >= since and self._counts(op)
        ]
        return min(times, default=None)
