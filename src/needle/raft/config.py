"""The core's settings: one frozen value per replica. Durations are seconds, sizes are bytes.

It must not know where they come from; `needle.base.config` holds the user's configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from needle.base.ids import NodeId


@dataclass(frozen=True, kw_only=True)
class CoreConfig:
    """Settings of one replica's core. Pre-vote and check-quorum are always on.

    election_timeout: how long a leader must be silent before anybody campaigns.
    lease_timeout: T of the lease rules, at most election_timeout; 0: the same. So long a follower's refusal of votes
    after a leader's message binds it, whatever happens; beyond it only while the leader's connection lasts.
    clock_error_max bounds the rate error of every clock, as a fraction; lease_margin is taken off every lease.
    commit_notice_entries: so many entries committed at once are told to the members at once.
    """

    node_id: NodeId
    election_timeout: float
    heartbeat_interval: float
    lease_timeout: float = 0.0
    clock_error_max: float = 0.001
    lease_margin: float = 0.005
    append_bytes_max: int = 1 << 20
    inflight_messages_max: int = 64
    inflight_bytes_max: int = 8 << 20
    uncommitted_bytes_max: int = 128 << 20
    apply_bytes_max: int = 8 << 20
    snapshot_retry: float = 2.0
    commit_notice_entries: int = 8
    disk_stall_min: float = 2.0

    @cached_property  # each leased read asks for it
    def lease_duration(self) -> float:
        """How long after the send time of a confirmed round the leader may serve leased reads (thesis, 6.4.1).

        Followers compare absolute times, so nothing is lost to tick granularity: T * (1 - e) / (1 + e) - margin.
        """
        error = self.clock_error_max
        return self.binding * (1 - error) / (1 + error) - self.lease_margin

    @property
    def binding(self) -> float:
        """How long a promise to a leader binds in any case: what leases may count on."""
        return min(self.lease_timeout or self.election_timeout, self.election_timeout)

    @property
    def absence(self) -> float:
        """How long a node that was kept from running listens before it takes others for silent."""
        return 2 * self.heartbeat_interval

    @property
    def commit_notice_delay(self) -> float:
        """How long a new commit index waits for an append to travel with before it gets a heartbeat of its own."""
        return self.heartbeat_interval / 10

    @property
    def disk_stall_timeout(self) -> float:
        """A write outstanding for longer costs the leader its office. However short the election timeout is, a disk
        that is busy for some hundred milliseconds is no dead one, and often it is the others' too."""
        return max(2 * self.election_timeout, self.disk_stall_min)

    @property
    def transfer_timeout(self) -> float:
        """How long a leadership transfer may block proposals."""
        return 2 * self.election_timeout
