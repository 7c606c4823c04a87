"""The replicated commands of the catalog (group 0): what an entry of its log means. Versioned like the shards'.

A command carries an identity, by which the catalog executes it once however often it is sent (cluster.executed). What
had to be decided (placement, ring) is decided by the proposer and carried whole, so that nodes of different releases
apply it alike.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import UnsupportedFormat
from needle.base.ids import GroupId, NodeId
from needle.base.model import CollectionSpec, IndexParams, VectorChange, VectorSpec
from needle.base.versions import EMPTIES, FIRST, NAMED, SAID, SPARSE
from needle.protocol.key_commands import CreateKey, LimitKey, RevokeKey
from needle.protocol.spec_versions import OF_SPECS, OF_VECTORS
from needle.protocol.vector_commands import VectorCommand
from needle.protocol.versioned import Versioned, check_known, shortened, written
from needle.routing.jobs import Job, RebalanceConfig
from needle.routing.planned_moves import Move
from needle.routing.plans import CATALOG, Wish
from needle.routing.shard_map import KeyRange, ShardMap
from needle.routing.topology import ClusterSettings, MoveState, NodeInfo, Topology

FORMAT = b"\x01"
"""Of a command without identity, as earlier releases wrote them: one that is repeated may be executed again."""
IDENTIFIED = b"\x02"


class Identity(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """nonce: 63 random bits, drawn once a command. since: the version of the topology that the sender knew then."""

    nonce: int
    since: int


class CreateCluster(Versioned, frozen=True, tag="cluster"):
    """Found the cluster. assignment: the replicas of each shard in order, preferred leader first. founding: random.
    first: a collection that is there from the beginning. Nodes that have not answered yet have no incarnation (0)."""

    NEWER: ClassVar[dict[str, int]] = {name.replace("spec.", "first."): since for name, since in OF_SPECS.items()}

    settings: ClusterSettings
    map: ShardMap
    nodes: list[NodeInfo]
    catalog: list[NodeId]
    assignment: list[list[NodeId]]
    founding: int = 0
    first: CollectionSpec | None = None


class RegisterNode(Versioned, frozen=True, tag="node"):
    """Add a node, or note its new address, zone, weight or version. Refused for a removed id, for another incarnation,
    and for a version older than the cluster's."""

    NEWER: ClassVar[dict[str, int]] = {"node.knows": SAID}

    node: NodeInfo


class RemoveNode(Versioned, frozen=True, tag="remove"):
    """Forget a node that holds no replica; its id is never used again."""

    node: NodeId


class DrainNode(Versioned, frozen=True, tag="drain"):
    """Write down that a node is to be emptied; it moves nothing itself. draining False: use it again."""

    node: NodeId
    draining: bool


class MaintainNode(Versioned, frozen=True, tag="maintain"):
    """Have a node give leadership away and take none, until it is told otherwise, also after its restart. Refused if
    a group would have no other node left that may lead it. on False: use it as before."""

    node: NodeId
    on: bool


class WeighNode(Versioned, frozen=True, tag="weigh"):
    """Have a node's share of replicas be `weight`, not that of its settings; None: that again. It moves nothing."""

    node: NodeId
    weight: float | None


class ZoneNode(Versioned, frozen=True, tag="zone"):
    """Have a node be in `zone`: as WeighNode."""

    SINCE: ClassVar[int] = 2

    node: NodeId
    zone: str | None


class SetReplication(Versioned, frozen=True, tag="replication"):
    """Have each shard have so many replicas from now on. It moves nothing. Refused for more than there are nodes."""

    SINCE: ClassVar[int] = EMPTIES

    replicas: int


class AddShard(Versioned, frozen=True, tag="add-shard"):
    """Found the shard with the next number, on these nodes, preferred leader first. It owns nothing yet."""

    shard: int
    replicas: list[NodeId]


class RetireShard(Versioned, frozen=True, tag="retire-shard"):
    """Give up a shard that owns nothing and takes part in no move. Its number is never used again."""

    shard: int


class SetReplicas(Versioned, frozen=True, tag="replicas"):
    """Of earlier releases, and in the log only: change a shard's replicas at once, if they still are `before`."""

    shard: int
    before: list[NodeId]
    after: list[NodeId]


class AssignReplicas(Versioned, frozen=True, tag="assign"):
    """Let the nodes `after` hold the replicas of a shard's group, or of the catalog's, preferred leader first, if those
    that should are `before` still. Those that should not any more hold theirs until ConfirmReplicas."""

    group: GroupId
    before: list[NodeId]
    after: list[NodeId]


