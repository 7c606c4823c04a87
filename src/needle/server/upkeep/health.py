"""The health of the whole cluster as one node sees it, kept for the metrics: a scrape must not wait for other nodes;
and its history, for the dashboard.

Invariant: `latest` is what the replicas themselves answered in the last round, never an assumption.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from needle.base.errors import NeedleError
from needle.base.ids import NodeId
from needle.base.parts import Body, Payload
from needle.base.runtime import Clock
from needle.client.directory import Caller, Calling
from needle.client.examining import loads
from needle.client.health import ClusterHealth, catalog_lacks, judge
from needle.client.replicas import ask_catalog, ask_replicas
from needle.protocol.probe_calls import LoadAnswer
from needle.routing.topology import Topology
from needle.server.history import History
from needle.server.machine.clock_rates import ClockRates

LOOK_SECONDS = 2.0
ASK_SECONDS = 1.0


class _Timed:
    """Asks, and notes when each address was asked and had answered: one node that is silent must not make the readings
    of all others' clocks uncertain."""

    def __init__(self, caller: Calling, clock: Clock) -> None:
        self._caller, self._clock = caller, clock
        self.spans: dict[str, tuple[float, float]] = {}

    async def call(self, address: str, method: str, body: Body, timeout: float) -> Payload:
        begun = self._clock.monotonic()
        answer = await self._caller.call(address, method, body, timeout)
        self.spans[address] = begun, self._clock.monotonic()
        return answer


class HealthWatch:
    """Asks all replicas every LOOK_SECONDS."""

    def __init__(self, caller: Caller, topology: Callable[[], Topology], clock: Clock, rates: ClockRates) -> None:
        """rates: told what the clocks of all nodes show."""
        self._caller = caller
        self._topology = topology
        self._clock = clock
        self._rates = rates
        self.history = History()
        self.latest: ClusterHealth | None = None
        """None before the first round."""
        self.catalog_missing = 0
        """How many replicas of the catalog the last round found missing."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            topology = self._topology()
            replicas, holders = await asyncio.gather(
                ask_replicas(self._caller, topology, ASK_SECONDS),
                ask_catalog(self._caller, topology, ASK_SECONDS, for_client=False),
            )
            self.catalog_missing = len(catalog_lacks(topology, holders))
            self.latest = judge(topology, replicas)
            if topology.settings is not None and self.history.due(now := self._clock.wall()):
                timed = _Timed(self._caller, self._clock)
                found = await self._loads(topology, timed)
                spans = {node: timed.spans[at] for node, at in topology.addresses().items() if at in timed.spans}
                self._rates.note(self._clock.monotonic(), found, spans)
                self.history.note(now, replicas, found)
            await asyncio.sleep(LOOK_SECONDS)

    async def _loads(self, topology: Topology, caller: Calling) -> dict[NodeId, LoadAnswer]:
        """Of the nodes that tell; none where one does not take this node for one of the cluster."""
        try:
            return await loads(topology, caller, ASK_SECONDS)
        except NeedleError:
            return {}
