"""The replicated commands of a shard: what a Raft log entry means. Versioned: a log outlives the code that wrote it.

An entry is one byte of format version followed by a MessagePack tagged struct. Everything a replica needs to apply a
command is inside it; applying is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, TypeGuard, get_args

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.dtypes import DType
from needle.base.errors import UnsupportedFormat
from needle.base.model import CollectionSpec
from needle.base.parts import LARGE_BYTES, Body, Pieces, encode_parts
from needle.base.versions import NAMED
from needle.protocol.move_commands import MoveCommand
from needle.protocol.named import Named as Named
from needle.protocol.named import taken_of
from needle.protocol.spec_versions import OF_SPEC_TYPES, OF_TYPES
from needle.protocol.stamps import HEAD_BYTES, STAMPED, STAMPED_SINCE, head
from needle.protocol.upkeep_commands import Compare as Compare
from needle.protocol.upkeep_commands import EndPins as EndPins
from needle.protocol.upkeep_commands import Expire as Expire
from needle.protocol.upkeep_commands import KeepIndex as KeepIndex
from needle.protocol.upkeep_commands import KnowCatalog as KnowCatalog
from needle.protocol.upkeep_commands import LoadRows as LoadRows
from needle.protocol.upkeep_commands import PinScan as PinScan
from needle.protocol.upkeep_commands import PublishSegment as PublishSegment
from needle.protocol.upkeep_commands import StageSegment as StageSegment
from needle.protocol.upkeep_commands import SwitchIndex as SwitchIndex
from needle.protocol.versioned import Versioned, check_known, shortened, written
from needle.routing.shard_map import KeyRange
from needle.routing.topology import Topology

FORMAT = b"\x01"


class Session(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Numbers a client's writes so that a retry is recognised (Ongaro's thesis, section 6.3).

    id: from OpenSession (its log index); 0 means not deduplicated. seq: 1, 2, ... per session. acked: every seq below
    it has been answered to the client, so its stored answer may be forgotten.
    """

    id: int = 0
    seq: int = 0
    acked: int = 0


NO_SESSION = Session()
AS_IT_IS: Final = 0
NEVER: Final = -1
JUDGED_MAX: Final = 1000
JUDGEMENTS_MAX: Final = 1 << 17
"""Documents of one write that needs what is stored of them, and these times the conditions that they are judged by."""
"""In place of an instant, which is microseconds since 1970, at which a document expires. The leader that proposes a
write puts the collection's time to live in the place of AS_IT_IS, if it has one."""


