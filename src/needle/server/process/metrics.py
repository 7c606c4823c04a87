"""What a node tells Prometheus: the only importer of prometheus_client.

State (terms, indexes, lags, documents, segments) is read from the node when it is scraped; durations are observed as
they happen. Every name is listed in docs/operations.md. Invariant: no metric keeps a value of its own that the node
could contradict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from needle.base.errors import NeedleError
from needle.base.runtime import Clock
from needle.multiraft.ports import KeyValueStore, KeyValueTxn
from needle.protocol import calls
from needle.server.node import Node
from needle.server.ports import NodePorts
from needle.server.process.loop_watch import LoopWatch
from needle.server.upkeep.health import HealthWatch

FAST = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
MILLISECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0)
COLLECTIONS_MAX = 100
"""Collections of a shard that have series of their own, the oldest ones: their labels stay the same while others come
and go, and a scrape takes the same time however many there are."""
SHARDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class MeasuredStore:
    """A key-value store that times its durable commits."""

    def __init__(self, store: KeyValueStore, clock: Clock, observe: Callable[[float], None]) -> None:
        self.get = store.get
        self.scan = store.scan
        self.close = store.close
        self.bytes_used = store.bytes_used
        self._commit = store.commit
        self._clock = clock
        self._observe = observe

    def commit(self, fill: Callable[[KeyValueTxn], None], sync: bool) -> None:
        """As below, timed when it syncs."""
        start = self._clock.monotonic()
        self._commit(fill, sync)
        if sync:
            self._observe(self._clock.monotonic() - start)


class NodeMetrics:
    """The metrics of one node. `measured(ports)` before the node is made, `watch(node)` after it has started."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._fsync = Histogram(
            "needle_fsync_seconds",
            "One durable transaction of the Raft log, all groups together.",
            registry=registry,
            buckets=FAST,
        )
        self._calls = Histogram(
            "needle_request_seconds",
            "Served calls, from decoding to the answer.",
            ["method"],
            registry=registry,
            buckets=FAST,
        )
        self._searches = Histogram(
            "needle_search_seconds", "Searches of this node's replicas.", registry=registry, buckets=FAST
        )
        self._writes = Counter("needle_writes", "Writes acknowledged by this node as leader.", registry=registry)
        self._failures = Counter(
            "needle_request_errors", "Calls answered with an error, by its code.", ["method", "code"], registry=registry
        )

        self._fan_out = Histogram(
            "needle_search_fanout_count",
            "Shards that a search was sent to, by the node that routed it.",
            registry=registry,
            buckets=SHARDS,
        )
        self._merge = Histogram(
            "needle_search_merge_time_ms",
            "Making one answer of the shards' answers, in the node that routed the search.",
            registry=registry,
            buckets=MILLISECONDS,
        )

    def measured(self, ports: NodePorts) -> NodePorts:
        """The same ports, with the log's commits timed."""
        inner = ports.open_store

        def open_store(directory: str) -> KeyValueStore:
            return MeasuredStore(inner(directory), ports.clock, self._fsync.observe)

        return dataclasses.replace(ports, open_store=open_store)

    def watch(self, node: Node, loop: LoopWatch | None = None) -> None:
        """Read this node's state at every scrape, and observe its calls."""
        # Without "shard_" these are calls of clients that the node passes on to shards, perhaps other nodes' shards.
        searched, written = f"shard_{calls.SEARCH}", f"shard_{calls.WRITE}"
        node.router.stats.on_search = self._routed
        health = node.watch_health() if node.config.http_address is not None else None
        self._registry.register(_NodeState(node, health))
        self._registry.register(_Limited(node))
        if loop is not None:
            self._registry.register(_LoopState(loop))
        counted = {name: self._calls.labels(name) for name in (calls.WRITE, calls.SEARCH, calls.GET)}
        searches, writes, failures = self._searches.observe, self._writes.inc, self._failures

        def observe(method: str, seconds: float, error: NeedleError | None) -> None:
            if error is not None:
                failures.labels(method, error.code).inc()
                return
            histogram = counted.get(method)
            if histogram is None:
                histogram = counted[method] = self._calls.labels(method)
            histogram.observe(seconds)
            if method == searched:
                searches(seconds)
            elif method == written:
                writes()

        node.observer = observe

    def _routed(self, shards: int, merge_seconds: float) -> None:
        self._fan_out.observe(shards)
        self._merge.observe(merge_seconds * 1000)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)


