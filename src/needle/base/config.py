"""Configuration of a node: frozen, checked on construction, every unit in the name or the docstring.

Durations are seconds as float or `datetime.timedelta` (stored as float). An error names the field, the value and the
allowed range.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeGuard

from needle.base.errors import ConfigError, invalid
from needle.base.ids import NodeId
from needle.base.model import IndexParams, Metric

_NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


class _Duration(Protocol):
    def total_seconds(self) -> float: ...


def _is_duration(value: object) -> TypeGuard[_Duration]:
    return hasattr(value, "total_seconds")


def refuse(name: str, value: object, allowed: str) -> ConfigError:
    """A ConfigError that names the field, the value and what is allowed."""
    return ConfigError(invalid(name, value, allowed).message, field=name)


def check_range(name: str, value: object, low: float, high: float) -> float:
    """`value` as a number within [low, high], or a ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise refuse(name, value, f"a number from {low:g} to {high:g}")
    return value


def check_node_id(name: str, value: object) -> NodeId:
    """`value` as a node id, or a ConfigError."""
    if not isinstance(value, str) or not _NODE_ID.match(value):
        raise refuse(name, value, "1 to 64 characters of A-Z a-z 0-9 . _ -")
    return value


def parse_address(name: str, value: object) -> tuple[str, int]:
    """ "host:port" as (host, port), or a ConfigError. IPv6 hosts stand in brackets."""
    allowed = '"host:port" with a port from 1 to 65535'
    return split_address(name, value, allowed, 1)


def split_address(name: str, value: object, allowed: str, port_min: int) -> tuple[str, int]:
    """The one way to take "host:port" apart."""
    host, colon, port = str(value).rpartition(":")
    if "://" in host:
        allowed += ", without a scheme: Needle does not speak HTTP here"
    elif "," in host:
        allowed += "; this holds several, where one is meant"
    bracketed = host.startswith("[") and host.endswith("]")
    inner = host[1:-1] if bracketed else host
    odd = not inner or any(sign in inner for sign in "/,@?#[]") or inner != "".join(inner.split())
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else -1
    if not colon or odd or (":" in inner) != bracketed or not port_min <= number < 65536:
        raise refuse(name, value, allowed)
    return inner, number


