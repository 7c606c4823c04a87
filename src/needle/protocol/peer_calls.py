"""What nodes and clients that know the map say to each other, in addition to `protocol.calls`.

| method | takes | answers |
|---|---|---|
| shard_leader | GroupCall | LeaderAnswer |
| topology | TopologyCall | TopologyAnswer |
| catalog | CatalogCall | WriteResult |
| sync | SyncCall | WriteResult |
| index_room | IndexRoomCall | IndexRoom |
| move | MoveCall | MoveAnswer |
| found | FoundCall | WhoAnswer |
| who | WhoCall | WhoAnswer |

`leader` of protocol.calls is asked by clients that know no map: every node names itself, for it routes.

Invariant: an answer of a shard names the epoch and the ranges (by fingerprint) it was computed on.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

from needle.base.errors import InvalidArgument, LostState
from needle.base.ids import GroupId, NodeId
from needle.base.versions import FIRST
from needle.routing.topology import Topology
from needle.routing.topology_changes import Changes

SHARD_LEADER: Final = "shard_leader"
TOPOLOGY: Final = "topology"
CATALOG: Final = "catalog"
SYNC: Final = "sync"
INDEX_ROOM: Final = "index_room"
MOVE: Final = "move"
FOUND: Final = "found"
WHO: Final = "who"


class ShardAnswer(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a read of `protocol.calls` that names an epoch. fingerprint: of the ranges that the shard owned
    (`routing.topology.Ownership`). body: what the read answers without one."""

    epoch: int
    fingerprint: int
    body: bytes


class ReceivedAnswer(msgspec.Struct, frozen=True, array_like=True):
    """A ShardAnswer as its receiver reads it: the body is not copied."""

    epoch: int
    fingerprint: int
    body: memoryview


class TopologyCall(msgspec.Struct, frozen=True, array_like=True):
    """The newest topology the node has, as soon as it is newer than `version` or `wait` seconds are over. confirmed:
    at least as new as everything committed before the call; the catalog's leader only. founding: of the topology that
    the caller has, so that one which is confirmed as it stands need not travel; 0 to have it anyhow. form: the
    caller's `topology_changes.FORM` if what changed since will do; 0 for the whole, of earlier releases, too."""

    version: int
    wait: float = 0.0
    confirmed: bool = False
    founding: int = 0
    form: int = 0


class TopologyAnswer(msgspec.Struct, frozen=True, array_like=True):
    """topology: None when none is newer than the version asked with. changes: in its place, to who asked for them."""

    node_id: NodeId
    topology: Topology | None
    changes: Changes | None = None

    @property
    def has_news(self) -> bool:
        """Whether the node has a newer one than was asked with."""
        return self.topology is not None or self.changes is not None


class CatalogCall(msgspec.Struct, frozen=True, array_like=True):
    """A command for the catalog (protocol.catalog_commands); any node passes it on. hops: how often it was."""

    command: bytes
    timeout: float = 10.0
    hops: int = 0


class SyncCall(msgspec.Struct, frozen=True, array_like=True):
    """Give the group's shard the collections of the catalog of at least `version`; asked of the shard's leader. by_log:
    and have its log say that whoever serves the shard must know that version."""

    group: GroupId
    version: int
    timeout: float = 10.0
    by_log: bool = False


class IndexRoomCall(msgspec.Struct, frozen=True, array_like=True):
    """How much memory an index of a field of a collection, by its name inside the shard, would take on the replica of
    the group's leader. kind: of sparse vectors (base/sparse.py), "" for one of values; an earlier release takes all for
    values."""

    group: GroupId
    collection: str
    path: str
    timeout: float = 10.0
    kind: str = ""


class IndexRoom(msgspec.Struct, frozen=True, array_like=True):
    """needs: bytes, judged by some documents. room: what `limits.field_index_bytes_max` leaves beside the other
    declared indexes."""

    needs: int
    room: int


class MoveCall(msgspec.Struct, frozen=True, array_like=True):
    """One step of a move of key ranges, asked of the leader of one of its shards by the move's driver. command: one of
    protocol.move_commands for the shard's log, b"" to ask only."""

    group: GroupId
    move: int
    command: bytes
    timeout: float = 10.0


class MoveAnswer(msgspec.Struct, frozen=True, array_like=True):
    """Where the shard's log is with the move (shard.apply.holdings.Transfer). phase: "" if it knows nothing of it."""

    phase: str
    step: int
    at: int
    cursors: dict[str, int]


class FoundCall(msgspec.Struct, frozen=True, array_like=True):
    """Belong to the cluster `uid` from now on, whose catalog is founded by these nodes; one of them starts its replica
    of the catalog's group, another one follows them."""

    uid: int
    voters: dict[NodeId, str]