class ConfirmReplicas(Versioned, frozen=True, tag="assigned"):
    """The voters of a group are those that the command at index `assigned` named, and nobody else is a member of it:
    the others give up their replicas. Told by a leader that knew that command in the term in which it looked."""

    group: GroupId
    assigned: int


class CreateCollection(Versioned, frozen=True, tag="create"):
    """nonce: random; tells a call repeated without an identity, as long as its collection is there. fields: declared
    from the beginning, as by DeclareField. vectors: so these, by AddVector; sparse: so these, by DeclareSparse."""

    NEWER: ClassVar[dict[str, int]] = OF_SPECS | OF_VECTORS | {"fields": 4, "sparse": SPARSE}

    spec: CollectionSpec
    if_absent: bool
    nonce: int
    fields: list[str] = []
    vectors: list[tuple[str, VectorSpec]] = []
    sparse: list[str] = []


class DropCollection(Versioned, frozen=True, tag="drop"):
    """Drop the collection `name` with that id; fine if it is gone already."""

    name: str
    id: int


class AlterCollection(Versioned, frozen=True, tag="alter"):
    """Change a collection, all or nothing. ef_search: 0 leaves it as it is. ttl: so does a negative one; 0: documents
    written from then on expire only when they say so. Another ttl makes an epoch of the map: who knows only the former
    one is refused. index: with its ef_search; each shard builds the files and switches. vectors: so of named ones."""

    NEWER: ClassVar[dict[str, int]] = {"ttl": 2, "index": 4, "vectors": NAMED}

    name: str
    id: int
    ef_search: int
    ttl: float = -1.0
    index: IndexParams | None = None
    vectors: list[VectorChange] = []


class DeclareField(Versioned, frozen=True, tag="declare-field"):
    """From now on every replica keeps an index of the field `path` of the collection `name` with that id; or, declared
    being false, only while searches use it."""

    SINCE: ClassVar[int] = 2

    name: str
    id: int
    path: str
    declared: bool


class SetAlias(Versioned, frozen=True, tag="alias"):
    """From now on `alias` is another name of a collection. If it had another meaning, calls that go by that one are
    refused from this version on (see Topology.aliases)."""

    alias: str
    collection: str


class RemoveAlias(Versioned, frozen=True, tag="remove-alias"):
    alias: str


class StartMove(Versioned, frozen=True, tag="move"):
    """Move ranges, all of which `source` owns by the map of `epoch`, to `target`; refused if the map has changed since,
    so that a command that comes late starts nothing. The answer's version is the move's id. nonce: random. batch_size:
    documents copied between two pauses, 0 for as many as nodes like; throttle_rate: how long these are, in seconds."""

    nonce: int
    epoch: int
    ranges: list[KeyRange]
    source: int
    target: int
    batch_size: int = 0
    throttle_rate: float = 0.0


class AdvanceMove(Versioned, frozen=True, tag="advance"):
    """A move's work in the state before `state` is done. For `switched`, which changes the map: source_index and
    target_index are of the entries by which the source gave the ranges up and the target took them. attempt: of the
    move; refused for another one."""

    move: int
    state: MoveState
    source_index: int = 0
    target_index: int = 0
    attempt: int = 0


class RestartMove(Versioned, frozen=True, tag="restart-move"):
    """The source has thawed this attempt of a move that was freezing: copy on, and freeze again as the next one."""

    move: int
    attempt: int


class CancelMove(Versioned, frozen=True, tag="cancel-move"):
    """Leave the ranges where they are, if the source has not released them; it is asked, and then the catalog told."""

    move: int


class FinishMove(Versioned, frozen=True, tag="finish"):
    """The source has deleted what it left behind, or the target what it had copied: forget the move."""

    move: int


class StartRebalance(Versioned, frozen=True, tag="rebalance"):
    """Have the catalog's leader move what must move until the cluster is as wished; refused while another rebalance is
    not over. The answer's version is its id. healing: the cluster does it by itself, for the nodes that the wish takes
    for lost; refused if one of them holds nothing (any more) or is in maintenance. empty: a node that is to be emptied
    from now on, as by DrainNode; "" for none. So is one that the wish has replaced. first: what is decided with it."""

    NEWER: ClassVar[dict[str, int]] = {"empty": EMPTIES, "first": EMPTIES, "wish.replace": EMPTIES}

    wish: Wish
    config: RebalanceConfig
    healing: bool = False
    empty: NodeId = ""
    first: WeighNode | ZoneNode | SetReplication | None = None

    def needs(self) -> int:
        """Releases before know no move of the catalog by hand."""
        move = self.wish.move
        return max(super().needs(), EMPTIES if move is not None and move.shard == CATALOG else 0)


