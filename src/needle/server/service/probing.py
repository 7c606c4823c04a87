"""Calls that measure this node: its clocks, its disk, its links to other nodes, and how much it does.

Invariants: one probe runs at a time, and takes no more time, pings and durable writes than is written here. It changes
nothing but a small file of its own, which it deletes. It must not judge what it finds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from needle import __version__
from needle.base.config import SETTINGS, RaftConfig
from needle.base.errors import DeadlineExceeded, NeedleError, Overloaded
from needle.base.ids import NodeId
from needle.protocol import calls
from needle.protocol.peer_calls import WHO, WhoCall
from needle.protocol.probe_calls import (
    ClockAnswer,
    ClockCall,
    Facts,
    Link,
    LoadAnswer,
    LoadCall,
    ProbeAnswer,
    ProbeCall,
)
from needle.server.service.served import ServedNode

SECONDS_MAX = 5.0
FSYNCS_MAX = 100
PINGS_MAX = 20
LINKS_MAX = 64
PING_SECONDS = 1.0
"""A link on which nothing comes back for so long is as good as cut."""
CONNECT_TRIPS = 4
"""Round trips of the first call, which may have to connect: TCP, TLS, the greeting, and its own. The next one is
counted though the time is over: however slow a link is, it is measured once."""
COMMON = (
    *(
        "election_timeout",
        "heartbeat_interval",
        "lease_timeout",
        "clock_error_max",
        "replace_after",
        "replace_throttle",
    ),
    "require_keys",
    *("tls.mode", *(path for path in SETTINGS if path.startswith("limits."))),
)
"""Settings that nodes should agree on."""


Timed = tuple[dict[str, list[tuple[float, float]]], float]


class Probing:
    """See the module. timed_calls: `calls` and `errors` of a LoadAnswer; of metrics, where they are kept."""

    def __init__(self, node: ServedNode) -> None:
        self._node = node
        self._running = False
        self.timed_calls: Callable[[], Timed] = lambda: ({}, 0.0)

    async def clock(self, call: ClockCall) -> ClockAnswer:
        """Now."""
        clock = self._node.ports.clock
        return ClockAnswer(self._node.node_id, clock.wall(), clock.monotonic(), self._node.host.engine.lives.nonce)

    async def load(self, call: LoadCall) -> LoadAnswer:
        """What was done since the start."""
        node, facts = self._node, await self._facts(brief=True)
        timed, errors = self.timed_calls()
        return LoadAnswer(node.node_id, node.now(), node.host.engine.lives.nonce, facts, timed, errors)

    async def probe(self, call: ProbeCall) -> ProbeAnswer:
        """Measure. Raises Overloaded while another probe runs here."""
        if self._running:
            raise Overloaded(f"node {self._node.node_id} is being probed already: try again in {SECONDS_MAX:g} s")
        self._running = True
        try:
            return await self._probed(min(max(call.seconds, 0.1), SECONDS_MAX))
        finally:
            self._running = False

    async def _probed(self, seconds: float) -> ProbeAnswer:
        node = self._node
        # Disk and links one after the other: each would find the other's work in its own figures.
        fsyncs, why = await self._fsyncs(seconds / 2)
        others = [one for one in sorted(node.topology.addresses()) if one != node.node_id][:LINKS_MAX]
        links = await asyncio.gather(*(self._link(other, seconds / 2) for other in others))
        who = node.who()
        return ProbeAnswer(
            node.node_id,
            __version__,
            node.ports.knows,
            {path: _setting(node.config, path) for path in COMMON},
            fsyncs,
            list(links),
            await self._facts(),
            who.disk,
            who.levels.certificate_seconds if who.levels is not None else None,
            why,
        )

    async def _facts(self, *, brief: bool = False) -> Facts:
        computer = self._node.ports.computer
        if computer is None:
            return Facts()
        facts: Facts = await self._node.blocking(computer.facts, brief)
        return facts

    async def _fsyncs(self, seconds: float) -> tuple[list[float], str]:
        node = self._node
        if node.ports.computer is None:
            return [], "the node's disk is not a real one"
        if node.space.disk.low:
            return [], "there is no room on the disk"
        try:
            return await node.ports.computer.fsyncs(node.config.data_dir, FSYNCS_MAX, seconds), ""
        except OSError as error:
            return [], str(error)

    async def _link(self, other: NodeId, seconds: float) -> Link:
        """Ping by the connection that Raft uses, so what waits in it counts, with a call all releases know."""
        node, body, pings = self._node, calls.encode(WhoCall()), list[float]()
        begun, first = node.now(), 0.0
        end = begun + seconds
        try:
            await node.peers.call(other, WHO, body, CONNECT_TRIPS * PING_SECONDS)
            first = node.now() - begun
            while len(pings) < PINGS_MAX and ((start := node.now()) < end or not pings):
                await node.peers.call(other, WHO, body, PING_SECONDS)
                pings.append(node.now() - start)
        except NeedleError as error:
            if first and not pings and isinstance(error, DeadlineExceeded):
                # It answered, so it is slow and not cut: a trip takes at least as long as was waited for one.
                return Link(other, [max(PING_SECONDS, first / CONNECT_TRIPS)])
            return Link(other, sorted(pings), error.message)
        return Link(other, sorted(pings))


def _setting(config: RaftConfig, path: str) -> bool | int | float | str | None:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value if value is None or isinstance(value, bool | int | float) else str(value)
