"""The client protocol: what the RPC methods of a node take and answer, as MessagePack structs.

Invariant: a body is exactly one of these structs, so that both ends agree on every field; unknown trailing fields are
ignored, missing ones have defaults, which is how releases stay compatible. Knows no sockets and no server.

| method | takes | answers |
|---|---|---|
| write | WriteCall | WriteResult |
| search | SearchCall | HitBatch |
| search_many | SearchManyCall | SearchManyAnswer |
| get | GetCall | DocumentBatch |
| collections | CollectionsCall | CollectionsAnswer |
| count | CountCall | CountAnswer |
| facet | FacetCall | FacetAnswer |
| scan | ScanCall | ScanAnswer |
| leader | GroupCall | LeaderAnswer |
| status | StatusCall | RaftStatus |
| digest | GroupCall | DigestAnswer |
| step_down | StepDownCall | LeaderAnswer |
| force_election, maintenance | GroupCall, MaintenanceCall | b"" |
| addresses | AddressBook | AddressBook |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec

from needle.base.collection_sizes import CollectionSize
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import ProtocolError, invalid
from needle.base.filters.ordering import Key, ScanOrder
from needle.base.filters.values import Value, rank
from needle.base.ids import GroupId, NodeId
from needle.base.model import CollectionSpec, HitBatch, ReadMode, SearchRequest
from needle.base.parts import Body, encode_parts
from needle.protocol.commands import Asked
from needle.protocol.named import Named

WRITE: Final = "write"
SEARCH: Final = "search"
SEARCH_MANY: Final = "search_many"
GET: Final = "get"
COLLECTIONS: Final = "collections"
COUNT: Final = "count"
FACET: Final = "facet"
SCAN: Final = "scan"
LEADER: Final = "leader"
STATUS: Final = "status"
DIGEST: Final = "digest"
STEP_DOWN: Final = "step_down"
FORCE_ELECTION: Final = "force_election"
MAINTENANCE: Final = "maintenance"
ADDRESSES: Final = "addresses"

T = TypeVar("T")

ELEMENTS_MAX: Final = 1 << 16
"""Of a list of a call: more than any call may have, but so few that a call of 64 MiB is not decoded for a second, in
which nothing else runs in the process, before it is refused."""
Ids = Annotated[list[str], msgspec.Meta(max_length=ELEMENTS_MAX)]
Paths = Annotated[tuple[str, ...], msgspec.Meta(max_length=ELEMENTS_MAX)]


class GroupCall(msgspec.Struct, frozen=True, array_like=True):
    """About one group. timeout: seconds the node may take. after_term: asked who leads, it waits for the leader of a
    later term than this before it says what it knows; -1 for at once."""

    group: GroupId
    timeout: float = 10.0
    after_term: int = -1


class WriteCall(msgspec.Struct, frozen=True, array_like=True):
    """One command for the log, encoded by protocol.commands. epoch: as in every call about documents: of the shard map
    by which the caller chose this group; 0 if it did not, then the node does. Answered StaleEpoch when the node
    knows another map, or the shard does not own what is written. asked: by a request with an idempotency key; only in
    a cluster whose nodes all know it (commands.Once)."""

    group: GroupId
    command: bytes
    timeout: float = 10.0
    epoch: int = 0
    asked: Asked | None = None


class Freshness(msgspec.Struct, frozen=True, array_like=True):
    """What a read demands. min_index: wait until this log index is applied (a session's last write). max_staleness:
    seconds since this replica last heard from a leader at most, 0 for any; eventual reads only. timeout: seconds."""

    mode: ReadMode = ReadMode.STRONG
    min_index: int = 0
    max_staleness: float = 0.0
    timeout: float = 10.0


class SearchCall(msgspec.Struct, frozen=True, array_like=True):
    """epoch: see WriteCall; with one the answer is a peer_calls.ShardAnswer around the HitBatch."""

    group: GroupId
    request: SearchRequest
    freshness: Freshness
    epoch: int = 0


QUERIES_MAX, MANY_BYTES_MAX = 1000, 48 << 20
"""Of one SearchManyCall, and bytes of its hits."""


def check_queries(count: int, vectors: bytes) -> None:
    """vectors: `count` of them, one after the other. Raises InvalidArgument for too few, too many, or other lengths."""
    if not 1 <= count <= QUERIES_MAX:
        raise invalid("queries", f"{count} vectors", f"1 to {QUERIES_MAX} in one call")
    if len(vectors) % count:
        raise invalid("queries", f"{len(vectors)} bytes", f"{count} vectors of equal length")


class SearchManyCall(msgspec.Struct, frozen=True, array_like=True):
    """Several searches that differ in their vectors only. request: its vector holds those of all, one after the other.
    epoch: as in SearchCall."""

    group: GroupId
    request: SearchRequest
    count: int
    freshness: Freshness
    epoch: int = 0


class SearchManyAnswer(msgspec.Struct, frozen=True, array_like=True):
    """In the order of the vectors."""

    batches: list[HitBatch]


class GetCall(msgspec.Struct, frozen=True, array_like=True):
    """epoch: as in SearchCall. fields: the paths of metadata that come back, None for all. bound: JSON of a filter:
    what does not match it is not there for this call, which is of an API key that is bound to it; b"" for none
    (protocol.bounds). named: the named vectors that come back, by their names inside the shard."""

    group: GroupId
    collection: str
    ids: Ids
    with_vectors: bool
    freshness: Freshness
    epoch: int = 0
    fields: Paths | None = None
    bound: bytes = b""
    named: Paths = ()


class DocumentBatch(msgspec.Struct, frozen=True, array_like=True):
    """Documents as columns, absent ids left out. vectors: rows of float32 bytes, b"" when not asked for. expires: when
    each expires, in microseconds since 1970, 0 for never; [] if none does. named: named vectors that were asked for, of
    those that have them, as float32."""

    ids: list[str]
    versions: list[int]
    metadata: list[bytes]
    vectors: bytes
    applied_index: int
    expires: list[int] = []
    named: list[Named] = []


def expiries(found: list[int]) -> list[int]:
    """A batch's `expires`: nothing if no document expires."""
    return found if any(found) else []


ROW_NUMBERS_BYTES: Final = 20
"""What a hit's distance and version take."""


def batch_bytes(batch: DocumentBatch | HitBatch) -> int:
    """About how large a batch of documents is."""
    numbers = ROW_NUMBERS_BYTES * len(batch.ids)
    named = sum(len(one.vectors) for one in batch.named) if isinstance(batch, DocumentBatch) else 0
    return len(batch.vectors) + named + sum(map(len, batch.metadata)) + sum(map(len, batch.ids)) + numbers


class CollectionsCall(msgspec.Struct, frozen=True, array_like=True):
    """epoch: as in SearchCall. sizes: tell these too, but not where `bound` is given. only: of the collection that the
    shards have under this name, "" for all; older nodes tell of all. bound: as in GetCall."""

    group: GroupId
    freshness: Freshness
    epoch: int = 0
    sizes: bool = False
    only: str = ""
    bound: bytes = b""


class CollectionsAnswer(msgspec.Struct, frozen=True, array_like=True):
    """counts: documents of each collection, in the same order; sizes: so, if they were asked for and the node knows how
    to tell them."""

    collections: list[CollectionSpec]
    counts: list[int]
    applied_index: int
    sizes: list[CollectionSize] = []


class CountCall(msgspec.Struct, frozen=True, array_like=True):
    """How many documents match a filter (JSON; b"" for all). epoch: as in SearchCall. bound: as in GetCall."""

    group: GroupId
    collection: str
    filter: bytes
    freshness: Freshness
    epoch: int = 0
    bound: bytes = b""


class CountAnswer(msgspec.Struct, frozen=True, array_like=True):
    """count: exactly as of applied_index."""

    count: int
    applied_index: int


class FacetCall(msgspec.Struct, frozen=True, array_like=True):
    """How many documents that match a filter have each value of a field (a path). filter, epoch, bound: as in
    CountCall. limit: of the values with the most documents, how many to tell; 0 for all, as shards are asked."""

    group: GroupId
    collection: str
    field: str
    filter: bytes
    limit: Annotated[int, msgspec.Meta(ge=0)]
    freshness: Freshness
    epoch: int = 0
    bound: bytes = b""


class FacetAnswer(msgspec.Struct, frozen=True, array_like=True):
    """values: those with the most documents first; and how many have each: exactly as of applied_index. distinct: how
    many values there are. documents: that match; without: of these, those without a value."""

    values: list[Value]
    counts: list[int]
    distinct: int
    documents: int
    without: int
    applied_index: int


def told_counts(
    values: Sequence[Value], counts: Sequence[int], limit: int, documents: int, without: int, applied: int
) -> FacetAnswer:
    """The answer of these counts of different values: the most frequent first, then by value."""
    order = sorted(range(len(values)), key=lambda at: (-counts[at], rank(values[at])))
    shown = order[:limit] if limit else order
    told, numbers = [values[at] for at in shown], [counts[at] for at in shown]
    return FacetAnswer(told, numbers, len(values), documents, without, applied)


ANY_INDEX: Final = 0
"""In a ScanPin that ends: wherever the shard has opened one of its token."""


class ScanPin(msgspec.Struct, frozen=True, array_like=True):
    """That a scan sees each shard at one index of its log. token: drawn for the scan; 0, for who routes: draw one.
    open: by shard the index at which it is read; [] to have each shard open a pin at an index of its own. ends: nothing
    is read, what it sees need not be kept any more."""

    token: int = 0
    open: Annotated[list[tuple[int, int]], msgspec.Meta(max_length=ELEMENTS_MAX)] = []
    ends: bool = False


class ScanCall(msgspec.Struct, frozen=True, array_like=True):
    """A page of the documents that match a filter (JSON; b"" for all), in the order of their ids, behind the id `after`
    ("": from the first). limit: documents at most. slice: (which, of how many): only the documents whose ids fall into
    that share. epoch, fields, bound, named: as in GetCall. only: for who routes, the id that the collection must have
    by the catalog, 0 for any. pin: of a consistent scan. order: in that of a field instead, behind its key and
    `after`."""

    group: GroupId
    collection: str
    filter: bytes
    after: str
    limit: int
    with_vectors: bool
    freshness: Freshness
    slice: tuple[int, int] = (0, 1)
    epoch: int = 0
    fields: Paths | None = None
    only: int = 0
    bound: bytes = b""
    pin: ScanPin | None = None
    order: ScanOrder | None = None
    named: Paths = ()


class ScanAnswer(msgspec.Struct, frozen=True, array_like=True):
    """documents: all from one applied index. reached: the id up to which was looked; None: there are no more.
    collection_id: of the collection, by the catalog; 0 if who answers does not know. pin: of a consistent scan, how to
    go on; None from nodes that know none. keys: in the order of a field, that of each document; key: with `reached`."""

    documents: DocumentBatch
    reached: str | None
    collection_id: int = 0
    pin: ScanPin | None = None
    keys: list[Key] = []
    key: Key | None = None


class LeaderAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What a node knows. leader: None when it knows none. addresses: of every node it knows, by id. room: whether its
    disk has room for more data; None if it does not say. hinders: why its replica cannot lead: what it stores is
    damaged, it lost state, or the node's certificate has expired; "" if it can."""

    node_id: NodeId
    leader: NodeId | None
    term: int
    addresses: dict[NodeId, str]
    maintenance: bool = False
    room: bool | None = None
    hinders: str = ""


class StatusCall(msgspec.Struct, frozen=True, array_like=True):
    """digest: also compute the digest of the documents (reads all of them). hot: also say which keys are called.
    parts: also where the ids lie, if that can be told of a leader's shard and keys do not say it."""

    group: GroupId
    digest: bool = False
    hot: bool = False
    parts: bool = False


class DigestAnswer(msgspec.Struct, frozen=True, array_like=True):
    """digest: of the documents exactly at applied_index."""

    node_id: NodeId
    applied_index: int
    digest: str


class StepDownCall(msgspec.Struct, frozen=True, array_like=True):
    """to: None for the most caught-up voter."""

    group: GroupId
    to: NodeId | None = None
    timeout: float = 10.0


class MaintenanceCall(msgspec.Struct, frozen=True, array_like=True):
    on: bool
    timeout: float = 10.0


class AddressBook(msgspec.Struct, frozen=True, array_like=True):
    """Where nodes listen, by id."""

    addresses: Annotated[dict[NodeId, str], msgspec.Meta(max_length=ELEMENTS_MAX)]


_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def encode(value: object) -> bytes:
    """A body as bytes."""
    return _encoder.encode(value)


def encode_body(value: tuple[Any, ...], inner: Body) -> Body:
    """A body that holds `inner`, in pieces if that is."""
    return _encoder.encode(value) if isinstance(inner, bytes) else encode_parts(value)


def decode(body: bytes | memoryview, kind: type[T]) -> T:
    """A body as a `kind`. Raises ProtocolError that names the kind and what is wrong."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        value: T = decoder.decode(body)
    except DECODE_ERRORS as error:
        raise ProtocolError(f"not a valid {kind.__name__}: {error}") from None
    return value
