"""The table of what `needle doctor` looks at, and what it found. Pure.

Invariant: what is found has a row, and a row has a section in docs/doctor.md that says what to do. The bounds are here,
or in the alert table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from needle.base.ids import NodeId
from needle.client.alerts import CLOCK_ERROR_MIN, CRITICAL, FSYNC_SECONDS, WARNING
from needle.protocol.probe_calls import Facts

RUNBOOKS: Final = "docs/doctor.md"

LINK_SECONDS = 0.010
FSYNC_MEDIAN_SECONDS = 0.020
OFFSET_SECONDS = 0.5
ELECTION_ROUNDS, ELECTION_ROUNDS_MIN = 10, 2
"""An election timeout should be so many times as long as a round of messages takes, and must be."""
FILES_MIN, MAPS_MIN, TAKEN_MAX = 4096, 65_530, 0.8
MEMORY_FREE_MIN = 0.1
REPLICAS_MIN = 3


class Check(NamedTuple):
    """What is looked at. severity: at least. allowed: in words; more exactly where it is found. action: what to do
    first."""

    name: str
    severity: str
    allowed: str
    action: str

    @property
    def runbook(self) -> str:
        """Where it says more."""
        return f"{RUNBOOKS}#{self.name}"


ROWS: Final = (
    Check("link-cut", CRITICAL, "each node reaches each other one",
          "look at the network and the firewall between the two, and at `reach` and `advertise` of both"),
    Check("link-slow", WARNING, f"a round trip of {LINK_SECONDS * 1000:g} ms in the median",
          "have all nodes in one region, on a network of their own; every write waits for a majority"),
    Check("election-timeout", WARNING, f"{ELECTION_ROUNDS} times a round (link and fsync, medians), and "
          f"{ELECTION_ROUNDS_MIN} times the slowest one",
          "raise election_timeout on all nodes, or find out why the link or the disk is slow"),
    Check("lease-timeout", WARNING, "at least heartbeat_interval and a round trip, at most election_timeout",
          "set lease_timeout between the two on all nodes: else leased reads wait for the majority, too"),
    Check("clock-rate", CRITICAL, f"clock_error_max, or {CLOCK_ERROR_MIN:.2%} if that is more",
          "use strong reads only until its clock is well; move the node to another machine"),
    Check("clock-offset", WARNING, f"{OFFSET_SECONDS:g} s", "run NTP on it: documents expire by the wall clock"),
    Check("disk-slow", WARNING, f"an fsync of {FSYNC_MEDIAN_SECONDS * 1000:g} ms in the median, "
          f"{FSYNC_SECONDS * 1000:g} ms in the 99th percentile",
          "give data_dir a disk of its own, with a cache that survives a loss of power"),
    Check("disk-not-measured", WARNING, "small files can be written in data_dir", "look at the disk and its room"),
    Check("few-descriptors", WARNING, f"a limit of {FILES_MIN:,} open files, of which {TAKEN_MAX:.0%} are open",
          "raise LimitNOFILE of the service, or `ulimit -Hn`, and start the node again"),
    Check("few-maps", WARNING, f"vm.max_map_count of {MAPS_MIN:,}, of which {TAKEN_MAX:.0%} are taken",
          "sysctl -w vm.max_map_count=262144, and write it down in /etc/sysctl.d"),
    Check("memory-short", WARNING, f"{MEMORY_FREE_MIN:.0%} of the memory can still be taken",
          "`needle plan` says how much a node needs: give it more, or add nodes and shards"),
    Check("cpus-differ", WARNING, "the same vector instructions on all nodes",
          "use machines of one kind: the slowest replica is what a search may meet"),
    Check("releases-differ", WARNING, "one release on all nodes", "finish the upgrade: `needle rolling-restart`"),
    Check("settings-differ", WARNING, "the same on all nodes", "put it right and restart the node, one at a time"),
    Check("few-replicas", WARNING, f"replication_factor of the cluster, and at least {REPLICAS_MIN}",
          "add nodes, then `needle shard replicas`"),
    Check("few-zones", WARNING, "each replica of a shard in a zone of its own, as far as there are zones",
          "`needle node zone` says where nodes are; then `needle rebalance`"),
    Check("no-backup", WARNING, "a backup, or an archive of the logs, is told of once there are documents",
          "`needle backup create TARGET` by a timer, on another machine's disk or in a bucket (docs/backup.md)"),
    Check("not-probed", WARNING, "each node answers", "look at its process, its log, its release and the network"),
)  # fmt: skip
CHECKS: Mapping[str, Check] = {row.name: row for row in ROWS}
GRAVE_SETTINGS: Final = ("lease_timeout", "clock_error_max")
"""Leased reads are true only while all nodes agree on these."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not fit. severity: warning or critical. name: of the check, or of the alert. subject: what it
    is about. measured, allowed: in words; allowed "" of an alert without a bound. action: what to do first; runbook:
    where the documents say more."""

    severity: str
    name: str
    subject: str
    measured: str
    allowed: str
    action: str
    runbook: str

    def __str__(self) -> str:
        return f"{self.name}: {self.subject}: {self.measured}"


class LinkFound(msgspec.Struct, frozen=True, kw_only=True):
    """A link, in seconds of a round trip; None if nothing came back."""

    source: NodeId
    target: NodeId
    p50: float | None
    p99: float | None


class NodeFound(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a node. fsync_p50, fsync_p99: seconds; None if not measured. clock_rate: how much faster
    than others' its clock runs, as a fraction. clock_offset: seconds by which its wall clock is ahead.
    The rate is by the median of all nodes and of who asks, the offset by that of the nodes, or by the other one of two;
    each is at most off by the `_error` beside it."""

    node: NodeId
    release: str
    fsync_p50: float | None
    fsync_p99: float | None
    clock_rate: float
    clock_rate_error: float
    clock_offset: float
    clock_offset_error: float
    facts: Facts


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """findings: critical ones first."""

    findings: list[Finding]
    nodes: list[NodeFound]
    links: list[LinkFound]

    @property
    def critical(self) -> bool:
        """Whether somebody has to do something now."""
        return any(one.severity == CRITICAL for one in self.findings)


def found(check: str, subject: str, measured: str, allowed: str = "", *, severity: str = "") -> Finding:
    """A finding of this check. allowed, severity: others than the table's."""
    row = CHECKS[check]
    return Finding(
        severity=severity or row.severity,
        name=row.name,
        subject=subject,
        measured=measured,
        allowed=allowed or row.allowed,
        action=row.action,
        runbook=row.runbook,
    )


def percentile(ascending: Sequence[float], share: float) -> float | None:
    """The value below which a share of them is, the next one above; None of none."""
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))] if ascending else None