class WhoCall(msgspec.Struct, frozen=True, array_like=True):
    """Who a node is, and whether it belongs to a cluster already."""


class DiskRoom(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of the file system of a node's data directory: free for it, in all, taken by its own files (counted every
    few seconds, its reserve left out), and what must stay free (below that it refuses data). low: it refuses data now,
    until there is a quarter more. files_wanted: why, where it is not for bytes but for the number of files that the
    file system still takes."""

    free: int
    total: int
    used: int
    kept_free: int
    low: bool = False
    files_wanted: str = ""


class MemoryRoom(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of memory of a node's process, mapped files left out: that it takes (own), and above which it refuses data
    (limit; 0: never). tight: it saves memory. low: it refuses data now."""

    own: int
    limit: int
    tight: bool = False
    low: bool = False


class FlushLevels(msgspec.Struct, frozen=True, array_like=True):
    """Durable writes of a node's Raft log: how many there were in the last two minutes, and of them slow ones, of over
    0.1 s. under_way: for how many seconds one has waited for the disk by now; 0.0 for none."""

    writes: int
    slow: int
    under_way: float = 0.0


class ClockLevels(msgspec.Struct, frozen=True, array_like=True):
    """Of a node's clock for durations, by some minutes: by which fraction it is faster than the median of its
    cluster's, by how much that may be off, and the node's `clock_error_max`."""

    rate: float
    error: float
    error_max: float


class Levels(msgspec.Struct, frozen=True, array_like=True):
    """How near a node is to bounds. log_bytes_max: what its Raft log may take. certificate_seconds: until its
    certificate or an authority expires, by its own clock; None without TLS. backup_seconds: since the last backup
    began, None if none is expected. archive_seconds: by how much the archive of the log is behind, of the shard where
    it is the most among those that the node leads; None if it leads none, none is expected, or it is not
    known yet. memory, flushes: None
    of nodes that do not say. clock: None of nodes that do not say, or do not know yet. rebalance_seconds: for how long
    the rebalance that this node carries out has waited for something; None of nodes that carry none out, or do not
    say. certificate_refused: the setting of TLS whose changed file the node does not take, "" if it uses what is there,
    and of nodes that do not say."""

    log_bytes: int
    log_bytes_max: int
    certificate_seconds: float | None = None
    backup_seconds: float | None = None
    archive_seconds: float | None = None
    memory: MemoryRoom | None = None
    flushes: FlushLevels | None = None
    clock: ClockLevels | None = None
    rebalance_seconds: float | None = None
    certificate_refused: str = ""


class WhoAnswer(msgspec.Struct, frozen=True, array_like=True):
    """uid: 0 while the node belongs to no cluster. version: of the topology that it has. routers: the custom routing
    callables that it knows. lost: why no replica of it may go on, "" if they may. strangers: until its cluster is made,
    the nodes that take it for one of theirs. founds: the uid of the cluster that its settings describe, 0 if they
    describe none. disk: None of nodes that do not say. life: drawn when the process began; 0 of nodes that do not say.
    knows: the version of commands and formats up to which it can read them. given_up: shards that it holds no more and
    has files of, and why these may not be deleted; some of them. levels: None of nodes that do not say. runbooks: what
    an alert's name is put behind (`base.runbooks`), "" of nodes that do not say. begun: until its cluster is made, the
    nodes that its catalog was begun on, and their addresses; none of nodes that do not say."""

    node_id: NodeId
    address: str
    incarnation: int
    zone: str
    weight: float
    uid: int
    version: int
    routers: list[str] = []
    lost: str = ""
    strangers: list[NodeId] = []
    founds: int = 0
    disk: DiskRoom | None = None
    life: int = 0
    knows: int = FIRST
    given_up: list[tuple[int, str]] = []
    levels: Levels | None = None
    runbooks: str = ""
    begun: dict[NodeId, str] = {}


def check_fresh(node: NodeId, lost: str, strangers: Collection[NodeId]) -> None:
    """Raises LostState or InvalidArgument for a node that no cluster may be made of: its data directory is not the one
    that others know under its name. strangers: see WhoAnswer, without the nodes that it is founded with."""
    remedy = "Start it with an empty data directory and a new name"
    if lost:
        raise LostState(f"node {node} does not go on: {lost}. {remedy}")
    if strangers:
        raise InvalidArgument(
            f"node {node} is one of the cluster of {', '.join(sorted(strangers))}, and its data directory knows of "
            f"none: was it emptied, or is its address one of theirs? {remedy}",
            field="nodes",
        )
