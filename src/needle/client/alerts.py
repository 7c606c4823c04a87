"""The table of alerts: `needle status`, `health_check()`, Prometheus' rules and docs/alerts.md come of it.

Invariant: a condition that is told has a row, and a row has a section in docs/alerts.md that says what to do. The
thresholds are here, and nowhere else. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

CRITICAL, WARNING = "critical", "warning"
RUNBOOKS: Final = "docs/alerts.md"

LAG_WARNING_MS = 1_000.0
LAG_CRITICAL_MS = 10_000.0
IMBALANCE_MAX = 0.2
IMBALANCE_DOCUMENTS_MIN = 1_000
"""With fewer documents a shard chance alone makes shards uneven."""
DISK_ROOMS = 2.0
"""Less free than so many times what has to stay free: nearly full."""
LOG_FULL_RATIO = 0.6
"""From one half of `log_bytes_max` on the log is cut as far as it can be, from three quarters on writes are refused."""
CERTIFICATE_SECONDS = 14 * 86_400.0
BACKUP_SECONDS = 26 * 3600.0
"""A daily backup has two hours."""
ARCHIVE_SECONDS = 300.0
FSYNC_SECONDS = 0.1
FSYNC_SHARE, FSYNC_SLOW_MIN = 0.01, 3
"""Slow log writes are told of from such a share of two minutes on, if there are so many: one alone tells nothing."""
HANG_SECONDS = 5.0
WORN_SHARE = 0.5
RECALL_MIN = 0.9
CLOCK_ERROR_MIN = 0.0005


class Alert(NamedTuple):
    """name: in Prometheus. condition: what `needle status` and `health_check()` call it; "" where one look cannot tell.
    expression: in PromQL; "" where no metric tells. hold: seconds for which it must be true. summary: a line with
    Prometheus' labels."""

    name: str
    condition: str
    severity: str
    hold: int
    expression: str
    summary: str

    @property
    def runbook(self) -> str:
        """Where the documents say what to do."""
        return f"{RUNBOOKS}#{self.name.lower()}"


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the alert table that holds now. severity: warning or critical; action: what to do first. alert: its name
    in Prometheus. runbook: where it says more: the address that the cluster's nodes name, or the file of the
    documents."""

    severity: str
    name: str
    subject: str
    action: str
    alert: str
    runbook: str

    def __str__(self) -> str:
        return f"{self.name}: {self.subject}"

    def told_at(self, runbooks: str) -> Condition:
        """With its runbook at that address (`base.runbooks`); "" for in the documents."""
        return msgspec.structs.replace(self, runbook=runbooks + self.alert.lower()) if runbooks else self


_OF: Final = "namespace, needle_cluster"
"""What tells one cluster from another: the nodes' own label. A namespace of Kubernetes is kept beside it, since alerts
are sent to people by it; elsewhere there is none."""
_COUNTS = f"max by ({_OF}, shard) (needle_shard_vector_count)"
_SEEN = 'last_over_time(needle_node_up{needle_cluster!=""}[1d])'
"""The nodes that answered within a day. A node that has no cluster yet has no label, and gets one."""
_SHARD: Final = '{{ if eq $labels.shard "catalog" }}the catalog{{ else }}shard {{ $labels.shard }}{{ end }}'
"""Of series that the catalog's replicas have, too."""
_SHARD_FIRST: Final = _SHARD.replace("the catalog", "The catalog").replace("shard {{", "Shard {{")
_RATE = "deriv(needle_clock_monotonic_seconds[5m])"

