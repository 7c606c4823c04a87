"""Nodes that take nearly as much memory as they may, or more: they save it, and refuse data.

Invariant: memory is as before when the fault is over or cancelled. A process that begins meanwhile finds it so, too.
"""

from __future__ import annotations

from needle.server.machine.memory_space import SHARE, MemoryUse, soft_bytes
from proof.sim.faults import Handler, hold
from proof.sim.fleet import Fleet
from proof.sim.machines import MEMORY_BYTES
from proof.sim.spec import Fault

LIMIT = int(MEMORY_BYTES * SHARE)
TAKEN = {"memory-tight": soft_bytes(LIMIT) + 1, "memory-full": LIMIT + 1}


class MemoryFaults:
    """See the module."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def handlers(self) -> dict[str, Handler]:
        """By kind of fault."""
        return dict.fromkeys(TAKEN, self._take)

    async def _take(self, fault: Fault, name: str) -> None:
        machine = self._fleet.machines[name]

        def give_back() -> None:
            machine.memory = MemoryUse(0, MEMORY_BYTES)

        machine.memory = MemoryUse(TAKEN[fault.kind], MEMORY_BYTES)
        await hold(fault.seconds, give_back)