class _Limited(Collector):
    """What was refused of keys that asked for more than they may."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterator[Metric]:
        refused = CounterMetricFamily(
            "needle_key_refusals",
            "Requests of an API key refused, by which of its limits was used up.",
            labels=["key", "limit"],
        )
        for name, meter in self._node.access.meters():
            for limit, count in meter.refused.items():
                refused.add_metric([name, limit], count)
        yield refused


class _LoopState(Collector):
    """What held the event loop."""

    def __init__(self, watch: LoopWatch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        watch = self._watch
        times = CounterMetricFamily(
            "needle_loop_stalls", "Times the event loop was seen held for over 10 ms of CPU.", labels=["function"]
        )
        seconds = CounterMetricFamily(
            "needle_loop_stall_seconds", "CPU time of these, by the function seen most in it.", labels=["function"]
        )
        for name, count in list(watch.times.items()):
            times.add_metric([name], count)
            seconds.add_metric([name], watch.seconds[name])
        longest = GaugeMetricFamily(
            "needle_loop_stall_longest_seconds", "CPU time of the longest.", value=watch.longest
        )
        yield from (times, seconds, longest)


class _NodeState(Collector):
    """Reads a node's state at scrape time."""

    def __init__(self, node: Node, health: HealthWatch | None) -> None:
        """health: of the whole cluster."""
        self._node = node
        self._health = health

    def collect(self) -> Iterator[Metric]:
        node = self._node
        if not node.alive():
            yield GaugeMetricFamily("needle_node_up", "1 while the node does its work.", value=0)
            return
        yield GaugeMetricFamily("needle_node_up", "1 while the node does its work.", value=1)
        yield GaugeMetricFamily(
            "needle_node_ready", "1 when the node should get traffic.", value=0 if node.not_ready() else 1
        )
        yield GaugeMetricFamily("needle_maintenance", "1 in maintenance mode.", value=int(node.host.maintenance))
        if (certificates := node.ports.certificates) is not None:
            yield GaugeMetricFamily(
                "needle_certificate_expiry_timestamp_seconds",
                "When the certificate in use expires, in seconds since 1970.",
                value=certificates.expires,
            )
        yield GaugeMetricFamily(
            "needle_given_up_replicas",
            "Replicas that this node holds no more, and whose files are still on its disk.",
            value=len(node.given_up.kept),
        )
        job = node.topology.rebalance
        yield GaugeMetricFamily(
            "needle_rebalance_waits",
            "1 while a rebalance is under way and nothing of it can go on, as far as this node has heard.",
            value=int(job is not None and not job.over and bool(job.why)),
        )
        if self._health is not None and self._health.latest is not None:
            yield GaugeMetricFamily(
                "needle_cluster_healthy",
                "1 while every shard has a leader and all its replicas, as this node sees them.",
                value=int(self._health.latest.healthy),
            )
            missing = GaugeMetricFamily(
                "needle_shard_missing_replicas",
                "Replicas of a shard that are down, behind or not built yet, as this node sees them.",
                labels=["shard"],
            )
            for number, shard in self._health.latest.shards.items():
                missing.add_metric([str(number)], shard.missing_replicas)
            yield missing
        refused = GaugeMetricFamily("needle_peer_refused", "1 for nodes that are not heard.", labels=["node"])
        for name in node.host.refused():
            refused.add_metric([name], 1)
        yield refused
        yield from self._raft()
        yield from self._replicas()
        yield from self._field_indexes()
        yield from self._network()

    def _raft(self) -> Iterator[Metric]:
        gauges = {
            name: GaugeMetricFamily(name, text, labels=["shard"])
            for name, text in (
                ("raft_term", "Current term."),
                ("raft_commit_index", "Highest committed log index known here."),
                ("raft_apply_index", "Highest log index applied here."),
                ("raft_lease_seconds", "Seconds left of the leader's lease, 0 without one."),
                ("needle_replica_damaged", "1 while the replica's data is damaged and fetched again."),
                ("needle_replicas_waiting", "1 while replicas are not where they should be; on the leader."),
                ("needle_shard_followers", "Followers and learners the leader heard from lately; on the leader."),
            )
        }
        lost = GaugeMetricFamily(
            "needle_replica_lost", "1 where the replica lost state that others count on.", labels=["shard"]
        )
        changes = CounterMetricFamily("raft_leader_changes", "Changes of leader seen since start.", labels=["shard"])
        elections = CounterMetricFamily(
            "needle_elections", "Elections that this node began, by reason.", labels=["shard", "reason"]
        )
        stepdowns = CounterMetricFamily(
            "needle_leader_stepdowns", "Leadership that this node gave up, by reason.", labels=["shard", "reason"]
        )
        leader = GaugeMetricFamily("needle_shard_leader", "1 on the node that leads.", labels=["shard", "node"])
        lag = GaugeMetricFamily("raft_replication_lag", "Entries a replica lacks.", labels=["shard", "follower"])
        seconds = GaugeMetricFamily(
            "raft_replication_lag_seconds", "Age of the oldest entry a replica lacks.", labels=["shard", "follower"]
        )
        millis = GaugeMetricFamily(
            "needle_replication_lag_ms", "Age of the oldest entry a replica lacks.", labels=["shard", "follower"]
        )
        for group in self._node.groups:
            shard, status = str(group - 1), self._node.status(group)
            gauges["raft_term"].add_metric([shard], status.current_term)
            gauges["raft_commit_index"].add_metric([shard], status.commit_index)
            gauges["raft_apply_index"].add_metric([shard], status.last_applied)
            gauges["raft_lease_seconds"].add_metric([shard], status.lease_remaining)
            gauges["needle_replica_damaged"].add_metric([shard], 1 if status.damage else 0)
            changes.add_metric([shard], status.leader_changes)
            for family, counts in ((elections, status.elections), (stepdowns, status.stepdowns)):
                for reason, times in counts.items():
                    family.add_metric([shard, reason], times)
            lost.add_metric([shard], int(bool(status.lost)))
            leads = status.state == "Leader"
            leader.add_metric([shard, status.node_id], int(leads))
            if leads:
                active = sum(peer.recently_active for peer in status.peers)
                gauges["needle_shard_followers"].add_metric([shard], active)
                gauges["needle_replicas_waiting"].add_metric([shard], int(bool(status.waits_for)))
            for peer in status.peers:
                lag.add_metric([shard, peer.id], peer.lag_entries)
                seconds.add_metric([shard, peer.id], peer.lag_ms / 1000)
                millis.add_metric([shard, peer.id], peer.lag_ms)
        yield from gauges.values()
        yield from (changes, elections, stepdowns, leader, lag, seconds, millis, lost)

    def _replicas(self) -> Iterator[Metric]:
        documents = GaugeMetricFamily("needle_documents", "Documents held.", labels=["shard", "collection"])
        vectors = GaugeMetricFamily("needle_shard_vector_count", "Documents in the shard.", labels=["shard"])
        collections = GaugeMetricFamily("needle_collections", "Collections of the shard.", labels=["shard"])
        worn = GaugeMetricFamily(
            "needle_ordinals_used_ratio",
            "Share of the 2^32 - 1 document versions that a collection can take; from one half on.",
            labels=["shard", "collection"],
        )
        segments = GaugeMetricFamily("needle_segments", "Index segments open.", labels=["shard", "collection"])
        events = CounterMetricFamily(
            "needle_segment_events",
            "Segments built, shipped, rebuilt, corrupt, deleted.",
            labels=["shard", "event"],
        )
        seconds = CounterMetricFamily("needle_segment_build_seconds", "Time spent building.", labels=["shard"])
        shipped = CounterMetricFamily("needle_segment_shipped_bytes", "Bytes fetched.", labels=["shard"])
        shown = self._shown_names()
        for group, hosted in self._node.groups.items():
            shard = str(group - 1)
            vectors.add_metric([shard], hosted.replica.count())
            collections.add_metric([shard], len(hosted.replica.view.collections))
            for name, share in hosted.replica.held.worn():
                worn.add_metric([shard, shown(name)], share)
            for held in hosted.replica.held.first(COLLECTIONS_MAX):
                name = shown(held.record.spec.name)
                documents.add_metric([shard, name], held.visible)
                segments.add_metric([shard, name], len(held.vectors.served))
            stats = hosted.keeper.stats
            for event in ("built", "shipped", "rebuilt", "corrupt", "unpublished", "deleted"):
                events.add_metric([shard, event], getattr(stats, event))
            seconds.add_metric([shard], stats.build_seconds)
            shipped.add_metric([shard], stats.shipped_bytes)
        yield from (documents, vectors, collections, worn, segments, events, seconds, shipped)

    def _shown_names(self) -> Callable[[str], str]:
        """What people call a collection of a shard; of one that was dropped, and perhaps made again, its whole name."""
        listed = {info.stored_name: info.spec.name for info in self._node.topology.collections}
        return lambda stored: listed.get(stored, stored)

    def _field_indexes(self) -> Iterator[Metric]:
        held_bytes = GaugeMetricFamily(
            "needle_field_index_bytes", "Memory of indexes of metadata fields.", labels=["shard"]
        )
        evicted = CounterMetricFamily(
            "needle_field_index_evictions", "Field indexes dropped to make room for others.", labels=["shard"]
        )
        for group, hosted in self._node.groups.items():
            held_bytes.add_metric([str(group - 1)], hosted.replica.field_indexes.used)
            evicted.add_metric([str(group - 1)], hosted.replica.field_indexes.evicted)
        yield from (held_bytes, evicted)

    def _network(self) -> Iterator[Metric]:
        counters = self._node.host.counters
        turns = CounterMetricFamily("needle_raft_events", "What the Raft host did.", labels=["event"])
        for name in (
            "turns",
            "persists",
            "applied_batches",
            "frames_in",
            "frames_out",
            "messages_in",
            "messages_out",
            "messages_refused",
        ):
            turns.add_metric([name], getattr(counters, name))
        yield turns
        yield GaugeMetricFamily("needle_disk_free_bytes", "Room on the disk of data_dir.", value=self._node.space.free)
        yield GaugeMetricFamily(
            "needle_disk_low", "1 while data is refused for want of room.", value=int(self._node.space.low)
        )
        yield GaugeMetricFamily(
            "needle_node_lost",
            "1 where the node lost state that others count on: none of its replicas goes on.",
            value=int(bool(self._node.host.lost)),
        )
        held = getattr(self._node.listener, "held", 0)
        yield GaugeMetricFamily("needle_rpc_held_bytes", "Held for clients and nodes.", value=held)
        drops = CounterMetricFamily("needle_rpc_dropped_frames", "One-way frames not sent to peers.")
        drops.add_metric([], self._node.peers.dropped_frames())
        yield drops