class AskRebalance(Versioned, frozen=True, tag="ask-rebalance"):
    """Pause the rebalance of that id, resume or cancel it."""

    job: int
    ask: Literal["pause", "resume", "cancel"]


class StepRebalance(Versioned, frozen=True, tag="step-rebalance"):
    """What one look at the rebalance `made` led to, if it has changed in nothing since `revision`; else refused. start:
    a move that begins with it, as the catalog's own command would have it; nonce, epoch: as in StartMove. give_up: the
    id of a running move that is taken back, 0 for none: of replicas, which ends it; of ranges, as by CancelMove."""

    made: Job
    revision: int
    start: Move | None = None
    nonce: int = 0
    epoch: int = 0
    give_up: int = 0


class RaiseVersion(Versioned, frozen=True, tag="version"):
    """The cluster is at this version from now on; refused while a node that was not removed knows less. said: what
    nodes answered just now, of clusters whose catalog does not have it; () otherwise. Proposed by the catalog's leader
    only, and with the word of all nodes, so it needs no version itself."""

    version: int
    said: list[tuple[NodeId, int]] = []


FORGET = -1


class NoteBackup(Versioned, frozen=True, tag="backed-up"):
    """A backup that began then was made, the logs were archived then: microseconds since 1970, 0 for no news of it,
    FORGET so that none is expected any more."""

    SINCE: ClassVar[int] = 4

    backup: int = 0
    archive: int = 0


CatalogCommand = (
    CreateCluster
    | RegisterNode
    | RemoveNode
    | DrainNode
    | MaintainNode
    | WeighNode
    | ZoneNode
    | SetReplication
    | AddShard
    | RetireShard
    | SetReplicas
    | AssignReplicas
    | ConfirmReplicas
    | CreateCollection
    | DropCollection
    | AlterCollection
    | DeclareField
    | VectorCommand
    | SetAlias
    | RemoveAlias
    | CreateKey
    | RevokeKey
    | LimitKey
    | StartMove
    | AdvanceMove
    | FinishMove
    | StartRebalance
    | AskRebalance
    | StepRebalance
    | RestartMove
    | CancelMove
    | RaiseVersion
    | NoteBackup
)

_encoder = msgspec.msgpack.Encoder()
_plain = msgspec.msgpack.Decoder(CatalogCommand)
_identified = msgspec.msgpack.Decoder(tuple[Identity, CatalogCommand])


def encode(command: CatalogCommand, identity: Identity | None = None) -> bytes:
    """The command as bytes."""
    return (
        written(FORMAT, command) if identity is None else IDENTIFIED + _encoder.encode((identity, shortened(command)))
    )


def entry(command: CatalogCommand, now: Topology, identity: Identity | None = None) -> bytes:
    """The bytes to propose; the only way from a node to the catalog's log. Raises ClusterTooOld (see check_known)."""
    check_known(command, now if not isinstance(command, CreateCluster) else as_founded(command, now))
    return encode(command, identity)


def as_founded(command: CreateCluster, now: Topology) -> Topology:
    """Where the cluster will be that a command makes: nothing is there before it, and it has the word of all nodes."""
    if now.settings is not None:
        return now
    return msgspec.structs.replace(now, nodes=tuple(command.nodes), cluster_version=founded_at(command))


def founded_at(command: CreateCluster) -> int:
    """The version that a new cluster is at: the least that its nodes know."""
    return min((node.knows for node in command.nodes), default=FIRST)


def decode(data: bytes | memoryview) -> CatalogCommand:
    """The command in a log entry's data. Raises UnsupportedFormat for an unknown version or shape."""
    return decode_identified(data)[0]


def decode_identified(data: bytes | memoryview) -> tuple[CatalogCommand, Identity | None]:
    """The command in a log entry's data and its identity, None if it has none. Raises as `decode`."""
    form, body = bytes(data[:1]), memoryview(data)[1:]
    if form not in (FORMAT, IDENTIFIED):
        raise UnsupportedFormat(f"catalog command of format {form.hex() or 'none'}; this release reads 01 and 02")
    try:
        if form == FORMAT:
            return _plain.decode(body), None
        identity, command = _identified.decode(body)
    except DECODE_ERRORS as error:
        raise UnsupportedFormat(f"catalog command does not decode: {error}") from None
    return command, identity
