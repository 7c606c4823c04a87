"""Configuration of a node: the one schema from which everything about its settings is derived (needle/base/schema.py).

Frozen, checked on construction. An error names the field, the value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec

from needle.base.audit_config import AuditConfig
from needle.base.errors import ConfigError
from needle.base.former_settings import FORMER, FORMER_PATHS
from needle.base.ids import NodeId
from needle.base.index_config import IndexConfig
from needle.base.log_config import LogConfig
from needle.base.model import METRICS_OF_NUMBERS, CollectionSpec, IndexKind, IndexParams, Metric
from needle.base.placement_config import PlacementConfig as PlacementConfig
from needle.base.schema import Seconds, Settings, about, all_settings, own_settings, required, tables, unknown
from needle.base.schema import refuse as refuse
from needle.base.sharding_config import ShardingConfig as ShardingConfig
from needle.base.tls_config import TlsConfig

_NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
NODE_ID = "1 to 64 characters of A-Z a-z 0-9 . _ -"
NODES = "a list of 1 to 7 nodes, each 'name=host:port'"
ADDRESS = '"host:port" with a port from 1 to 65535'
METRICS = f"one of {', '.join(METRICS_OF_NUMBERS)}"
RESERVE = "a twentieth of the disk, from 64 MiB to 1 GiB"
MEMORY = "four fifths of what the machine, or the process' cgroup, has"
SECRET_CHARS_MIN = 32
PAGE = "an address that begins with http:// or https://"
SECRET = f"at least {SECRET_CHARS_MIN} characters, the same on all nodes"
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


@lru_cache(maxsize=16)
def _founders(nodes: tuple[str, ...]) -> tuple[tuple[NodeId, str], ...]:
    """A node asks every second, and the list of one never changes. Raises ConfigError."""
    return tuple(map(parse_node, nodes))


class Limits(Settings, frozen=True, kw_only=True):
    """Bounds that protect a node. A request over a limit is refused with the limit in the message.

    id_bytes_max: Bytes of an id.
    metadata_bytes_max: Bytes of the metadata of one document.
    dimensions_max: Dimensions of a collection.
    k_max: Hits of one search.
    batch_documents_max: Documents of one write.
    batch_bytes_max: Bytes of one write.
    filter_depth_max: Levels of $and, $or and $not in one filter.
    filter_nodes_max: Conditions in one filter.
    collections_max: Collections of a cluster.
    frame_bytes_max: Bytes of one message on the wire.
    uncommitted_bytes_max: Bytes of writes that wait for a majority; over it, writes are answered `overloaded`.
    append_bytes_max: Bytes of log entries in one message to a follower; a single larger entry still goes.
    commit_rows_max: Rows that may wait for their commit to SQLite; more cost less a write, and the next read more.
    field_index_bytes_max: Bytes of a replica's indexes of metadata fields, in memory and on disk, and a sixteenth more
        for what filters allowed lately (docs/filters.md).
    pinned_scans_max: Consistent scans that may be open in one shard; more are refused.
    pinned_scan_seconds: A consistent scan ends after so long, whoever reads it.
    pinned_scan_bytes_max: About so many bytes are kept in one shard for consistent scans; over it, the oldest end.
    feed_bytes_max: Bytes of memory in which each replica remembers its last changes for change feeds; 0: a feed that
        falls behind begins again.
    feed_rows_bytes_max: About so many bytes of replaced and deleted documents stay in each replica's file for change
        feeds, at most 16,384 of them.
    freeze_seconds: Writes of keys that change their shard wait so long at most; then the move begins again.
    """

    table: ClassVar[str] = "limits"

    id_bytes_max: Annotated[int, about(1, 1 << 20)] = 512
    metadata_bytes_max: Annotated[int, about(2, BYTES)] = 64 * 1024
    dimensions_max: Annotated[int, about(1, 1 << 20)] = 8192
    k_max: Annotated[int, about(1, ROWS)] = 10_000
    batch_documents_max: Annotated[int, about(1, ROWS)] = 10_000
    batch_bytes_max: Annotated[int, about(1, BYTES)] = 16 * 1024 * 1024
    filter_depth_max: Annotated[int, about(1, 200)] = 32
    filter_nodes_max: Annotated[int, about(1, ROWS)] = 1024
    collections_max: Annotated[int, about(1, ROWS)] = 10_000
    frame_bytes_max: Annotated[int, about(1 << 16, (1 << 32) - 1)] = 64 * 1024 * 1024
    uncommitted_bytes_max: Annotated[int, about(1, BYTES)] = 128 * 1024 * 1024
    append_bytes_max: Annotated[int, about(1, BYTES)] = 1024 * 1024
    commit_rows_max: Annotated[int, about(1, ROWS)] = 1024
    field_index_bytes_max: Annotated[int, about(0, BYTES)] = 512 * 1024 * 1024
    pinned_scans_max: Annotated[int, about(0, 1024)] = 16
    pinned_scan_seconds: Annotated[Seconds, about(1, 86_400)] = 600.0
    pinned_scan_bytes_max: Annotated[int, about(0, BYTES)] = 1024 * 1024 * 1024
    feed_bytes_max: Annotated[int, about(0, BYTES)] = 8 * 1024 * 1024
    feed_rows_bytes_max: Annotated[int, about(0, BYTES)] = 32 * 1024 * 1024
    freeze_seconds: Annotated[Seconds, about(0.1, 3600)] = 2.0


class SegmentConfig(Settings, frozen=True, kw_only=True):
    """When vectors are indexed. A collection's not yet indexed vectors are searched exactly.

    seal_rows: Build an index file when this many vectors wait. By default when they reach 4 MiB (never fewer than
        2,000), and an eighth of that is enough once no vector has come for a second (docs/segments.md).
    rows_max: Index files are merged up to this many vectors; not under `seal_rows`.
    build_threads: Threads of one build of an index file; more than one disturbs searches.
    ship_timeout: Seconds after which a replica that cannot fetch an index file builds its own.
    dead_ratio_max: An index file with a larger share of replaced documents is rebuilt.
    scrub_interval: Seconds between two readings of all index files; a damaged one is replaced.
    recall_share: Share of the searches that are asked again in the background, one a minute at most while a node is
        busy, to know how much they find (`needle_recall_sampled`); 0: none.
    """

    table: ClassVar[str] = "segments"

    seal_rows: Annotated[int, about(1, 10_000_000, shown="by size")] | None = None
    rows_max: Annotated[int, about(1, 100_000_000)] = 1_000_000
    build_threads: Annotated[int, about(1, 256)] = 1
    ship_timeout: Annotated[Seconds, about(0, 86_400)] = 30.0
    dead_ratio_max: Annotated[float, about(0.01, 1)] = 0.3
    scrub_interval: Annotated[Seconds, about(0.1, 31_536_000)] = 3600.0
    recall_share: Annotated[float, about(0, 1)] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seal_rows is not None:
            check_range("segments.rows_max", self.rows_max, self.seal_rows, 100_000_000)


def default_collection(dimensions: int | None, metric: str, index: IndexParams) -> CollectionSpec | None:
    """The collection `default`, as those who make a cluster describe it; None where they do not say how long its
    vectors are."""
    if dimensions is None:
        return None
    return CollectionSpec(name="default", dimensions=dimensions, metric=Metric(metric), index=index)


if TYPE_CHECKING:
    _Index = IndexParams
else:
    _Index = IndexConfig


class RaftConfig(Settings, frozen=True, kw_only=True):
    """The settings of one node. Durations are seconds as float or `datetime.timedelta`, and kept as float.

    node_id: This node's name, one of the cluster's.
    cluster_nodes: The nodes that found the cluster at their first start, this one included: `name=host:port`, or
        `host:port` of a node that has its host's name; the same list on each. Later the catalog says which nodes there
        are. A node without it waits for `needle cluster create`, or joins a cluster (`sharding.join`).
    reach: Other nodes that this one reaches under another address than they have for the rest, as through a tunnel:
        `name=host:port`.
    data_dir: Where this node keeps everything; one directory belongs to one node forever.
    cluster_id: Nodes and clients of another cluster id are refused.
    listen: `host:port` to bind; by default the address that others use.
    advertise: `host:port` by which others reach this node.
    http_address: `host:port` of the HTTP API, `/metrics`, `/livez` and `/readyz`.
    http_api: Whether the HTTP API is served there, too.
    http_hosts: Names under which browsers reach it, where callers need no key; addresses and `localhost` always do.
    runbooks: Address of the page that says what to do about each alert (docs/alerts.md as your site has it), such as
        `https://docs.example.org/needle/alerts.html`; `needle status` and Prometheus' alerts name it. The same on all
        nodes; by default the node's own `/ui`.
    cluster_secret: What the nodes of the cluster prove to each other that they know, the same on all: at least 32
        characters, as from `openssl rand -hex 32`. Keep it in a file that only the node can read.
    cluster_secret_former: Another secret that this node takes, too: the one before, or the next, while the secret is
        being changed node by node (docs/security.md).
    require_keys: Whether callers without an API key, and nodes without the `cluster_secret`, are refused. Switch it on
        node by node, once all have the secret (docs/security.md).
    insecure: Whether this node may listen beyond this machine without `require_keys` and `tls.mode = "require"`: who
        reaches it may do everything, or read keys on the way.
    dimensions: Length of the vectors of the collection `default`, which the cluster has from the beginning if the
        `cluster_nodes` that found it have this setting; `limits.dimensions_max` at the most.
    metric: Metric of the collection `default`.
    election_timeout: Seconds without a word from the leader after which (up to twice as long) a follower starts an
        election; sooner, see `lease_timeout`, when the leader's connection ends. At least twice `heartbeat_interval`.
    heartbeat_interval: Seconds between a leader's heartbeats.
    lease_timeout: Seconds after a leader's message in which nobody may be elected in its place, so that it can answer
        leased reads by itself; no longer than `election_timeout`. The same on all nodes.
    clock_error_max: Bound on how much clocks differ in rate, as a fraction, by which leased reads are linearizable.
    snapshot_threshold: Log entries after which the log is compacted; 64 MiB of them (at most 1/32 of `log_bytes_max`),
        or 30 s without a write, do it too.
    log_bytes_max: Bytes that the log's files may take. From half of it on the log is cut as far as it can be, from
        three quarters on the node refuses writes with `overloaded` until it is; it never ends because of it.
    disk_reserve_bytes: With less room than this on the disk, or less than one and a half files of the log (24 MiB), the
        node refuses data (see "When a disk runs full" in docs/operations.md); 0: never.
    memory_bytes_max: With more memory than this, mapped files left out, the node refuses data (see "When memory runs
        short" in docs/operations.md); from seven eighths of it on it saves memory. 0: never.
    replace_after: Seconds after which replicas of a node that is gone are rebuilt where room and zones allow; 0: never.
    replace_throttle: Seconds of rest for each 1,000 documents of these; 0: none. Both are the same on all nodes.
    """

    node_id: Annotated[NodeId, about(allowed=NODE_ID, pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    cluster_nodes: Annotated[Sequence[str], about(allowed=NODES, option="--cluster-node", max_length=7)] = ()
    reach: Annotated[Sequence[str], about(allowed="a list of name=host:port", option="--reach")] = ()
    data_dir: Annotated[str, about(allowed="a directory that this node may write to", min_length=1)]
    cluster_id: Annotated[str, about()] = "needle"
    listen: Annotated[str, about(allowed=ADDRESS, shown="own entry in `cluster_nodes`")] | None = None
    advertise: Annotated[str, about(allowed=ADDRESS, shown="own entry in `cluster_nodes`, or `listen`")] | None = None
    http_address: Annotated[str, about(allowed=ADDRESS)] | None = None
    http_api: Annotated[bool, about()] = True
    http_hosts: Annotated[
        Sequence[str], about(allowed="a list of host names", option="--http-host", max_length=64)
    ] = ()
    runbooks: Annotated[str, about(allowed=PAGE, pattern=r"^(https?://[^\s<>\"'\\]+)?$", shown="its own `/ui`")] = ""
    cluster_secret: Annotated[str, about(allowed=SECRET)] = ""
    cluster_secret_former: Annotated[str, about(allowed=SECRET)] = ""
    require_keys: Annotated[bool, about()] = False
    insecure: Annotated[bool, about()] = False
    dimensions: Annotated[int, about(1, 1 << 20)] | None = None
    metric: Annotated[str, about(allowed=METRICS, pattern=f"^({'|'.join(METRICS_OF_NUMBERS)})$")] = Metric.COSINE.value
    election_timeout: Annotated[Seconds, about(0.002, 600)] = 1.0
    heartbeat_interval: Annotated[Seconds, about(0.001, 60)] = 0.050
    lease_timeout: Annotated[Seconds, about(0.02, 600)] = 0.150
    clock_error_max: Annotated[float, about(0, 0.2)] = 0.001
    snapshot_threshold: Annotated[int, about(1, 100_000_000)] = 10_000
    log_bytes_max: Annotated[int, about(1 << 18, 1 << 46)] = 16 * 1024**3
    disk_reserve_bytes: Annotated[int, about(0, 1 << 46, shown=RESERVE)] | None = None
    memory_bytes_max: Annotated[int, about(0, 1 << 46, shown=MEMORY)] | None = None
    replace_after: Annotated[Seconds, about(0, 31_536_000)] = 600.0
    replace_throttle: Annotated[Seconds, about(0, 3600)] = 0.1
    sharding: ShardingConfig = ShardingConfig()
    placement: PlacementConfig = PlacementConfig()
    index: _Index = _Index()
    segments: SegmentConfig = SegmentConfig()
    limits: Limits = Limits()
    tls: TlsConfig = TlsConfig()
    audit: AuditConfig = AuditConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        put = msgspec.structs.force_setattr
        index = msgspec.structs.asdict(self.index)
        put(self, "index", IndexParams(**{**index, "kind": IndexKind(index["kind"])}))
        check_node_id("node_id", self.node_id)
        for name in ("listen", "advertise", "http_address"):
            if getattr(self, name) is not None:
                parse_address(name, getattr(self, name))
        for node in self.reach:
            parse_node(node, "reach")
        for seed in self.sharding.join:
            parse_address("sharding.join", seed)
        for name in ("cluster_secret", "cluster_secret_former"):
            if (secret := getattr(self, name)) and len(secret) < SECRET_CHARS_MIN:
                raise refuse(name, secret, SECRET)
        if self.require_keys and not self.cluster_secret:
            raise ConfigError(
                "require_keys = true needs the setting cluster_secret: nodes prove by it that they are no strangers",
                field="cluster_secret",
            )
        if self.cluster_nodes:
            self._check_founding()
        elif self.sharding.describes_shards:
            raise required("cluster_nodes")
        elif self.listen is None and self.advertise is None:
            raise ConfigError(
                "the setting cluster_nodes, or listen of a node that waits or joins, is required, and is not given",
                field="cluster_nodes",
            )
        if self.election_timeout < 2 * self.heartbeat_interval:
            least = f"at least twice heartbeat_interval, which is {self.heartbeat_interval:g}"
            raise refuse("election_timeout", self.election_timeout, least)
        if self.dimensions is not None:
            check_range("dimensions", self.dimensions, 1, self.limits.dimensions_max)

    def _check_founding(self) -> None:
        nodes = self.founders
        if len(nodes) != len(self.cluster_nodes) or len(set(nodes.values())) != len(nodes):
            raise refuse("cluster_nodes", list(self.cluster_nodes), "names and addresses that differ")
        if self.node_id not in nodes:
            raise refuse("node_id", self.node_id, f"one of the cluster_nodes: {', '.join(nodes)}")
        if self.sharding.join:
            raise refuse("cluster_nodes", list(self.cluster_nodes), "none beside sharding.join: a node founds or joins")
        if self.sharding.replicas is not None:
            check_range("sharding.replicas", self.sharding.replicas, 1, len(nodes))

    @property
    def founders(self) -> dict[NodeId, str]:
        """The addresses of the nodes that found the cluster, by id; none of a node that waits or joins."""
        return dict(_founders(tuple(map(str, self.cluster_nodes))))

    @property
    def secrets(self) -> tuple[str, ...]:
        """What this node proves to know, the first by itself, and takes as a proof."""
        return tuple(secret for secret in (self.cluster_secret, self.cluster_secret_former) if secret)

    @property
    def announced(self) -> str:
        """The address by which others reach this node."""
        return self.advertise or self.founders.get(self.node_id) or self.address

    @property
    def address(self) -> str:
        """Where this node listens."""
        return self.listen or self.founders.get(self.node_id) or self.advertise or ""

    @property
    def first_collection(self) -> CollectionSpec | None:
        """The collection `default`, if `dimensions` says that there is to be one."""
        return default_collection(self.dimensions, self.metric, self.index)

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


def by_path(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with tables as settings by path. Raises ConfigError about a name that is none."""
    known, found = tables(RaftConfig), {}
    for key, value in values.items():
        if key in known and not isinstance(value, Mapping):
            raise refuse(key, value, "a table of settings")
        inner = {f"{key}.{name}": inside for name, inside in value.items()} if key in known else {key: value}
        for given, inside in inner.items():
            path = FORMER_PATHS.get(given, given)
            if path in FORMER:
                raise refuse(path, inside, FORMER[path])
            if path not in SETTINGS:
                raise unknown(given, inside, SETTINGS)
            found[path] = inside
    return found