ROWS: Final = (
    Alert("NeedleElection", "leader election in progress", WARNING, 0,
          f"max by ({_OF}, shard) (needle_shard_electing) == 1 or sum by ({_OF}, shard) "
          '(increase(needle_elections_total{reason=~"leader_silent|leader_gone"}[1m])) > 0',
          _SHARD_FIRST + " lost its leader and elects one"),
    Alert("NeedleShardNoLeader", "no leader", CRITICAL, 10, f"max by ({_OF}, shard) (needle_shard_led) == 0",
          "Shard {{ $labels.shard }} has no leader: writes and strong reads of it wait"),
    Alert("NeedleCatalogNoLeader", "no leader", CRITICAL, 10, f"max by ({_OF}) (needle_catalog_led) == 0",
          "The catalog has no leader: documents are read and written, and nothing else changes"),
    Alert("NeedleReplicationLag", "replication lag > 1 s", WARNING, 5,
          f"max by ({_OF}, shard, follower) (needle_replication_lag_ms) > {LAG_WARNING_MS:g} "
          f"<= {LAG_CRITICAL_MS:g}",
          '{{ $labels.follower }} is {{ printf "%.0f" $value }} ms behind in ' + _SHARD),
    Alert("NeedleReplicationLagLong", "replication lag > 10 s", CRITICAL, 0,
          f"max by ({_OF}, shard, follower) (needle_replication_lag_ms) > {LAG_CRITICAL_MS:g}",
          '{{ $labels.follower }} is {{ printf "%.0f" $value }} ms behind in ' + _SHARD
          + ": do not stop another node"),
    Alert("NeedleShardsUneven", "shards uneven", WARNING, 600,
          f"max by ({_OF}) ({_COUNTS}) / avg by ({_OF}) ({_COUNTS}) > {1 + IMBALANCE_MAX:g} and "
          f"avg by ({_OF}) ({_COUNTS}) >= {IMBALANCE_DOCUMENTS_MIN}",
          'The largest shard has {{ printf "%.2f" $value }} times as many documents as the mean'),
    Alert("NeedleNodeUnreachable", "node unreachable", CRITICAL, 15,
          f"max by ({_OF}, node) (needle_node_reachable) == 0", "No other node gets an answer of {{ $labels.node }}"),
    Alert("NeedleNodeNotScraped", "", CRITICAL, 30,
          "(up == 0) * on (job, instance) group_left (needle_cluster) topk by (job, instance) (1, "
          f'{_SEEN}) or on (job, instance) up{{job=~".*needle.*"}} == 0',
          "Prometheus gets no answer of {{ $labels.instance }}"),
    Alert("NeedleClusterNotScraped", "", CRITICAL, 60,
          f"group by ({_OF}) ({_SEEN}) unless on (needle_cluster) needle_node_up or "
          f"absent(needle_node_up) unless on () {_SEEN}",
          "Prometheus gets no answer of any node of {{ or $labels.needle_cluster `Needle` }}"),
    Alert("NeedleUnderReplicated", "under-replicated", WARNING, 60,
          f"min by ({_OF}, shard) (needle_shard_missing_replicas) > 0",
          _SHARD_FIRST + " lacks {{ $value }} replicas: so many fewer may fail"),
    Alert("NeedleDiskNearlyFull", "disk nearly full", WARNING, 60,
          f"needle_disk_free_bytes < {DISK_ROOMS:g} * needle_disk_kept_free_bytes",
          "{{ $labels.instance }} has {{ $value | humanize1024 }}B left on its disk and will refuse data soon"),
    Alert("NeedleDiskFull", "disk full", CRITICAL, 0, "needle_disk_low == 1",
          "{{ $labels.instance }} refuses data for want of room on its disk"),
    Alert("NeedleMemoryNearlyFull", "memory nearly full", WARNING, 60, "needle_memory_tight == 1",
          "{{ $labels.instance }} saves memory and will refuse data soon"),
    Alert("NeedleMemoryFull", "memory full", CRITICAL, 0, "needle_memory_low == 1",
          "{{ $labels.instance }} takes as much memory as it may and refuses data"),
    Alert("NeedleLogNearlyFull", "log nearly full", WARNING, 60,
          f"needle_log_bytes > {LOG_FULL_RATIO:g} * needle_log_bytes_max",
          "The Raft log of {{ $labels.instance }} takes {{ $value | humanize1024 }}B and cannot be cut"),
    Alert("NeedleFsyncSlow", "fsync slow", WARNING, 60,
          f"histogram_quantile(0.99, sum by ({_OF}, instance, le) (rate(needle_fsync_seconds_bucket[2m]))) > "
          f"{FSYNC_SECONDS:g}",
          "One log write in a hundred takes {{ $value | humanizeDuration }} or more on {{ $labels.instance }}"),
    Alert("NeedleDiskHangs", "disk hangs", CRITICAL, 10, f"needle_fsync_under_way_seconds > {HANG_SECONDS:g}",
          "A log write of {{ $labels.instance }} has waited {{ $value | humanizeDuration }} for the disk"),
    Alert("NeedleClockRateOff", "clock rate off", CRITICAL, 60,
          f"abs({_RATE} - on ({_OF}) group_left () quantile by ({_OF}) (0.5, {_RATE})) > "
          f"clamp_min(needle_clock_error_max_ratio, {CLOCK_ERROR_MIN:g}) and "
          "resets(needle_clock_monotonic_seconds[5m]) == 0 and needle_clock_monotonic_seconds offset 5m",
          "The clock of {{ $labels.instance }} runs at another rate than others, by {{ $value | humanizePercentage }}"),
    Alert("NeedleCertificateExpires", "certificate expires", WARNING, 60,
          f"needle_certificate_expiry_timestamp_seconds - time() < {CERTIFICATE_SECONDS:.0f}",
          "The certificate of {{ $labels.instance }} or its authority expires in {{ $value | humanizeDuration }}"),
    Alert("NeedleCertificateRefused", "certificate refused", WARNING, 60, "needle_certificate_refused == 1",
          "{{ $labels.instance }} refuses the changed files of its certificates and uses those of before"),
    Alert("NeedleBackupTooOld", "backup too old", WARNING, 60,
          f"time() - max by ({_OF}) (needle_backup_timestamp_seconds) > {BACKUP_SECONDS:.0f}",
          "The last backup began {{ $value | humanizeDuration }} ago"),
    Alert("NeedleArchiveBehind", "archive of the log behind", WARNING, 60,
          f"max by ({_OF}, shard) (needle_backup_archive_lag_seconds) > {ARCHIVE_SECONDS:.0f}",
          "The log of shard {{ $labels.shard }} is archived until {{ $value | humanizeDuration }} ago"),
    Alert("NeedleReplicaDamaged", "damaged data", CRITICAL, 0, "needle_replica_damaged == 1",
          "{{ $labels.instance }} found " + _SHARD + " damaged and fetches it again"),
    Alert("NeedleReplicaDivergence", "replicas differ", CRITICAL, 0,
          f"max by ({_OF}, shard) (needle_replica_divergence) > 0",
          "Replicas of " + _SHARD + " do not hold the same at one index: {{ $value }} differ from most"),
    Alert("NeedleReplicaLost", "replica lost state", CRITICAL, 0,
          "needle_replica_lost == 1 or needle_node_lost == 1 or needle_peer_refused == 1",
          "{{ $labels.instance }} lost state that others count on, or refuses {{ $labels.node }} for that"),
    Alert("NeedleReplicasNotInPlace", "replicas not in place", WARNING, 600,
          f"max by ({_OF}, shard) (needle_replicas_waiting) == 1",
          "The replicas of " + _SHARD + " are not where the catalog wants them"),
    Alert("NeedleMoveWaits", "move of key ranges waits", WARNING, 600,
          f"max by ({_OF}) (needle_rebalance_waits) == 1",
          "A rebalance is under way and cannot go on"),
    Alert("NeedleFilesNotDeleted", "files not deleted", WARNING, 600, "needle_given_up_replicas > 0",
          "{{ $labels.instance }} keeps the files of {{ $value }} replicas that it holds no more"),
    Alert("NeedleCollectionWorn", "collection worn", WARNING, 60,
          f"max by ({_OF}, shard, collection) (needle_ordinals_used_ratio) > {WORN_SHARE:g}",
          "{{ $labels.collection }} has taken {{ $value | humanizePercentage }} of its versions"),
    Alert("NeedleRecallLow", "recall low", WARNING, 1800,
          f"min by ({_OF}, shard, collection) (needle_recall_sampled) < {RECALL_MIN:g}",
          "Searches of {{ $labels.collection }} find {{ $value | humanizePercentage }} of what is nearest in shard "
          "{{ $labels.shard }}"),
    Alert("NeedleNoCluster", "no cluster", CRITICAL, 0, "", "The nodes belong to no cluster yet"),
    Alert("NeedleNotAMember", "not a member", WARNING, 0, "", "An address, or a node, is not of the cluster"),
    Alert("NeedleVersionsDiffer", "versions differ", WARNING, 600,
          f"max by ({_OF}) (needle_version_known) > max by ({_OF}) (needle_version_cluster)",
          "Nodes know version {{ $value }}, which the cluster cannot use for the sake of nodes that do not"),
    Alert("NeedleUnknownCollections", "unknown collections", WARNING, 60,
          f"max by ({_OF}, shard) (needle_unknown_collections) > 0",
          "Shard {{ $labels.shard }} holds {{ $value }} collections that the catalog does not know"),
)  # fmt: skip
ALERTS: Mapping[str, Alert] = {row.name: row for row in ROWS}


def holds(alert: str, subject: str, action: str, *, severity: str = "") -> Condition:
    """The row of this name holds for `subject`. severity: another one than the table's."""
    row = ALERTS[alert]
    return Condition(
        severity=severity or row.severity,
        name=row.condition,
        subject=subject,
        action=action,
        alert=row.name,
        runbook=row.runbook,
    )