def parse_node(value: object, name: str = "cluster_nodes") -> tuple[NodeId, str]:
    """ "name=host:port" or "name:port" (then the name is the host) as (node id, address). name: of what holds it."""
    text = str(value)
    node, equals, address = text.partition("=")
    if not equals:
        node, address = split_address(name, text, '"name=host:port" with a port from 1 to 65535', 1)[0], text
    parse_address(name, address)
    return check_node_id(name, node), address


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that protect a node. A request over a limit is refused with the limit in the message."""

    id_bytes_max: int = 512
    metadata_bytes_max: int = 64 * 1024
    dimensions_max: int = 8192
    k_max: int = 10_000
    batch_documents_max: int = 10_000
    batch_bytes_max: int = 16 * 1024 * 1024
    filter_depth_max: int = 32
    filter_nodes_max: int = 1024
    collections_max: int = 10_000
    frame_bytes_max: int = 64 * 1024 * 1024
    uncommitted_bytes_max: int = 128 * 1024 * 1024
    append_bytes_max: int = 1024 * 1024
    commit_rows_max: int = 1024
    field_index_bytes_max: int = 512 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """When vectors are indexed. A collection's not yet indexed vectors are searched exactly.

    seal_rows: build a segment when this many vectors wait; None: when what waits would make an exact search slow, or
    when no write comes for a while (shard/plan.py). rows_max: segments are merged up to this size.
    build_threads: OpenMP threads of one build. ship_timeout: seconds a replica waits for a built segment before it
    builds its own. scrub_interval: seconds between two readings of every index file, to find damage.
    """

    seal_rows: int | None = None
    rows_max: int = 1_000_000
    build_threads: int = 1
    ship_timeout: float = 30.0
    dead_ratio_max: float = 0.3
    scrub_interval: float = 3600.0

    def __post_init__(self) -> None:
        if self.seal_rows is not None:
            check_range("segments.seal_rows", self.seal_rows, 1, 10_000_000)
        check_range("segments.rows_max", self.rows_max, self.seal_rows or 1, 100_000_000)
        check_range("segments.build_threads", self.build_threads, 1, 256)
        check_range("segments.ship_timeout", self.ship_timeout, 0, 86_400)
        check_range("segments.dead_ratio_max", self.dead_ratio_max, 0.01, 1)
        check_range("segments.scrub_interval", self.scrub_interval, 0.1, 31_536_000)


@dataclass(frozen=True, kw_only=True)
class RaftConfig:
    """One node of a replicated cluster.

    cluster_nodes: every voter at the first start, "name=host:port" or "name:port"; 1 to 7. Later the replicated
    configuration counts. dimensions: creates the collection `default` at the first start; None creates none.
    election_timeout, heartbeat_interval, lease_timeout: seconds or timedelta. lease_timeout: how long a leader counts
    on followers' not voting, no longer than election_timeout; the same on all nodes.
    clock_error_max: bound on the clocks' rate error, as a fraction; leased reads are linearizable while it holds.
    http_address: "host:port" of /metrics, /livez, /readyz; None for none. join: at the first start, wait to be added
    to a running cluster instead of founding one with the nodes of cluster_nodes. disk_reserve_bytes: with less room on
    the disk data is refused; None: a twentieth of it, from 64 MiB to 1 GiB; 0: never.
    """

    node_id: NodeId
    cluster_nodes: Sequence[str]
    data_dir: str
    election_timeout: Any = 1.0
    heartbeat_interval: Any = 0.050
    lease_timeout: Any = 0.150
    snapshot_threshold: int = 10_000
    dimensions: int | None = None
    metric: str = Metric.COSINE
    index: IndexParams = field(default_factory=IndexParams)
    cluster_id: str = "needle"
    listen: str | None = None
    http_address: str | None = None
    join: bool = False
    clock_error_max: float = 0.001
    log_bytes_max: int = 16 * 1024**3
    disk_reserve_bytes: int | None = None
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("election_timeout", "heartbeat_interval", "lease_timeout"):
            value = getattr(self, name)
            object.__setattr__(self, name, value.total_seconds() if _is_duration(value) else value)
        check_node_id("node_id", self.node_id)
        nodes = self._check_nodes()
        if self.node_id not in nodes:
            raise refuse("node_id", self.node_id, f"one of the cluster_nodes: {', '.join(nodes)}")
        check_range("heartbeat_interval", self.heartbeat_interval, 0.001, 60)
        check_range("election_timeout", self.election_timeout, 0.002, 600)
        if self.election_timeout < 2 * self.heartbeat_interval:
            raise refuse(
                "election_timeout",
                self.election_timeout,
                f"at least twice heartbeat_interval, which is {self.heartbeat_interval:g}",
            )
        check_range("lease_timeout", self.lease_timeout, 0.02, 600)
        check_range("snapshot_threshold", self.snapshot_threshold, 1, 100_000_000)
        check_range("clock_error_max", self.clock_error_max, 0, 0.2)
        check_range("log_bytes_max", self.log_bytes_max, 1 << 18, 1 << 46)
        if self.disk_reserve_bytes is not None:
            check_range("disk_reserve_bytes", self.disk_reserve_bytes, 0, 1 << 46)
        if self.dimensions is not None:
            check_range("dimensions", self.dimensions, 1, self.limits.dimensions_max)
        if self.metric not in list(Metric):
            raise refuse("metric", self.metric, f"one of {', '.join(Metric)}")
        for name in ("listen", "http_address"):
            if getattr(self, name) is not None:
                parse_address(name, getattr(self, name))
        if not self.data_dir:
            raise refuse("data_dir", self.data_dir, "a directory that this node may write to")

    def _check_nodes(self) -> dict[NodeId, str]:
        if isinstance(self.cluster_nodes, str) or not 1 <= len(self.cluster_nodes) <= 7:
            raise refuse("cluster_nodes", self.cluster_nodes, "a list of 1 to 7 nodes, each 'name=host:port'")
        nodes = dict(parse_node(text) for text in self.cluster_nodes)
        if len(nodes) != len(self.cluster_nodes) or len(set(nodes.values())) != len(nodes):
            raise refuse("cluster_nodes", list(self.cluster_nodes), "names and addresses that differ")
        return nodes

    @property
    def addresses(self) -> dict[NodeId, str]:
        """Address by node id, as configured."""
        return dict(parse_node(text) for text in self.cluster_nodes)

    @property
    def address(self) -> str:
        """Where this node listens: `listen`, or its own entry in cluster_nodes."""
        return self.listen or self.addresses[self.node_id]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RaftConfig:
        """From parsed TOML: the field names as keys, tables for `segments`, `limits` and `index`."""
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise refuse(key, values[key], f"a known setting: {', '.join(sorted(known))}")
        built: dict[str, Any] = dict(values)
        for name, kind in (("segments", SegmentConfig), ("limits", Limits), ("index", IndexParams)):
            if isinstance(built.get(name), Mapping):
                try:
                    built[name] = kind(**built[name])
                except TypeError as error:
                    raise refuse(name, dict(values[name]), f"the settings of {kind.__name__} ({error})") from None
        for name in ("node_id", "cluster_nodes", "data_dir"):
            if name not in built:
                raise ConfigError(f"the setting {name} is required, and is not given", field=name)
        return cls(**built)
