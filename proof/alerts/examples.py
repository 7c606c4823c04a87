"""For each rule, series under which it fires, and what it then says.

A test sees to it that no rule is without one. What is expected is written out, so that a rule, its labels and its
summary are each compared with something that they were not made from. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from needle.client.alerts import ALERTS, RUNBOOKS

STEP = 5
"""Seconds between two samples, and between two evaluations."""
WELL = 60
"""Seconds at the beginning in which nothing is wrong."""
DAY = 86_400
HOUR = 3_600
MINE = "needle-1"
"""The cluster that has the fault."""


GONE = float("nan")
"""Instead of a value: nothing is there, as when a scrape fails."""


class Level(NamedTuple):
    """A gauge: its value before, during and after the fault; after None: as before."""

    well: float
    bad: float
    after: float | None = None


class Rising(NamedTuple):
    """A counter, or a clock: how much it grows in a second, before and after the fault, and during it."""

    well: float
    bad: float


def unharmed(shape: Level | Rising) -> Level | Rising:
    """The same with no fault."""
    return Level(shape.well, shape.well) if isinstance(shape, Level) else Rising(shape.well, shape.well)


class Example(NamedTuple):
    """series: by its selector. labels: of the alert, beside its severity. lead: seconds that the fault lasts beyond the
    rule's `for`. window: of a rate in the expression: so long it may fire after the end. runbooks: where the alert says
    that they are."""

    series: Mapping[str, Level | Rising]
    labels: Mapping[str, str]
    summary: str
    lead: int = 30
    window: int = 0
    runbooks: str = f"{RUNBOOKS}#"

    def instants(self, alert: str) -> dict[str, int]:
        """Seconds at which the rule is looked at: before, too early to fire, when it must, and when it must not any
        more."""
        hold, bad = ALERTS[alert].hold, WELL + STEP
        fires = bad + hold + self.lead
        found = {"before": WELL, "fires": fires, "clear": fires + self.window + 60}
        return {**found, "too early": bad + hold // 2} if hold else found

    def all_series(self) -> dict[str, Level | Rising]:
        """With another cluster beside this one, in the same job, that is as this one was before: it must neither hide
        the fault nor be told of."""
        mine, theirs = f'needle_cluster="{MINE}"', 'needle_cluster="beside-1"'
        beside = {
            one.replace(mine, theirs).replace('instance="', 'instance="beside-'): unharmed(shape)
            for one, shape in self.series.items()
            if mine in one
        }
        return {**self.series, **beside}

    def values(self, alert: str, shape: Level | Rising) -> str:
        """A series in promtool's notation, a sample each STEP from 0 on."""
        when = self.instants(alert)
        lasts = (when["before"], when["fires"] - when["before"], when["clear"] - when["fires"])
        steps = [seconds // STEP for seconds in lasts]
        if isinstance(shape, Rising):
            rates = (shape.well, shape.bad, shape.well)
            parts, at = [], 0.0
            for count, rate in zip(steps, rates, strict=True):
                parts.append(f"{at:g}+{rate * STEP:g}x{count - 1}")
                at += rate * STEP * count
            return " ".join(parts)
        levels = (shape.well, shape.bad, shape.well if shape.after is None else shape.after)
        steps[0] += 1  # the sample at 0
        return " ".join(
            f"stale _x{count - 1}" if math.isnan(level) else f"{level:.15g}+0x{count - 1}"
            for level, count in zip(levels, steps, strict=True)
        )


def _of(name: str, *labels: str, cluster: str = MINE, instance: str = "a:1", job: str = "db") -> str:
    """A selector with Prometheus' own labels, and the one of every series. labels: name=value."""
    given = {"job": job, "instance": instance, "needle_cluster": cluster, **dict(one.split("=") for one in labels)}
    told = ", ".join(f'{label}="{value}"' for label, value in given.items() if value)
    return f"{name}{{{told}}}"


def _clocks(fast: float) -> dict[str, Level | Rising]:
    found: dict[str, Level | Rising] = {}
    for instance, rate in (("a:1", 1.0), ("b:1", 1.0), ("c:1", fast)):
        found[_of("needle_clock_monotonic_seconds", instance=instance)] = Rising(1.0, rate)
        found[_of("needle_clock_error_max_ratio", instance=instance)] = Level(0.001, 0.001)
    return found


CLUSTER = {"needle_cluster": MINE}
NODE = {**CLUSTER, "job": "db", "instance": "a:1"}
SHARD = {**CLUSTER, "shard": "1"}
LAG = _of("needle_replication_lag_ms", "shard=1", "follower=node-2")
FSYNC = "needle_fsync_seconds_bucket"

EXAMPLES: Mapping[str, Example] = {
    "NeedleElection": Example(
        {
            _of("needle_shard_electing", "shard=1"): Level(0, 0),
            _of("needle_elections_total", "shard=1", "reason=leader_silent"): Level(3, 4, 4),
            _of("needle_elections_total", "shard=2", "reason=handed_over"): Level(3, 4, 4),  # on purpose
        },
        SHARD, "Shard 1 lost its leader and elects one", window=60,
    ),
    "NeedleShardNoLeader": Example(
        {
            _of("needle_shard_led", "shard=1"): Level(1, 0),
            _of("needle_shard_led", "shard=1", instance="b:1"): Level(0, 0),  # it is cut off, and sees nobody
            _of("needle_shard_led", "shard=2"): Level(1, 1),
        },
        SHARD, "Shard 1 has no leader: writes and strong reads of it wait",
    ),
    "NeedleCatalogNoLeader": Example(
        {_of("needle_catalog_led"): Level(1, 0), _of("needle_catalog_led", instance="b:1"): Level(0, 0)},
        CLUSTER, "The catalog has no leader: documents are read and written, and nothing else changes",
    ),
    "NeedleReplicationLag": Example(
        {LAG: Level(999, 1500)}, {**SHARD, "follower": "node-2"}, "node-2 is 1500 ms behind in shard 1"
    ),
    "NeedleReplicationLagLong": Example(
        {LAG: Level(9999, 10_001)}, {**SHARD, "follower": "node-2"},
        "node-2 is 10001 ms behind in shard 1: do not stop another node",
    ),
    "NeedleShardsUneven": Example(
        {
            _of("needle_shard_vector_count", "shard=0"): Level(1000, 2000),
            _of("needle_shard_vector_count", "shard=1"): Level(1000, 1000),
            _of("needle_shard_vector_count", "shard=1", instance="b:1"): Level(900, 900),  # a follower
            _of("needle_shard_vector_count", "shard=0", cluster="small-1"): Level(100, 100),
            _of("needle_shard_vector_count", "shard=1", cluster="small-1"): Level(10, 10),
        },
        CLUSTER, "The largest shard has 1.33 times as many documents as the mean",
    ),
    "NeedleNodeUnreachable": Example(
        {
            _of("needle_node_reachable", "node=node-2"): Level(1, 0),
            _of("needle_node_reachable", "node=node-3"): Level(1, 1),
            _of("needle_node_reachable", "node=node-3", instance="b:1"): Level(0, 0),  # b is cut off, not node-3
        },
        {**CLUSTER, "node": "node-2"}, "No other node gets an answer of node-2",
    ),
    "NeedleNodeNotScraped": Example(
        {
            _of("up", cluster=""): Level(1, 0),
            _of("needle_node_up"): Level(1, GONE, 1),
            _of("up", cluster="", job="other", instance="b:1"): Level(0, 0),  # no node
        },
        NODE, "Prometheus gets no answer of a:1",
    ),
    "NeedleClusterNotScraped": Example(
        {
            _of("needle_node_up"): Level(1, GONE, 1),
            _of("needle_node_up", instance="b:1"): Level(1, GONE, GONE),
            _of("needle_node_up", cluster="other-1", instance="c:1"): Level(1, 1),  # in the same job
            _of("needle_node_up", cluster="", instance="d:1"): Level(1, GONE, GONE),  # it has no cluster yet
        },
        CLUSTER, "Prometheus gets no answer of any node of needle-1",
    ),
    "NeedleUnderReplicated": Example(
        {
            _of("needle_shard_missing_replicas", "shard=1"): Level(0, 1),
            _of("needle_shard_missing_replicas", "shard=2"): Level(0, 0),
            _of("needle_shard_missing_replicas", "shard=2", instance="b:1"): Level(2, 2),  # it is cut off
        },
        SHARD, "Shard 1 lacks 1 replicas: so many fewer may fail",
    ),
    "NeedleDiskNearlyFull": Example(
        {
            _of("needle_disk_free_bytes"): Level(200 << 20, 150 << 20),
            _of("needle_disk_kept_free_bytes"): Level(100 << 20, 100 << 20),
            _of("needle_disk_free_bytes", instance="b:1"): Level(1, 1),
            _of("needle_disk_kept_free_bytes", instance="b:1"): Level(0, 0),  # it keeps nothing free
        },
        NODE, "a:1 has 150MiB left on its disk and will refuse data soon",
    ),
    "NeedleDiskFull": Example(
        {
            _of("needle_disk_low"): Level(0, 1),
            _of("up", cluster=""): Level(1, 1),
            _of("up", cluster="", instance="b:1"): Level(0, 0),
            _of("needle_runbooks_info", "address=https://a/x#"): Level(1, 1),
            _of("needle_runbooks_info", "address=https://b/x#", instance="b:1"): Level(1, GONE, GONE),  # it is down
        },
        NODE, "a:1 refuses data for want of room on its disk", runbooks="https://a/x#",
    ),
    "NeedleMemoryNearlyFull": Example(
        {_of("needle_memory_tight"): Level(0, 1)}, NODE, "a:1 saves memory and will refuse data soon"
    ),
    "NeedleMemoryFull": Example(
        {_of("needle_memory_low"): Level(0, 1)}, NODE, "a:1 takes as much memory as it may and refuses data"
    ),
    "NeedleLogNearlyFull": Example(
        {
            _of("needle_log_bytes"): Level(600 << 20, 700 << 20),
            _of("needle_log_bytes_max"): Level(1000 << 20, 1000 << 20),
        },
        NODE, "The Raft log of a:1 takes 700MiB and cannot be cut",
    ),
    "NeedleFsyncSlow": Example(
        {
            _of(FSYNC, "le=0.05"): Rising(100, 0),
            _of(FSYNC, "le=0.1"): Rising(100, 0),
            _of(FSYNC, "le=0.2"): Rising(100, 100),
            _of(FSYNC, "le=+Inf"): Rising(100, 100),
        },
        {**CLUSTER, "instance": "a:1"}, "One log write in a hundred takes 199ms or more on a:1", lead=90, window=180,
    ),
    "NeedleDiskHangs": Example(
        {_of("needle_fsync_under_way_seconds"): Level(0.2, 62)}, NODE,
        "A log write of a:1 has waited 1m 2s for the disk",
    ),
    "NeedleClockRateOff": Example(
        _clocks(1.01), {**NODE, "instance": "c:1"},
        "The clock of c:1 runs at another rate than others, by 1%", lead=330, window=360,
    ),
    "NeedleCertificateExpires": Example(
        {_of("needle_certificate_expiry_timestamp_seconds"): Level(15 * DAY, 13 * DAY + WELL + STEP + 90)},
        NODE, "The certificate of a:1 or its authority expires in 13d 0h 0m 0s",
    ),
    "NeedleCertificateRefused": Example(
        {_of("needle_certificate_refused"): Level(0, 1)}, NODE,
        "a:1 refuses the changed files of its certificates and uses those of before",
    ),
    "NeedleBackupTooOld": Example(
        {_of("needle_backup_timestamp_seconds"): Level(-25 * HOUR, WELL + STEP + 90 - 27 * HOUR)}, CLUSTER,
        "The last backup began 1d 3h 0m 0s ago",
    ),
    "NeedleArchiveBehind": Example(
        {_of("needle_backup_archive_lag_seconds", "shard=1"): Level(3, 600)}, SHARD,
        "The log of shard 1 is archived until 10m 0s ago",
    ),
    "NeedleReplicaDamaged": Example(
        {_of("needle_replica_damaged", "shard=1"): Level(0, 1)}, {**NODE, "shard": "1"},
        "a:1 found shard 1 damaged and fetches it again",
    ),
    "NeedleReplicaDivergence": Example(
        {
            _of("needle_replica_divergence", "shard=1"): Level(0, 1),
            _of("needle_replica_divergence", "shard=2"): Level(0, 0),
            _of("needle_replica_divergence", "shard=catalog"): Level(0, 0),
        },
        SHARD, "Replicas of shard 1 do not hold the same at one index: 1 differ from most",
    ),
    "NeedleReplicaLost": Example(
        {
            _of("needle_replica_lost", "shard=1", instance="b:1"): Level(0, 0),
            _of("needle_node_lost", instance="b:1"): Level(0, 0),
            _of("needle_peer_refused", "node=node-2"): Level(0, 1),
        },
        {**NODE, "node": "node-2"}, "a:1 lost state that others count on, or refuses node-2 for that",
    ),
    "NeedleReplicasNotInPlace": Example(
        {_of("needle_replicas_waiting", "shard=1"): Level(0, 1)}, SHARD,
        "The replicas of shard 1 are not where the catalog wants them",
    ),
    "NeedleMoveWaits": Example(
        {_of("needle_rebalance_waits"): Level(0, 1)}, CLUSTER, "A rebalance is under way and cannot go on"
    ),
    "NeedleFilesNotDeleted": Example(
        {_of("needle_given_up_replicas"): Level(0, 2)}, NODE,
        "a:1 keeps the files of 2 replicas that it holds no more",
    ),
    "NeedleCollectionWorn": Example(
        {_of("needle_ordinals_used_ratio", "shard=1", "collection=books"): Level(0.5, 0.75)},
        {**SHARD, "collection": "books"}, "books has taken 75% of its versions",
    ),
    "NeedleRecallLow": Example(
        {
            _of("needle_recall_sampled", "shard=1", "collection=books"): Level(0.97, 0.8),
            _of("needle_recall_sampled", "shard=1", "collection=books", instance="b:1"): Level(0.97, 0.97),
            _of("needle_recall_sampled", "shard=2", "collection=books"): Level(0.9, 0.9),
        },
        {**SHARD, "collection": "books"}, "Searches of books find 80% of what is nearest in shard 1",
    ),
    "NeedleVersionsDiffer": Example(
        {
            _of("needle_version_known"): Level(5, 6),
            _of("needle_version_known", instance="b:1"): Level(5, 5),
            _of("needle_version_cluster"): Level(5, 5),
            _of("needle_version_cluster", instance="b:1"): Level(5, 5),
        },
        CLUSTER, "Nodes know version 6, which the cluster cannot use for the sake of nodes that do not",
    ),
    "NeedleUnknownCollections": Example(
        {_of("needle_unknown_collections", "shard=1"): Level(0, 2)}, SHARD,
        "Shard 1 holds 2 collections that the catalog does not know",
    ),
}  # fmt: skip

CATALOG_LABELS = {**CLUSTER, "shard": "catalog"}
CATALOG_LAG = _of("needle_replication_lag_ms", "shard=catalog", "follower=node-2")

OF_CATALOG: Mapping[str, Example] = {
    "NeedleElection": Example(
        {
            _of("needle_shard_electing", "shard=catalog"): Level(0, 0),
            _of("needle_elections_total", "shard=catalog", "reason=leader_gone"): Level(3, 4, 4),
        },
        CATALOG_LABELS, "The catalog lost its leader and elects one", window=60,
    ),
    "NeedleReplicationLag": Example(
        {CATALOG_LAG: Level(999, 1500)}, {**CATALOG_LABELS, "follower": "node-2"},
        "node-2 is 1500 ms behind in the catalog",
    ),
    "NeedleReplicationLagLong": Example(
        {CATALOG_LAG: Level(9999, 10_001)}, {**CATALOG_LABELS, "follower": "node-2"},
        "node-2 is 10001 ms behind in the catalog: do not stop another node",
    ),
    "NeedleUnderReplicated": Example(
        {
            _of("needle_shard_missing_replicas", "shard=catalog"): Level(0, 1),
            _of("needle_shard_missing_replicas", "shard=1"): Level(0, 0),
        },
        CATALOG_LABELS, "The catalog lacks 1 replicas: so many fewer may fail",
    ),
    "NeedleReplicaDamaged": Example(
        {_of("needle_replica_damaged", "shard=catalog"): Level(0, 1)}, {**NODE, "shard": "catalog"},
        "a:1 found the catalog damaged and fetches it again",
    ),
    "NeedleReplicaLost": Example(
        {
            _of("needle_replica_lost", "shard=catalog"): Level(0, 1),
            _of("needle_replica_lost", "shard=1"): Level(0, 0),
        },
        {**NODE, "shard": "catalog"}, "a:1 lost state that others count on, or refuses  for that",
    ),
    "NeedleReplicaDivergence": Example(
        {
            _of("needle_replica_divergence", "shard=catalog"): Level(0, 1),
            _of("needle_replica_divergence", "shard=1"): Level(0, 0),
        },
        CATALOG_LABELS, "Replicas of the catalog do not hold the same at one index: 1 differ from most",
    ),
    "NeedleReplicasNotInPlace": Example(
        {_of("needle_replicas_waiting", "shard=catalog"): Level(0, 1)}, CATALOG_LABELS,
        "The replicas of the catalog are not where the catalog wants them",
    ),
}  # fmt: skip
"""The rules that judge the catalog's replicas as they judge those of a shard, and what each then says."""
