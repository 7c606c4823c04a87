"""Configuration of a node: the one schema from which everything about its settings is derived (needle/base/schema.py).

Frozen, checked on construction. An error names the field, the value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec

from needle.base.ids import NodeId
from needle.base.model import IndexParams, Metric
from needle.base.schema import Seconds, Settings, about, all_settings, own_settings, required, tables, unknown
from needle.base.schema import refuse as refuse

_NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
NODE_ID = "1 to 64 characters of A-Z a-z 0-9 . _ -"
ADDRESS = '"host:port" with a port from 1 to 65535'
ROWS = 1_000_000_000
BYTES = 1 << 40


def check_range(name: str, value: object, low: float, high: float) -> float:
    """`value` as a number within [low, high], or a ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise refuse(name, value, f"a number from {low:g} to {high:g}")
    return value


def check_node_id(name: str, value: object) -> NodeId:
    """`value` as a node id, or a ConfigError."""
    if not isinstance(value, str) or not _NODE_ID.match(value):
        raise refuse(name, value, NODE_ID)
    return value


def parse_address(name: str, value: object) -> tuple[str, int]:
    """ "host:port" as (host, port), or a ConfigError. IPv6 hosts stand in brackets."""
    return split_address(name, value, ADDRESS, 1)


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


class Limits(Settings, frozen=True, kw_only=True):
    """Bounds that protect a node. A request over a limit is refused with the limit in the message."""

    table: ClassVar[str] = "limits"

    id_bytes_max: Annotated[int, about("Bytes of an id.", ge=1, le=1 << 20)] = 512
    metadata_bytes_max: Annotated[int, about("Bytes of the metadata of one document.", ge=2, le=BYTES)] = 64 * 1024
    dimensions_max: Annotated[int, about("Dimensions of a collection.", ge=1, le=1 << 20)] = 8192
    k_max: Annotated[int, about("Hits of one search.", ge=1, le=ROWS)] = 10_000
    batch_documents_max: Annotated[int, about("Documents of one write.", ge=1, le=ROWS)] = 10_000
    batch_bytes_max: Annotated[int, about("Bytes of one write.", ge=1, le=BYTES)] = 16 * 1024 * 1024
    filter_depth_max: Annotated[int, about("Levels of $and, $or and $not in one filter.", ge=1, le=200)] = 32
    filter_nodes_max: Annotated[int, about("Conditions in one filter.", ge=1, le=ROWS)] = 1024
    collections_max: Annotated[int, about("Collections of a cluster.", ge=1, le=ROWS)] = 10_000
    frame_bytes_max: Annotated[int, about("Bytes of one message on the wire.", ge=1 << 16, le=(1 << 32) - 1)] = 64 << 20
    uncommitted_bytes_max: Annotated[
        int,
        about("Bytes of writes that wait for a majority; over it, writes are answered `overloaded`.", ge=1, le=BYTES),
    ] = 128 * 1024 * 1024
    append_bytes_max: Annotated[
        int,
        about("Bytes of log entries in one message to a follower; a single larger entry still goes.", ge=1, le=BYTES),
    ] = 1024 * 1024
    commit_rows_max: Annotated[
        int,
        about(
            "Rows that may wait in memory for their commit to SQLite; more cost less a write, and the first read "
            "behind them waits longer.",
            ge=1,
            le=ROWS,
        ),
    ] = 1024
    field_index_bytes_max: Annotated[
        int,
        about(
            "Bytes of memory for the indexes of metadata fields, a replica; what does not fit is read from disk "
            "(docs/filters.md).",
            ge=0,
            le=BYTES,
        ),
    ] = 512 * 1024 * 1024


class SegmentConfig(Settings, frozen=True, kw_only=True):
    """When vectors are indexed. A collection's not yet indexed vectors are searched exactly."""

    table: ClassVar[str] = "segments"

    seal_rows: (
        Annotated[
            int,
            about(
                "Build an index file when this many vectors wait. By default when they reach 4 MiB (never fewer than "
                "2,000), and an eighth of that is enough once no vector has come for a second (docs/segments.md).",
                shown="by size",
                ge=1,
                le=10_000_000,
            ),
        ]
        | None
    ) = None
    rows_max: Annotated[
        int, about("Index files are merged up to this many vectors; not under `seal_rows`.", ge=1, le=100_000_000)
    ] = 1_000_000
    build_threads: Annotated[
        int, about("Threads of one build of an index file; more than one disturbs searches.", ge=1, le=256)
    ] = 1
    ship_timeout: Annotated[
        Seconds, about("Seconds after which a replica that cannot fetch an index file builds its own.", ge=0, le=86_400)
    ] = 30.0
    dead_ratio_max: Annotated[
        float, about("An index file with a larger share of replaced documents is rebuilt.", ge=0.01, le=1)
    ] = 0.3
    scrub_interval: Annotated[
        Seconds,
        about("Seconds between two readings of all index files; a damaged one is replaced.", ge=0.1, le=31_536_000),
    ] = 3600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seal_rows is not None:
            check_range("segments.rows_max", self.rows_max, self.seal_rows, 100_000_000)


