"""What is read at a scrape from the replicas of a node: consensus, documents, index files, moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from prometheus_client.core import Metric

from needle.base.ids import CATALOG_GROUP, GroupId
from needle.base.model import RaftStatus
from needle.base.runtime import micros_of
from needle.client.divergence import strays
from needle.raft.causes import ELECTIONS, STEPDOWNS
from needle.routing.collection_names import called, collection_of, readable
from needle.routing.stored_collections import StoredCollections
from needle.server.metrics.families import read
from needle.server.node import Node
from needle.server.replica import HostedReplica
from needle.server.upkeep.archives import archive_lags

COLLECTIONS_MAX = 100
"""Collections of a shard that have series of their own, the oldest ones: their labels stay the same while others come
and go, and a scrape takes the same time however many there are."""
CATALOG_LABEL: Final = "catalog"
"""What the label `shard` says of the catalog's replicas. They have the series of consensus, as shards' replicas do."""
SEGMENT_EVENTS: Final = ("built", "shipped", "rebuilt", "adopted", "corrupt", "unpublished", "deleted")
NAMES: Final = (
    *("raft_term", "raft_commit_index", "raft_apply_index", "raft_lease_seconds", "raft_leader_changes_total"),
    *("raft_replication_lag", "raft_replication_lag_seconds", "needle_replication_lag_ms"),
    *("needle_shard_leader", "needle_shard_followers", "needle_shard_electing", "needle_replicas_waiting"),
    "needle_backup_archive_lag_seconds",
    *("needle_elections_total", "needle_leader_stepdowns_total", "needle_apply_lag_entries"),
    *("needle_proposals_waiting", "needle_snapshot_fetching", "needle_replica_lost", "needle_replica_damaged"),
    "needle_unknown_collections",
    *("needle_recall_sampled", "needle_recall_samples_total"),
    *("needle_replica_divergence", "needle_replica_comparisons_total"),
    *("needle_moves_running", "needle_move_copied_documents"),
    *("needle_shard_vector_count", "needle_collections", "needle_named_vectors", "needle_documents"),
    *("needle_ordinals_used_ratio", "needle_segments", "needle_index_change_left"),
    *("needle_segments_building", "needle_segment_events_total", "needle_segment_build_seconds_total"),
    *("needle_segment_shipped_bytes_total", "needle_field_index_bytes", "needle_field_index_evictions_total"),
)
Families = Mapping[str, Any]


class ReplicaState:
    """Reads all replicas of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def read(self) -> list[Metric]:
        """All of them, one a turn of the loop: 128 of them take 30 ms."""
        made = {name: read(name) for name in NAMES}
        shown = self._shown_names()
        lags = archive_lags(self._node.host, self._node.topology, micros_of(self._node.ports.clock))
        for group, seconds in lags.items():
            made["needle_backup_archive_lag_seconds"].add_metric([str(group - 1)], seconds)
        self._catalog(made)
        for group in list(self._node.groups):
            hosted = self._node.groups.get(group)
            if hosted is None or not self._node.alive():  # closed meanwhile
                continue
            shard = str(group - 1)
            self._raft(made, shard, group)
            made["needle_replica_comparisons_total"].add_metric([shard], hosted.comparing.whole)
            self._documents(made, shard, hosted, shown)
            self._indexes(made, shard, hosted)
            self._answers(made, shard, hosted, shown)
            await asyncio.sleep(0)
        return list(made.values())

    def _catalog(self, made: Families) -> None:
        """Of its replica here, if there is one: what shards' replicas have without documents."""
        node = self._node
        if node.catalog is not None and node.alive():
            self._raft(made, CATALOG_LABEL, CATALOG_GROUP)
            made["needle_replica_comparisons_total"].add_metric([CATALOG_LABEL], node.comparing.whole)

    def _raft(self, made: Families, shard: str, group: GroupId) -> None:
        status, load = self._node.status(group), self._node.host.load(group)
        for name, value in (
            ("raft_term", status.current_term),
            ("raft_commit_index", status.commit_index),
            ("raft_apply_index", status.last_applied),
            ("raft_lease_seconds", status.lease_remaining),
            ("raft_leader_changes_total", status.leader_changes),
            ("needle_shard_electing", status.state in ("Candidate", "PreCandidate")),
            ("needle_apply_lag_entries", max(0, status.commit_index - status.last_applied)),
            ("needle_proposals_waiting", load.proposals),
            ("needle_snapshot_fetching", load.fetching),
            ("needle_replica_lost", bool(status.lost)),
            ("needle_replica_damaged", bool(status.damage)),
        ):
            made[name].add_metric([shard], value)
        made["needle_shard_leader"].add_metric([shard, status.node_id], status.state == "Leader")
        for name, causes, counts in (
            ("needle_elections_total", ELECTIONS, status.elections),
            ("needle_leader_stepdowns_total", STEPDOWNS, status.stepdowns),
        ):
            # From 0 on: Prometheus sees an increase by the first one, too.
            for cause, times in {**{cause.value: 0 for cause in causes}, **counts}.items():
                made[name].add_metric([shard, cause], times)
        if status.state == "Leader":
            self._led(made, shard, group, status)

    def _led(self, made: Families, shard: str, group: GroupId, status: RaftStatus) -> None:
        """What the leader says."""
        topology = self._node.topology
        holders = topology.holders(group)
        moves = 1 if holders is not None and holders.leaving else 0
        if group != CATALOG_GROUP:  # which has no documents
            moves += sum(move.source == group - 1 for move in topology.moves)
            made["needle_unknown_collections"].add_metric([shard], len(status.unknown_collections))
            made["needle_move_copied_documents"].add_metric([shard], sum(status.copied.values()))
        made["needle_shard_followers"].add_metric([shard], sum(peer.recently_active for peer in status.peers))
        made["needle_replica_divergence"].add_metric([shard], len(strays(status.diverged)))
        made["needle_replicas_waiting"].add_metric([shard], bool(status.waits_for))
        made["needle_moves_running"].add_metric([shard], moves)
        for peer in status.peers:
            made["raft_replication_lag"].add_metric([shard, peer.id], peer.lag_entries)
            made["raft_replication_lag_seconds"].add_metric([shard, peer.id], peer.lag_ms / 1000)
            known = None if peer.recently_active else topology.node(peer.id)
            if known is None or not known.maintenance:  # who is stopped in maintenance is behind on purpose
                made["needle_replication_lag_ms"].add_metric([shard, peer.id], peer.lag_ms)

    def _documents(self, made: Families, shard: str, hosted: HostedReplica, shown: Callable[[str], str]) -> None:
        replica = hosted.replica
        made["needle_shard_vector_count"].add_metric([shard], replica.count())
        view = replica.view
        made["needle_collections"].add_metric([shard], view.collection_count)
        made["needle_named_vectors"].add_metric([shard], view.vector_count)
        for name, share in replica.held.worn():
            made["needle_ordinals_used_ratio"].add_metric([shard, shown(name)], share)
        for held in replica.held.first(COLLECTIONS_MAX):
            name = shown(held.record.spec.name)
            if not held.record.spec.of:  # its documents are counted already
                made["needle_documents"].add_metric([shard, name], held.visible)
            made["needle_segments"].add_metric([shard, name], len(held.vectors.served))
            if held.index.wanted:
                left = held.index.vectors - held.index.done
                made["needle_index_change_left"].add_metric([shard, name], left)

    def _answers(self, made: Families, shard: str, hosted: HostedReplica, shown: Callable[[str], str]) -> None:
        made["needle_recall_samples_total"].add_metric([shard], hosted.recall.samples)
        for name, share in hosted.recall.told().items():
            made["needle_recall_sampled"].add_metric([shard, shown(name)], share)

    def _indexes(self, made: Families, shard: str, hosted: HostedReplica) -> None:
        stats, budget = hosted.keeper.stats, hosted.replica.field_indexes
        made["needle_segments_building"].add_metric([shard], stats.building)
        for event in SEGMENT_EVENTS:
            made["needle_segment_events_total"].add_metric([shard, event], getattr(stats, event))
        made["needle_segment_build_seconds_total"].add_metric([shard], stats.build_seconds)
        made["needle_segment_shipped_bytes_total"].add_metric([shard], stats.shipped_bytes)
        made["needle_field_index_bytes"].add_metric([shard], budget.used)
        made["needle_field_index_evictions_total"].add_metric([shard], budget.evicted)

    def _shown_names(self) -> Callable[[str], str]:
        """What people call a collection of a shard, or a named vector (`collection/vector`); of one that was dropped,
        and perhaps made again, its whole name."""
        topology, known = self._node.topology, StoredCollections()

        def shown(stored: str) -> str:  # few of them are asked for, however many there are
            info = known.find(topology, collection_of(stored) or stored)
            return called(stored) if info is not None and stored in info.stored_names else readable(stored)

        return shown
