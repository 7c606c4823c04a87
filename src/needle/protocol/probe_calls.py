"""What is asked of a node to find out whether its machine and its links are fit, and how much it does right now.

| method | takes | answers |
|---|---|---|
| clock | ClockCall | ClockAnswer |
| probe | ProbeCall | ProbeAnswer |
| load | LoadCall | LoadAnswer |

Invariant: a probe is bounded in time, bytes and calls by the node that is asked, whatever its caller says.
"""

from __future__ import annotations

from typing import Final

import msgspec

from needle.base.ids import NodeId
from needle.protocol.peer_calls import DiskRoom

CLOCK: Final = "clock"
PROBE: Final = "probe"
LOAD: Final = "load"


class ClockCall(msgspec.Struct, frozen=True, array_like=True):
    """What its clocks show. Answered at once, so it serves as a ping."""


class ClockAnswer(msgspec.Struct, frozen=True, array_like=True):
    """wall: seconds since 1970. monotonic: of the clock that leases are judged by. life: drawn when the process
    began."""

    node_id: NodeId
    wall: float
    monotonic: float
    life: int


class ProbeCall(msgspec.Struct, frozen=True, array_like=True):
    """Measure the own disk and the links to all other nodes, for at most about `seconds`."""

    seconds: float = 2.0


class Link(msgspec.Struct, frozen=True, array_like=True):
    """From the node that says it to `node`. pings: round trips in seconds, ascending. error: why there are no more, ""
    if all were answered."""

    node: NodeId
    pings: list[float]
    error: str = ""


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """Of a node's process and machine; 0 or "" for what the system does not tell. files, maps: how many are open or
    mapped now, and how many may be. memory: bytes that the machine (or the process' cgroup) has, and how many of these
    can still be taken. resident: bytes of this process in RAM. cpu_seconds: that this process has used. features: of
    the processor, those by which distances are computed, in order."""

    files: int = 0
    files_max: int = 0
    maps: int = 0
    maps_max: int = 0
    memory: int = 0
    memory_available: int = 0
    resident: int = 0
    cpus: int = 0
    cpu_seconds: float = 0.0
    machine: str = ""
    features: str = ""


class ProbeAnswer(msgspec.Struct, frozen=True, array_like=True):
    """release: of the package. knows: version of commands and formats. settings: those that nodes should agree on, by
    path. fsyncs: seconds of small durable writes beside the log, ascending; [] if none were tried, and then
    `fsync_error` says why. links: to the other nodes, the first LINKS_MAX by name."""

    node_id: NodeId
    release: str
    knows: int
    settings: dict[str, bool | int | float | str | None]
    fsyncs: list[float]
    links: list[Link]
    facts: Facts
    disk: DiskRoom | None = None
    certificate_seconds: float | None = None
    fsync_error: str = ""


class LoadCall(msgspec.Struct, frozen=True, array_like=True):
    """How much the node has done."""


class LoadAnswer(msgspec.Struct, frozen=True, array_like=True):
    """at: of the node's clock for durations. facts: memory and CPU only. calls: by method, the calls that took up to so
    many seconds, ascending, the last without a bound (inf): what `needle_request_seconds` says. errors: calls answered
    with one."""

    node_id: NodeId
    at: float
    life: int
    facts: Facts
    calls: dict[str, list[tuple[float, float]]]
    errors: float = 0.0