class IndexConfig(Settings, frozen=True, kw_only=True):
    """IndexParams as settings. That struct itself has no bounds: what older versions wrote to a log must decode."""

    table: ClassVar[str] = "index"

    m: Annotated[int, about("Links of a vector in the HNSW index of the collection `default`.", ge=2, le=256)] = (
        IndexParams().m
    )
    ef_construction: Annotated[
        int, about("Candidates that are kept while a vector is put into that index.", ge=1, le=100_000)
    ] = IndexParams().ef_construction
    ef_search: Annotated[int, about("Candidates that a search of that index keeps.", ge=1, le=100_000)] = (
        IndexParams().ef_search
    )


class PlacementConfig(Settings, frozen=True, kw_only=True):
    """What the placement of replicas is to know of a node of a sharded cluster."""

    table: ClassVar[str] = "placement"

    zone: Annotated[
        str,
        about(
            "Failure domain of this node, such as its rack; replicas of a shard go to different ones.", option="--zone"
        ),
    ] = ""
    weight: Annotated[
        float, about("This node's share of replicas beside that of others.", option="--weight", ge=0, le=1000)
    ] = 1.0


class ShardingConfig(Settings, frozen=True, kw_only=True):
    """A node of a sharded cluster."""

    table: ClassVar[str] = "sharding"

    join: Annotated[
        Sequence[str],
        about(
            "Addresses of nodes of the running sharded cluster that this node joins.",
            allowed="a list of host:port",
            option="--join",
        ),
    ] = ()
    router_modules: Annotated[
        Sequence[str],
        about(
            "Custom routing functions (docs/sharding.md), which the node imports when it starts. The variable "
            "NEEDLE_ROUTERS names them too, and for the other commands.",
            allowed="a list of module or module:function",
            option="--routers",
        ),
    ] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for seed in self.join:
            parse_address("sharding.join", seed)


if TYPE_CHECKING:
    _Index = IndexParams
else:
    _Index = IndexConfig


