"""The metrics of one node: what is observed as it happens, and all that is read from it at a scrape.

Invariant: no metric keeps a value of its own that the node could contradict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from needle.base.errors import NeedleError
from needle.protocol import calls
from needle.server.history import History
from needle.server.machine.loop_watch import LoopWatch
from needle.server.metrics.families import Durations, counted, observed, read
from needle.server.metrics.node_state import NodeState
from needle.server.metrics.replica_state import ReplicaState
from needle.server.metrics.row import CLUSTER_LABEL, cluster_name
from needle.server.node import Node
from needle.server.ports import Observe
from needle.server.system_node import Http

_SEARCHED, _WRITTEN = f"shard_{calls.SEARCH}", f"shard_{calls.WRITE}"
"""By replicas here."""


class NodeMetrics:
    """The metrics of one node. `watch(node)` after it has started, and `watch_http` if it serves HTTP."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.history = History()
        registry = self._registry = CollectorRegistry()
        self._fsync = observed("needle_fsync_seconds", registry)
        self._calls = _Calls()
        registry.register(self._calls)
        self._failures = counted("needle_request_errors_total", registry)
        self._fan_out = observed("needle_search_fanout_count", registry)
        self._merge = observed("needle_search_merge_time_ms", registry)
        self._hold = observed("needle_move_hold_seconds", registry)
        self._arrival = observed("needle_move_arrival_seconds", registry)

    def watch(self, node: Node, loop: LoopWatch | None = None) -> None:
        """Read this node's state at every scrape, and observe its calls."""
        self._watched = node
        node.router.stats.on_search = self._routed
        node.watches.flushes.observe = self._fsync.observe
        switches = node.mover.switches
        switches.on_hold = lambda end, seconds: self._hold.labels(end).observe(seconds)
        switches.on_arrival = self._arrival.observe
        health = node.watch_health() if node.config.http_address is not None else None
        if health is not None:
            self.history = health.history
        self._node = NodeState(node, health)
        self._registry.register(self._node)
        self._replicas = ReplicaState(node)
        if loop is not None:
            self._registry.register(_LoopState(loop))
            loop.on_lag = observed("needle_loop_lag_seconds", self._registry).observe
        node.observer = self._observer()
        node.service.probing.timed_calls = self._timed

    def watch_http(self, door: Http) -> None:
        """Count its connections, too."""
        self._node.http = door

    def _observer(self) -> Observe:
        of_methods, failures = self._calls.of_methods, self._failures

        def observe(method: str, seconds: float, error: NeedleError | None, count: int = 1) -> None:
            if error is not None:
                failures.labels(method, error.code).inc(count)
                return
            durations = of_methods.get(method)
            if durations is None:
                durations = of_methods[method] = Durations()
            durations.note(seconds, count)

        return observe

    def _cluster(self) -> str:
        """What the label of every series says."""
        topology = self._watched.topology
        return "" if topology.settings is None else cluster_name(self._watched.config.cluster_id, topology.founding)

    def _timed(self) -> tuple[dict[str, list[tuple[float, float]]], float]:
        """See LoadAnswer."""
        calls: dict[str, list[tuple[float, float]]] = {}
        for sample in next(iter(self._calls.collect())).samples:
            if sample.name.endswith("_bucket"):
                calls.setdefault(sample.labels["method"], []).append((float(sample.labels["le"]), sample.value))
        failed = next(iter(self._failures.collect())).samples
        return calls, sum(sample.value for sample in failed if sample.name.endswith("_total"))

    def _routed(self, shards: int, merge_seconds: float) -> None:
        self._fan_out.observe(shards)
        self._merge.observe(merge_seconds * 1000)

    async def read(self) -> Callable[[], bytes]:
        """Read everything, on the event loop, in steps. What it returns makes the exposition text, and may be called in
        a thread."""
        families = [*self._registry.collect(), *await self._replicas.read()]
        return partial(generate_latest, _Read(families, self._cluster()))


class _Read(CollectorRegistry):
    """Metrics that were read before. cluster: whose they are, a label of every series; "" while the node belongs to
    none."""

    def __init__(self, families: list[Metric], cluster: str) -> None:
        super().__init__()
        self._families = families
        self._cluster = {CLUSTER_LABEL: cluster} if cluster else {}

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            if self._cluster:
                family.samples = [
                    Sample(one.name, {**one.labels, **self._cluster}, one.value, one.timestamp, one.exemplar)
                    for one in family.samples
                ]
            yield family


class _Calls(Collector):
    """The calls that were answered without an error, by method."""

    def __init__(self) -> None:
        # Without "shard_" these are calls of clients that the node passes on to shards, perhaps other nodes' shards.
        named = (calls.WRITE, calls.SEARCH, calls.GET, _SEARCHED, _WRITTEN)
        self.of_methods = {method: Durations() for method in named}

    def collect(self) -> Iterator[Metric]:
        took, searches = read("needle_request_seconds"), read("needle_search_seconds")
        for method, durations in list(self.of_methods.items()):
            durations.add_to(took, (method,))
        self.of_methods[_SEARCHED].add_to(searches)
        yield from (took, searches, read("needle_writes_total", self.of_methods[_WRITTEN].count))


class _LoopState(Collector):
    """What held the event loop."""

    def __init__(self, watch: LoopWatch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        watch = self._watch
        times, seconds = read("needle_loop_stalls_total"), read("needle_loop_stall_seconds_total")
        for name, count in list(watch.times.items()):
            times.add_metric([name], count)
            seconds.add_metric([name], watch.seconds[name])
        yield from (times, seconds, read("needle_loop_stall_longest_seconds", watch.longest))
