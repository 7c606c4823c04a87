"""What is read at a scrape from a node as a whole: the cluster as it sees it, its disk, its log, its memory, its doors.

Invariant: a scrape waits for nobody, and what it costs grows with the replicas of the node and with nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final, Protocol, cast

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from needle.base.ids import CATALOG_GROUP
from needle.base.runbooks import runbooks_of
from needle.server.machine.computer import resident_bytes
from needle.server.machine.descriptors import connections_max, http_max
from needle.server.metrics.families import read
from needle.server.metrics.replica_state import CATALOG_LABEL, COLLECTIONS_MAX
from needle.server.node import Node
from needle.server.system_node import Http
from needle.server.upkeep.health import HealthWatch
from needle.server.upkeep.saving_memory import cached_bytes
from needle.shard.documents.sqlite_file import memory_used

HOST_EVENTS: Final = (
    *("turns", "persists", "applied_batches", "frames_in", "frames_out"),
    *("messages_in", "messages_out", "messages_refused"),
)
SNAPSHOT_EVENTS: Final = ("made", "offered", "fetched", "installed", "failed")
REJECTED: Final = (
    *("overloaded", "disk_full", "too_many_files", "out_of_memory", "unauthenticated", "forbidden"),
    *("frame_too_large", "content_too_large", "wrong_cluster", "unsupported_version", "tls_failed", "protocol_error"),
)
"""The codes of errors by which a door turns callers away."""


class BinaryDoor(Protocol):
    """What the listener of the binary protocol says of itself. held: bytes. refused: by code."""

    held: int
    refused: Counter[str]

    @property
    def open_connections(self) -> int: ...


class NodeState(Collector):
    """Reads a node."""

    def __init__(self, node: Node, health: HealthWatch | None) -> None:
        """health: of the whole cluster."""
        self._node = node
        self._health = health
        self.http: Http | None = None

    def collect(self) -> Iterator[Metric]:
        alive = self._node.alive()
        yield read("needle_node_up", int(alive))
        if alive:
            yield from self._itself()
            yield from self._cluster()
            yield from self._moves()
            yield from self._log()
            yield from self._disk()
            yield from self._doors()
            yield self._memory()
            yield from self._memory_space()

    def _itself(self) -> Iterator[Metric]:
        node = self._node
        yield read("needle_node_ready", int(not node.not_ready()))
        yield read("needle_maintenance", int(node.host.maintenance))
        if (certificates := node.ports.certificates) is not None:
            yield read("needle_certificate_expiry_timestamp_seconds", certificates.expires)
            yield read("needle_certificate_refused", int(bool(certificates.refused)))
        if node.topology.backed_up:
            yield read("needle_backup_timestamp_seconds", node.topology.backed_up / 1e6)
        yield read("needle_node_lost", int(bool(node.host.lost)))
        refused = read("needle_peer_refused")
        for name in node.host.refused():
            refused.add_metric([name], 1)
        yield refused
        if address := runbooks_of(node.config):
            runbooks = read("needle_runbooks_info")
            runbooks.add_metric([address], 1)
            yield runbooks
        yield read("needle_clock_monotonic_seconds", node.now())
        yield read("needle_clock_error_max_ratio", node.config.clock_error_max)

    def _cluster(self) -> Iterator[Metric]:
        if self._node.catalog is not None:
            yield read("needle_catalog_led", int(self._node.host.leader(CATALOG_GROUP) is not None))
        if self._node.topology.settings is not None:
            yield read("needle_version_known", self._node.ports.knows)
            yield read("needle_version_cluster", self._node.topology.cluster_version)
        if self._health is None or (health := self._health.latest) is None:
            return
        yield read("needle_cluster_healthy", int(health.healthy))
        led, missing = read("needle_shard_led"), read("needle_shard_missing_replicas")
        for number, shard in health.shards.items():
            led.add_metric([str(number)], int(shard.leader is not None))
            missing.add_metric([str(number)], shard.missing_replicas)
        missing.add_metric([CATALOG_LABEL], self._health.catalog_missing)
        yield from (led, missing)
        reachable = read("needle_node_reachable")
        resting = {info.id for info in self._node.topology.nodes if info.maintenance}
        for name, answers in health.answering.items():
            if answers or name not in resting:
                reachable.add_metric([name], int(answers))
        yield reachable

    def _moves(self) -> Iterator[Metric]:
        job = self._node.topology.rebalance
        running = job if job is not None and not job.over else None
        yield read("needle_rebalance_waits", int(self._node.mover.waits or (running is not None and bool(running.why))))
        yield read("needle_rebalance_planned_bytes", running.planned_bytes if running is not None else 0)
        yield read("needle_rebalance_moved_bytes", running.moved_bytes if running is not None else 0)
        yield read("needle_given_up_replicas", len(self._node.given_up.kept))

    def _log(self) -> Iterator[Metric]:
        host = self._node.host
        yield read("needle_fsync_under_way_seconds", self._node.watches.flushes.under_way())
        yield read("needle_log_bytes", host.engine.bytes_used())
        yield read("needle_log_bytes_max", host.engine.config.log_bytes_max)
        turns, snapshots = read("needle_raft_events_total"), read("needle_snapshot_events_total")
        for name in HOST_EVENTS:
            turns.add_metric([name], getattr(host.engine.counters, name))
        for name in SNAPSHOT_EVENTS:
            snapshots.add_metric([name], getattr(host.engine.counters, f"snapshots_{name}"))
        moved = read("needle_snapshot_bytes_total")
        moved.add_metric(["sent"], host.engine.shelf.bytes_sent)
        moved.add_metric(["fetched"], host.engine.fetcher.bytes_fetched)
        moved.add_metric(["reused"], host.engine.fetcher.bytes_reused)
        yield from (turns, snapshots, moved)

    def _disk(self) -> Iterator[Metric]:
        room = self._node.space.disk.room()
        yield read("needle_disk_free_bytes", room.free)
        yield read("needle_disk_total_bytes", room.total)
        yield read("needle_disk_used_bytes", room.used)
        yield read("needle_disk_kept_free_bytes", room.kept_free)
        yield read("needle_disk_low", int(room.low))

    def _doors(self) -> Iterator[Metric]:
        listener = self._binary()
        now, most, rejected = (
            read(name) for name in ("needle_connections", "needle_connections_max", "needle_rejected_requests_total")
        )
        doors: list[tuple[str, int, int, Mapping[str, int]]] = [
            ("binary", listener.open_connections, connections_max(), listener.refused)
        ]
        if self.http is not None:
            doors.append(("http", self.http.connections, http_max(), self.http.refused))
        for door, connections, bound, refused in doors:
            now.add_metric([door], connections)
            most.add_metric([door], bound)
            for reason in REJECTED:
                rejected.add_metric([door, reason], refused.get(reason, 0))
        limited = read("needle_key_refusals_total")
        for name, meter in self._node.access.meters():
            for limit, count in meter.refused.items():
                limited.add_metric([name, limit], count)
        yield from (now, most, rejected, limited)
        yield read("needle_rpc_held_bytes", listener.held)
        yield read("needle_rpc_dropped_frames_total", self._node.peers.dropped_frames())

    def _binary(self) -> BinaryDoor:
        return cast(BinaryDoor, self._node.listener)

    def _memory_space(self) -> Iterator[Metric]:
        room = self._node.space.memory.room()
        yield read("needle_memory_own_bytes", room.own)
        yield read("needle_memory_limit_bytes", room.limit)
        yield read("needle_memory_tight", int(room.tight))
        yield read("needle_memory_low", int(room.low))

    def _memory(self) -> Metric:
        vectors = files = fields = caches = feeds = 0
        for hosted in self._node.groups.values():
            fields += hosted.replica.field_indexes.used
            caches += cached_bytes(hosted)
            feeds += hosted.replica.effects.size
            for held in hosted.replica.held.first(COLLECTIONS_MAX):
                vectors += held.vectors.growing.bytes_held()
                files += sum(served.sealed.size for served in held.vectors.served)
        memory = read("needle_memory_bytes")
        parts = {"documents": memory_used(), "vectors": vectors, "index_files": files, "field_indexes": fields}
        others = {"caches": caches, "change_feeds": feeds, "requests": self._binary().held, "process": resident_bytes()}
        for part, size in {**parts, **others}.items():
            memory.add_metric([part], size)
        return memory  # type: ignore[no-any-return]  # the library has no types