class RaftConfig(Settings, frozen=True, kw_only=True):
    """The settings of one node; docs/operations.md has them as a table. Durations are seconds, or `timedelta`."""

    node_id: Annotated[
        NodeId, about("This node's name, one of the cluster's.", allowed=NODE_ID, pattern=r"^[A-Za-z0-9._-]{1,64}$")
    ]
    cluster_nodes: Annotated[
        Sequence[str],
        about(
            "Every voter at the first start, this node included: `name=host:port`, or `host:port` of a node that has "
            "its host's name. Later the replicated membership counts. A node of a sharded cluster needs it only for "
            "itself, if others reach it under another address than `listen`.",
            allowed="a list of 1 to 7 nodes, each 'name=host:port'",
            shown="required",
            option="--cluster-node",
            max_length=7,
        ),
    ] = ()
    data_dir: Annotated[
        str,
        about(
            "Where this node keeps everything; one directory belongs to one node forever.",
            allowed="a directory that this node may write to",
            min_length=1,
        ),
    ]
    cluster_id: Annotated[str, about("Nodes and clients of another cluster id are refused.")] = "needle"
    join: Annotated[
        bool,
        about(
            "At the first start, wait until `needle members add` adds this node to a cluster, instead of founding one.",
            option="--wait/--no-wait",
        ),
    ] = False
    listen: (
        Annotated[
            str,
            about(
                "`host:port` to bind, if it differs from the address that others use.",
                allowed=ADDRESS,
                shown="own entry in `cluster_nodes`",
            ),
        ]
        | None
    ) = None
    http_address: (
        Annotated[str, about("`host:port` of `/metrics`, `/livez` and `/readyz`.", allowed=ADDRESS)] | None
    ) = None
    dimensions: (
        Annotated[
            int,
            about("Create the collection `default` at the first start, with vectors of this length.", ge=1, le=1 << 20),
        ]
        | None
    ) = None
    metric: Annotated[
        str,
        about(
            "Metric of the collection `default`.",
            allowed=f"one of {', '.join(Metric)}",
            pattern=f"^({'|'.join(Metric)})$",
        ),
    ] = Metric.COSINE.value
    election_timeout: Annotated[
        Seconds,
        about(
            "Seconds without a word from the leader after which (up to twice as long) a follower starts an election; "
            "sooner, see `lease_timeout`, when the leader's connection ends. At least twice `heartbeat_interval`.",
            ge=0.002,
            le=600,
        ),
    ] = 1.0
    heartbeat_interval: Annotated[Seconds, about("Seconds between a leader's heartbeats.", ge=0.001, le=60)] = 0.050
    lease_timeout: Annotated[
        Seconds,
        about(
            "Seconds after a leader's message in which nobody may be elected in its place, so that it can answer "
            "leased reads by itself; no longer than `election_timeout`. The same on all nodes.",
            ge=0.02,
            le=600,
        ),
    ] = 0.150
    clock_error_max: Annotated[
        float,
        about(
            "Bound on how much clocks differ in rate, as a fraction; leased reads are linearizable while it holds.",
            ge=0,
            le=0.2,
        ),
    ] = 0.001
    snapshot_threshold: Annotated[
        int,
        about(
            "Log entries after which the log is compacted; 64 MiB of them (at most 1/32 of `log_bytes_max`), or 30 s "
            "without a write, do it too.",
            ge=1,
            le=100_000_000,
        ),
    ] = 10_000
    log_bytes_max: Annotated[
        int,
        about(
            "Bytes that the log's files may take. From half of it on the log is cut as far as it can be, from three "
            "quarters on the node refuses writes with `overloaded` until it is; it never ends because of it.",
            ge=1 << 18,
            le=1 << 46,
        ),
    ] = 16 * 1024**3
    disk_reserve_bytes: (
        Annotated[
            int,
            about(
                'With less room than this on the disk the node refuses data (see "When a disk runs full"); 0: never.',
                shown="a twentieth of the disk, from 64 MiB to 1 GiB",
                ge=0,
                le=1 << 46,
            ),
        ]
        | None
    ) = None
    sharded: Annotated[
        bool,
        about(
            "A node of a sharded cluster (docs/sharding.md): it waits for `needle cluster create` unless it joins one. "
            "A table [sharding] or [placement] says so too. It needs `node_id`, `listen` and `data_dir` only.",
            option="--sharded",
        ),
    ] = False
    sharding: ShardingConfig = ShardingConfig()
    placement: PlacementConfig = PlacementConfig()
    index: _Index = _Index()
    segments: SegmentConfig = SegmentConfig()
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        super().__post_init__()
        put = msgspec.structs.force_setattr
        put(self, "index", IndexParams(**msgspec.structs.asdict(self.index)))
        if self.sharding != ShardingConfig() or self.placement != PlacementConfig():
            put(self, "sharded", True)
        check_node_id("node_id", self.node_id)
        for name in ("listen", "http_address"):
            if getattr(self, name) is not None:
                parse_address(name, getattr(self, name))
        if not self.cluster_nodes:
            if not self.sharded:
                raise required("cluster_nodes")
            if self.listen is None:
                raise required("listen")
            put(self, "cluster_nodes", [f"{self.node_id}={self.listen}"])
        nodes = self.addresses
        if len(nodes) != len(self.cluster_nodes) or len(set(nodes.values())) != len(nodes):
            raise refuse("cluster_nodes", list(self.cluster_nodes), "names and addresses that differ")
        if self.node_id not in nodes:
            raise refuse("node_id", self.node_id, f"one of the cluster_nodes: {', '.join(nodes)}")
        if self.election_timeout < 2 * self.heartbeat_interval:
            least = f"at least twice heartbeat_interval, which is {self.heartbeat_interval:g}"
            raise refuse("election_timeout", self.election_timeout, least)
        if self.dimensions is not None:
            check_range("dimensions", self.dimensions, 1, self.limits.dimensions_max)

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
        """From names and values as in a file: with tables, or with paths such as "segments.seal_rows"."""
        nested: dict[str, Any] = {}
        for path, value in by_path(values).items():
            table, _, name = path.rpartition(".")
            (nested.setdefault(table, {}) if table else nested)[name] = value
        for setting in own_settings(cls):
            if setting.default is msgspec.NODEFAULT and setting.name not in nested:
                raise required(setting.name)
        return cls(**nested)


SETTINGS = all_settings(RaftConfig)
"""Every setting by path."""

FORMER_PATHS = {"sharding.zone": "placement.zone", "sharding.weight": "placement.weight"}


def by_path(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with tables as settings by path. Raises ConfigError about a name that is none."""
    known, found = tables(RaftConfig), {}
    for key, value in values.items():
        if key in known and not isinstance(value, Mapping):
            raise refuse(key, value, "a table of settings")
        inner = {f"{key}.{name}": inside for name, inside in value.items()} if key in known else {key: value}
        for given, inside in inner.items():
            path = FORMER_PATHS.get(given, given)
            if path not in SETTINGS:
                raise unknown(given, inside, SETTINGS)
            found[path] = inside
    if {"sharding", "placement"} & values.keys():
        found.setdefault("sharded", True)
    return found