class Bound(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a write of an API key that is not for all documents may touch (docs/adr/0061). filter: JSON; documents that
    do not match it are not there for the write, and none that it writes may be without matching; b"" for a key that is
    for whole collections. owner: whose session its number is of, as in OpenSession."""

    filter: bytes
    owner: int = 0

    def __bool__(self) -> bool:
        """Whether documents are judged by it."""
        return bool(self.filter)


class OpenSession(Versioned, frozen=True, tag="open"):
    """Register a client session; the answer's index is its id. nonce: random, so that a repeated open is harmless.
    owner: the API key whose writes alone may be numbered by it (KeyInfo.since); 0 for callers that are for all
    documents. Ids of sessions can be guessed."""

    NEWER: ClassVar[dict[str, int]] = {"owner": 3}

    nonce: int
    owner: int = 0


class CreateCollection(Versioned, frozen=True, tag="create"):
    """if_absent: answer instead of failing when an equal collection exists."""

    NEWER: ClassVar[dict[str, int]] = {"spec.index.kind": 4, "spec.of": NAMED} | OF_SPEC_TYPES

    spec: CollectionSpec
    if_absent: bool = False
    session: Session = NO_SESSION


class DropCollection(Versioned, frozen=True, tag="drop"):
    name: str
    session: Session = NO_SESSION


class Insert(Versioned, frozen=True, tag="put"):
    """Insert or replace documents, all or none. vectors: len(ids) rows of numbers, little-endian, of the type `dtype`;
    in the log that is the collection's, and float32 is normalised for cosine. metadata: JSON bytes each (b"" for null).
    expected: None: upsert. 0: only if absent (AlreadyExists). n > 0: only if the current version is n
    (VersionMismatch). A condition applies to every id of the batch. Of documents with one id the last one counts.
    matches: a filter as JSON that every document of the batch which is there must match, as it is stored
    (ConditionFailed); b"" for none. expires: when each expires, [] for AS_IT_IS, which is never: a document that is
    replaced leaves nothing. named: the named vectors, each at most once; those that it does not name a document then
    does not have."""

    NEWER: ClassVar[dict[str, int]] = {"expires": 2, "bound": 3, "named": NAMED} | OF_TYPES
    FILTERS: ClassVar[tuple[str, ...]] = ("matches", "bound.filter")

    collection: str
    ids: list[str]
    vectors: bytes
    metadata: list[bytes]
    expected: int | None = None
    session: Session = NO_SESSION
    matches: bytes = b""
    expires: list[int] = []
    bound: Bound | None = None
    dtype: DType = DType.FLOAT32
    named: list[Named] = []


def last_of_each_id(ids: Sequence[str]) -> list[int] | None:
    """Of documents with one id the last one counts, as if they were written one by one: the positions of those that
    count, in order; None if that is all of them."""
    if len(ids) == 1:  # so it is in most writes
        return None
    last = {name: at for at, name in enumerate(ids)}
    return None if len(last) == len(ids) else sorted(last.values())


def without_repeats(command: Insert) -> Insert:
    """The insert with the last document of each id only. Its columns must be of equal lengths."""
    keep = last_of_each_id(command.ids)
    if keep is None:
        return command
    width, rows = len(command.vectors) // len(command.ids), memoryview(command.vectors)
    return msgspec.structs.replace(
        command,
        ids=[command.ids[at] for at in keep],
        vectors=b"".join(rows[at * width : (at + 1) * width] for at in keep),
        metadata=[command.metadata[at] for at in keep],
        expires=[command.expires[at] for at in keep] if command.expires else [],
        named=taken_of(command.named, keep),
    )


class Delete(Versioned, frozen=True, tag="del"):
    """Delete documents; ids that are absent are fine. expected: as in Insert, n > 0 only.

    Under a custom strategy an id does not tell its shard, so a delete is about ids and routing keys: all shards are
    asked, each for the keys it owns, and no key twice. owned: fingerprint of the ranges by which the shard was asked
    for all it owns, 0 for any. within: instead, the ranges of keys this is about, normal, all of which the shard must
    own: what another shard refused because they had moved here. Documents of other keys stay. matches: as in Insert."""

    NEWER: ClassVar[dict[str, int]] = {"bound": 3}
    FILTERS: ClassVar[tuple[str, ...]] = ("matches", "bound.filter")

    collection: str
    ids: list[str]
    expected: int | None = None
    session: Session = NO_SESSION
    owned: int = 0
    within: list[KeyRange] = []
    matches: bytes = b""
    bound: Bound | None = None


class Change(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How metadata changes, in this order. whole: JSON that takes the place of all of it, None for what is there. set:
    (path, JSON value). unset: paths. append, remove: (path, JSON array of values). No path is, or leads to, another
    one. bytes_max: a document whose metadata would be larger refuses the command. expires: when the documents
    expire."""

    whole: bytes | None = None
    set: list[tuple[str, bytes]] = []
    unset: list[str] = []
    append: list[tuple[str, bytes]] = []
    remove: list[tuple[str, bytes]] = []
    bytes_max: int = 64 * 1024
    expires: int = AS_IT_IS


class Patch(Versioned, frozen=True, tag="patch"):
    """Change the metadata of documents, all or none; they keep their vectors. Ids that are absent are left out; count:
    how many were there. expected, n > 0, owned, within, matches: as in Delete."""

    NEWER: ClassVar[dict[str, int]] = {"change.expires": 2, "bound": 3}
    FILTERS: ClassVar[tuple[str, ...]] = ("matches", "bound.filter")

    collection: str
    ids: list[str]
    change: Change
    expected: int | None = None
    session: Session = NO_SESSION
    owned: int = 0
    within: list[KeyRange] = []
    matches: bytes = b""
    bound: Bound | None = None


class UpdateVectors(Versioned, frozen=True, tag="vectors"):
    """Give documents other vectors, all or none; they keep their metadata. vectors, dtype: as in Insert, one for each
    id. Ids that are absent are left out; count: how many were there. expected, n > 0, owned, within, matches: as in
    Delete. expires: when they expire. name: of the named vector that these are, as it is called inside the shard; then
    documents keep their other vectors, as they do without it, too. gone: those that have this one have it no more, and
    these count; vectors is empty then."""

    NEWER: ClassVar[dict[str, int]] = {"expires": 2, "bound": 3, "name": NAMED, "gone": NAMED} | OF_TYPES
    FILTERS: ClassVar[tuple[str, ...]] = ("matches", "bound.filter")

    collection: str
    ids: list[str]
    vectors: bytes
    expected: int | None = None
    session: Session = NO_SESSION
    owned: int = 0
    within: list[KeyRange] = []
    matches: bytes = b""
    expires: int = AS_IT_IS
    bound: Bound | None = None
    dtype: DType = DType.FLOAT32
    name: str = ""
    gone: bool = False


class ChangeWhere(Versioned, frozen=True, tag="where"):
    """Change the metadata of the documents that match a filter, or delete them (change None): a part of bounded size.

    Every write gives a document a new ordinal. So what an entry finds with ordinals up to `upto` is as it was at the
    entry that told `upto`, the first part (-1): later parts touch what matched then and was not changed since.
    after: the ordinal up to which earlier parts looked. limit: documents touched, looks: documents looked at, at most;
    and no more once their metadata has bytes_max.
    owned, within: as in Delete, under any strategy. The answer's `reached` is the next part's `after`, -1 if this was
    the last."""

    NEWER: ClassVar[dict[str, int]] = {"change.expires": 2, "bound": 3}
    FILTERS: ClassVar[tuple[str, ...]] = ("filter", "bound.filter")

    collection: str
    filter: bytes
    change: Change | None
    after: int = -1
    upto: int = -1
    limit: int = 1000
    looks: int = 4096
    bytes_max: int = 8 << 20
    return_ids: bool = False
    session: Session = NO_SESSION
    owned: int = 0
    within: list[KeyRange] = []
    bound: Bound | None = None


class Asked(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The request that a write is a part of: its caller sends it again, to any node, until there is an answer. key: 16
    bytes of a hash of the caller's idempotency key. request: 16 of a hash of all that it asks for."""

    key: bytes
    request: bytes


class Once(Versioned, frozen=True, tag="once"):
    """A write of a request with an idempotency key: executed unless the shard knows that it was (docs/adr/0063). at:
    the clock of the leader that proposes it, in microseconds since 1970; what is older than a bound is forgotten."""

    SINCE: ClassVar[int] = 3
    FILTERS: ClassVar[tuple[str, ...]] = ("write",)  # see `needs`

    asked: Asked
    at: int
    write: Insert | Delete | Patch | UpdateVectors | ChangeWhere

    def needs(self) -> int:
        """See `Versioned`."""
        return max(self.SINCE, self.write.needs())


Command = (
    OpenSession
    | CreateCollection
    | DropCollection
    | Insert
    | Delete
    | Patch
    | UpdateVectors
    | ChangeWhere
    | Once
    | Expire
    | PinScan
    | EndPins
    | KnowCatalog
    | Compare
    | PublishSegment
    | StageSegment
    | SwitchIndex
    | KeepIndex
    | LoadRows
    | MoveCommand
)
Spread = Delete | Patch | UpdateVectors
"""Commands about documents of which only the ids are known: under a custom strategy each shard is asked."""
ById = Insert | Spread
"""Commands about documents that they name."""
OfDocuments = ById | ChangeWhere
"""Commands that callers have documents written by. Each takes a Bound."""
DOCUMENT_WRITES: Final = (Insert, Delete, Patch, UpdateVectors, ChangeWhere)
"""What a request with an idempotency key may do."""


def inner(command: Command | None) -> Command | None:
    """What a command does, without what tells it from a repetition."""
    return command.write if type(command) is Once else command


_BY_ID: Final = frozenset(get_args(ById))


def is_by_id(command: Command | None) -> TypeGuard[ById]:
    """`isinstance` of the same asks the metaclass of one struct after the other, for each entry on each replica."""
    return type(command) in _BY_ID


_LOAD: Final = msgspec.msgpack.encode(LoadRows.__struct_config__.tag)


def is_load(data: bytes) -> bool:
    """Whether a log entry's data is a LoadRows: by its first bytes, without decoding it."""
    # A command is an array of at most 15, of which one byte says so (versioned.py), and its tag comes first.
    return data.startswith(_LOAD, (HEAD_BYTES if data[:1] == STAMPED else len(FORMAT)) + 1)


_decoder = msgspec.msgpack.Decoder(Command)


def encode(command: Command) -> bytes:
    """The command as bytes."""
    return written(FORMAT, command)


def entry(command: Command, now: Topology, at: int) -> bytes:
    """The bytes to propose; the only way from a node to a shard's log. at: the leader's clock, in microseconds since
    1970. Raises ClusterTooOld (see check_known)."""
    check_known(command, now)
    if now.cluster_version < STAMPED_SINCE:
        return encode(command)
    return written(head(at), command)


def encode_body(command: Command) -> Body:
    """As `encode`; a large insert in pieces."""
    if isinstance(command, Insert) and len(command.vectors) + sum(map(len, command.metadata)) >= LARGE_BYTES:
        return Pieces([FORMAT, *encode_parts(shortened(command))])
    return encode(command)


def decode(data: bytes) -> Command:
    """A command as `encode` made it. Raises UnsupportedFormat for an unknown version or shape."""
    if data[:1] != FORMAT:
        raise UnsupportedFormat(f"log command of format {data[:1].hex() or 'none'}; this release reads {FORMAT.hex()}")
    return _decoded(memoryview(data)[1:])


def decode_logged(data: bytes) -> Command:
    """The command in a log entry's data, as `entry` made it. Raises as `decode`."""
    return _decoded(memoryview(data)[HEAD_BYTES:]) if data[:1] == STAMPED else decode(data)


def _decoded(body: memoryview) -> Command:
    try:
        command: Command = _decoder.decode(body)
    except DECODE_ERRORS as error:
        raise UnsupportedFormat(f"log command does not decode: {error}") from None
    return command
