"""Measuring a cluster: whether it is fit, and how much each node does.

Invariant: all nodes are asked at once, each for a bounded time; one that does not answer is told
of, and holds up nobody. It judges nothing itself (`client.diagnosis`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from needle.base.errors import Forbidden, NeedleError
from needle.base.ids import NodeId
from needle.client.activity import Look
from needle.client.clock_readings import Reading, compare
from needle.client.cluster_conditions import Asked, look
from needle.client.diagnosis import diagnose
from needle.client.directory import Caller, Calling
from needle.client.fitness import Diagnosis
from needle.client.measuring import measure
from needle.client.shards import OverShards
from needle.protocol import calls
from needle.protocol.probe_calls import (
    CLOCK,
    LOAD,
    PROBE,
    ClockAnswer,
    ClockCall,
    LoadAnswer,
    LoadCall,
    ProbeAnswer,
    ProbeCall,
)
from needle.routing.jobs import Progress
from needle.routing.stats import summarize
from needle.routing.topology import Topology

T = TypeVar("T")


class Looking(Asked, Protocol):
    """The client that looks."""

    async def rebalance_progress(self, *, timeout: float) -> Progress | None: ...


READINGS = 5
"""Of so many readings of a clock the quickest counts."""
READ_SECONDS = 1.0
PROBE_SECONDS = 2.0
SETTINGS_SECONDS = 0.1
"""A probe measures, too, and this is the least."""


async def examine(client: Asked, caller: Caller, timeout: float) -> Diagnosis:
    """See Client.doctor."""
    nodes, loop = client.topology().addresses(), asyncio.get_running_loop()
    begun = loop.time()
    first, silent = await _each(nodes, lambda at: _read_clock(caller, at, timeout))
    body = calls.encode(ProbeCall(PROBE_SECONDS))

    async def probe(at: str) -> ProbeAnswer:
        return calls.decode(await caller.call(at, PROBE, body, timeout), ProbeAnswer)

    probes, unprobed = await _each({node: nodes[node] for node in first}, probe)
    await asyncio.sleep(max(0.0, PROBE_SECONDS - (loop.time() - begun)))  # the longer, the better rates are known
    last, _ = await _each({node: nodes[node] for node in first}, lambda at: _read_clock(caller, at, timeout))
    seen = await look(client, min(timeout, PROBE_SECONDS))
    clocks = compare(first, last)
    documents = sum(shard.documents for shard in seen.health.shards.values())
    return diagnose(client.topology(), probes, {**silent, **unprobed}, clocks, seen.health.conditions, documents)


async def loads(topology: Topology, caller: Calling, timeout: float) -> dict[NodeId, LoadAnswer]:
    """See Client.node_loads."""
    body = calls.encode(LoadCall())

    async def ask(at: str) -> LoadAnswer:
        return calls.decode(await caller.call(at, LOAD, body, timeout), LoadAnswer)

    return (await _each(topology.addresses(), ask))[0]


async def settings_of(client: OverShards, timeout: float) -> dict[NodeId, Mapping[str, object]]:
    """The settings that nodes should agree on, by path, of each node that answers."""
    body = calls.encode(ProbeCall(SETTINGS_SECONDS))

    async def ask(at: str) -> Mapping[str, object]:
        return calls.decode(await client._caller.call(at, PROBE, body, timeout), ProbeAnswer).settings

    return (await _each(client._shards.topology().addresses(), ask))[0]


async def look_at_activity(client: Looking, caller: Caller, timeout: float) -> Look:
    """One of the two looks of Client.activity."""
    topology = client.topology()
    seen, measured, loaded, progress = await asyncio.gather(
        look(client, timeout),
        measure(caller, topology, timeout, hot=True, for_client=True),
        loads(topology, caller, timeout),
        _progress(client, timeout),
    )
    topology = client.topology()
    return Look(
        topology=topology, seen=seen, stats=summarize(topology, measured.stats), loads=loaded, progress=progress
    )


async def _progress(client: Looking, timeout: float) -> Progress | None:
    """None, too, while nobody leads the catalog, which is a condition of its own."""
    try:
        return await client.rebalance_progress(timeout=timeout)
    except Forbidden:
        raise
    except NeedleError:
        return None


async def _read_clock(caller: Caller, address: str, timeout: float) -> Reading:
    """The quickest of some readings of a node's clocks."""
    now, body, found = asyncio.get_running_loop().time, calls.encode(ClockCall()), list[Reading]()
    end = now() + min(timeout, READ_SECONDS)
    while len(found) < READINGS and (not found or now() < end):
        start = now()
        told = calls.decode(await caller.call(address, CLOCK, body, timeout), ClockAnswer)
        found.append(Reading((start + now()) / 2, now() - start, told))
    return min(found, key=lambda one: one.took)


async def _each(
    nodes: Mapping[NodeId, str], ask: Callable[[str], Awaitable[T]]
) -> tuple[dict[NodeId, T], dict[NodeId, str]]:
    """All at once: their answers, and why others gave none. Raises Forbidden."""
    answers: dict[NodeId, T] = {}
    silent: dict[NodeId, str] = {}

    async def one(node: NodeId, at: str) -> None:
        try:
            answers[node] = await ask(at)
        except Forbidden:
            raise
        except NeedleError as error:
            silent[node] = error.message

    await asyncio.gather(*(one(node, at) for node, at in nodes.items()))
    return dict(sorted(answers.items())), dict(sorted(silent.items()))
