"""The health of the whole cluster as one node sees it, kept for the metrics: a scrape must not wait for other nodes.

Invariant: `latest` is what the replicas themselves answered in the last round, never an assumption.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from needle.client.directory import Caller
from needle.client.health import ClusterHealth, judge
from needle.client.replicas import ask_replicas
from needle.routing.topology import Topology

LOOK_SECONDS = 2.0
ASK_SECONDS = 1.0


class HealthWatch:
    """Asks all replicas every LOOK_SECONDS."""

    def __init__(self, caller: Caller, topology: Callable[[], Topology]) -> None:
        self._caller = caller
        self._topology = topology
        self.latest: ClusterHealth | None = None
        """None before the first round."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            topology = self._topology()
            self.latest = judge(topology, await ask_replicas(self._caller, topology, ASK_SECONDS))
            await asyncio.sleep(LOOK_SECONDS)
