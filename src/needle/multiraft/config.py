"""Settings of a multi-Raft host. Durations are seconds, sizes are bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from needle.base.ids import NodeId
from needle.raft.config import CoreConfig


class HasData(Protocol):
    """An entry, of the log or as applied."""

    @property
    def data(self) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """How a host runs its groups.

    snapshot_threshold: applied entries in the log at which it is compacted; a quarter of it stays for slow followers.
    log_bytes_max: what the logs of all groups may take on the disk; retention.py derives the other bounds from it.
    compact_idle: seconds without a write after which a large log is compacted.
    disk_probe: seconds without a write after which a node that leads anything writes something, to see that its disk
    answers. proposals_max: proposals in flight per group before Overloaded. snapshot_keep: how long an exported
    snapshot that nobody fetches stays. quick_entries_max, quick_bytes_max: so few entries are written and applied
    without a thread if the disk is fast (base.runtime.Pool.call). apply_entries, apply_waiting_bytes: so much of what
    is committed a follower gathers at most before it applies it (apply_steps.py).
    """

    election_timeout: float = 1.0
    heartbeat_interval: float = 0.050
    lease_timeout: float = 0.150
    clock_error_max: float = 0.001
    snapshot_threshold: int = 10_000
    log_bytes_max: int = 16 << 30
    compact_idle: float = 30.0
    disk_probe: float = 5.0
    uncommitted_bytes_max: int = 128 << 20
    append_bytes_max: int = 1 << 20
    apply_bytes_max: int = 8 << 20
    inflight_messages_max: int = 64
    inflight_bytes_max: int = 8 << 20
    proposals_max: int = 65_536
    frame_bytes_max: int = 4 << 20
    snapshot_chunk_bytes: int = 1 << 20
    snapshot_chunk_timeout: float = 10.0
    snapshot_attempts_max: int = 8
    snapshot_retry: float = 2.0
    snapshot_keep: float = 30.0
    snapshot_exports_max: int = 2
    quick_entries_max: int = 4
    quick_bytes_max: int = 64 << 10
    apply_entries: int = 128
    apply_waiting_bytes: int = 256 << 10

    @property
    def apply_delay(self) -> float:
        """For how long a follower gathers: as long as a new commit index may wait before it is told."""
        return self.heartbeat_interval / 10

    def is_quick(self, entries: Sequence[HasData]) -> bool:
        """Whether writing or applying these takes well below a millisecond on a fast disk."""
        few = len(entries) <= self.quick_entries_max
        return few and sum(len(entry.data) for entry in entries) <= self.quick_bytes_max

    def core(self, node_id: NodeId) -> CoreConfig:
        """The Raft core's part."""
        return CoreConfig(
            node_id=node_id,
            election_timeout=self.election_timeout,
            heartbeat_interval=self.heartbeat_interval,
            lease_timeout=self.lease_timeout,
            clock_error_max=self.clock_error_max,
            append_bytes_max=self.append_bytes_max,
            inflight_messages_max=self.inflight_messages_max,
            inflight_bytes_max=min(self.inflight_bytes_max, self.log_bytes_max // 16),
            uncommitted_bytes_max=min(self.uncommitted_bytes_max, self.log_bytes_max // 8),
            apply_bytes_max=self.apply_bytes_max,
            snapshot_retry=self.snapshot_retry,
            commit_notice_entries=self.apply_entries,
        )
