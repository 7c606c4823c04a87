"""The data model that crosses layers: what callers put in and get out. Plain values, no behaviour beyond checks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from typing import Any

import msgspec

from needle.base.dtypes import DType, VectorForm
from needle.base.explain import ShardExplanation
from needle.base.sparse import SparseQuery
from needle.base.text import Statistics, TextField, TextQuery


class Metric(StrEnum):
    """How distance is measured. Inside and in `Hit.distance`, lower is always nearer.

    cosine: 1 - cos(a, b), 0..2. l2: Euclidean distance. dot: -<a, b>. hamming: how many bits differ.
    """

    COSINE = "cosine"
    L2 = "l2"
    DOT = "dot"
    HAMMING = "hamming"


METRICS_OF_NUMBERS = (Metric.COSINE, Metric.L2, Metric.DOT)


def metrics_of(dtype: DType) -> tuple[Metric, ...]:
    """Which metrics vectors of a type can have; the first is meant where none is named."""
    return (Metric.HAMMING,) if dtype is DType.BIT else METRICS_OF_NUMBERS


class ReadMode(StrEnum):
    """What a read promises. strong: linearizable by ReadIndex. leased: linearizable while clock error stays under the
    configured bound. eventual: some prefix of the log."""

    STRONG = "strong"
    LEASED = "leased"
    EVENTUAL = "eventual"


class IndexKind(StrEnum):
    """What an index file holds to find the nearest vectors by (docs/index-selection.md). Whatever it is, what it finds
    is scored from the full vectors.

    flat: nothing: every vector is scored. hnsw: a graph over the full vectors. hnsw_sq8: a graph over one byte for each
    component. hnsw_rabitq: a graph over one bit for each component (Gao and Long 2024). ivf_flat: lists of vectors that
    lie together. ivf_pq: such lists of product codes (Jegou et al. 2011)."""

    FLAT = "flat"
    HNSW = "hnsw"
    HNSW_SQ8 = "hnsw_sq8"
    HNSW_RABITQ = "hnsw_rabitq"
    IVF_FLAT = "ivf_flat"
    IVF_PQ = "ivf_pq"


GRAPHS = (IndexKind.HNSW, IndexKind.HNSW_SQ8, IndexKind.HNSW_RABITQ)
"""Kinds of index that are a graph."""

KINDS_OF = {
    DType.FLOAT32: tuple(IndexKind),
    DType.FLOAT16: (IndexKind.FLAT, *GRAPHS),
    DType.INT8: (IndexKind.FLAT, *GRAPHS),
    DType.BIT: (IndexKind.FLAT, IndexKind.HNSW),
}
"""Which kinds of index vectors of a type can have."""

CODES = (IndexKind.HNSW_SQ8, IndexKind.HNSW_RABITQ, IndexKind.IVF_PQ)
"""Kinds that compare codes: everything that these find is scored from full vectors."""


class IndexParams(msgspec.Struct, frozen=True, kw_only=True):
    """The index of a collection. m: links of a vector in a graph, ef_construction: effort of building it (Malkov and
    Yashunin 2016). ef_search: effort of a search: about so many of the nearest vectors are looked at, by every kind,
    or more in a file whose graph needs that."""

    m: int = 16
    ef_construction: int = 100
    ef_search: int = 64
    kind: IndexKind = IndexKind.HNSW

    @property
    def built(self) -> str:
        """What its files depend on, in words."""
        graph = f" m={self.m} ef_construction={self.ef_construction}" if self.kind in GRAPHS else ""
        return f"{self.kind}{graph}"


PRESETS = {
    "high_recall": IndexParams(m=32, ef_construction=400, ef_search=200),
    "balanced": IndexParams(m=16, ef_construction=200, ef_search=50),
    "low_latency": IndexParams(m=8, ef_construction=100, ef_search=20),
}
INDEX_WORDS = f"a kind ({', '.join(IndexKind)}), a preset ({', '.join(PRESETS)}), or kind:preset"


def index_named(words: str) -> IndexParams | None:
    """The index that INDEX_WORDS mean, None for others."""
    kind, colon, preset = words.partition(":")
    if not colon and kind in PRESETS:
        return PRESETS[kind]
    if kind not in list(IndexKind) or (colon and preset not in PRESETS):
        return None
    return msgspec.structs.replace(PRESETS.get(preset, IndexParams()), kind=IndexKind(kind))


class CollectionSpec(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A named set of vectors of one dimension and metric. ttl: seconds after its last write at which a document
    expires, 0 for never. model: whose vectors of texts these are, "" if it names none. text: by which documents are
    found with words, if any. All three are the catalog's to say, shards keep collections without them. dtype: of the
    numbers that are stored. of: inside shards, of a named vector, the collection whose documents have it (adr/0118)."""

    name: str
    dimensions: int
    metric: Metric = Metric.COSINE
    index: IndexParams = IndexParams()
    ttl: float = 0.0
    model: str = ""
    text: TextField | None = None
    dtype: DType = DType.FLOAT32
    of: str = ""

    @property
    def form(self) -> VectorForm:
        """How its vectors are stored."""
        return self._stored[0]

    @property
    def vector_bytes(self) -> int:
        """Of one stored vector."""
        return self._stored[1]

    @cached_property
    def _stored(self) -> tuple[VectorForm, int]:
        """Made once: every write asks for both, on each replica."""
        form = VectorForm(self.dimensions, self.dtype, self.metric is Metric.COSINE)
        return form, form.row_bytes

    def is_altered_from(self, made: CollectionSpec, index: IndexParams | None = None) -> bool:
        """Whether a collection that was made as `made` may have become this: what AlterCollection changes is its index
        and its ttl; and who names no model, or no text, takes any. So an application goes on that makes sure of its
        collection at each start. index: that it had when it was made, None if that is only known to be built like
        now."""
        known = {one.built for one in (self.index, index) if one is not None}
        model = self.model if made.model else ""
        text = self.text if made.text else None
        same = msgspec.structs.replace(self, index=made.index, ttl=made.ttl, model=model, text=text) == made
        return same and made.index.built in known


class VectorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A named vector that documents of a collection may have beside the one without a name: as of CollectionSpec."""

    dimensions: int
    metric: Metric = Metric.COSINE
    index: IndexParams = IndexParams()
    dtype: DType = DType.FLOAT32

    @staticmethod
    def of(spec: CollectionSpec) -> VectorSpec:
        """Of what shards keep."""
        return VectorSpec(dimensions=spec.dimensions, metric=spec.metric, index=spec.index, dtype=spec.dtype)

    def stored_as(self, name: str, of: str = "") -> CollectionSpec:
        """How shards keep it: under this name, of that collection."""
        return CollectionSpec(
            name=name, dimensions=self.dimensions, metric=self.metric, index=self.index, dtype=self.dtype, of=of
        )


class VectorChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is altered of a named vector. index: that it is to have from now on; ef_search: effort of searches that say
    none; 0: as it is, or as the index says."""

    name: str
    index: IndexParams | None = None
    ef_search: int = 0


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """One search result. distance: lower is nearer (see Metric). score: higher is nearer (cosine: cos; dot: <a, b>; l2,
    hamming: -distance). vector: float32 numpy array of shape (dimensions,) when asked for, of bits of their bytes.
    group: of a search by groups, the value of the field that this hit is grouped by. ranks: of a hybrid search, its
    places, from 1 on, in the lists that were asked for: of the nearest, of those with the words, of those that the
    sparse vector finds; None where it is not among the candidates."""

    id: str
    distance: float
    score: float
    metadata: Any = None
    version: int = 0
    vector: Any = None
    group: Any = None
    ranks: tuple[int | None, ...] | None = None


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """One stored document. vector: float32 numpy array of shape (dimensions,), of bits of their bytes. version: grows
    with every write. expires_at: when it expires, as RFC 3339 in UTC; None for never. vectors: those of its named
    vectors that were asked for and that it has, by name; None if none was asked for."""

    id: str
    vector: Any
    metadata: Any
    version: int
    expires_at: str | None = None
    vectors: dict[str, Any] | None = None


class WriteResult(msgspec.Struct, frozen=True, kw_only=True):
    """An acknowledged write. version: of the document(s) written; index: the log entry that carries it; existed:
    whether a document with this id was there before (for a delete: whether anything was deleted). ids: of what was
    deleted or changed, if that was asked for. reached: of a part of a large change, up to where it looked; -1 if that
    was all. upto: the bound of all parts."""

    version: int
    index: int
    existed: bool = False
    count: int = 1
    ids: list[str] = []
    reached: int = -1
    upto: int = -1


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """What a read takes a shard to own: the fingerprint of its ranges by the caller's map, and since which entry of the
    shard's log (0: always). A replica whose log says otherwise must not answer."""

    fingerprint: int
    since: int


class SearchRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One search of one replica. vector: float32 little-endian bytes, 4 x dimensions. k: hits that a shard gives, with
    those that `offset` and `like` leave out in the end. filter: the canonical dict form of a filter as JSON bytes, or
    b"" for none. exact: score every vector instead of the index. claim: what the shard must own (set by the node that
    answers). max_distance, min_score: no hit that is farther, or scores less. fields: the paths of metadata that come
    back, None for all. offset: of the nearest, how many are left out. like: the id of the document whose vector is
    meant, which is no hit of its own. explain: also tell how it was answered. bound: as in calls.GetCall. group_by: the
    field by whose values hits are grouped, "" for none; then k and offset count groups. group_size: hits of each group.
    groups: a JSON list of values whose groups are wanted beside the k nearest, b"" for none. diversify: for who merges:
    of the k nearest, `take` hits, `offset` included, that are unlike each other, by this weight; bare: without the
    vectors, which are there for that only. order_by: the field by whose values who merges orders the hits in the end,
    "" for none; descending: from the greatest. keywords: words to find instead of a vector; words: what a shard is
    asked of them, by who routes. usual_ef: `ef_search` of the collection, for a search that says none, 0 where
    the catalog does not tell it (set by the node). vector_name: which vector of the documents is meant, "" for the one
    without a name; for shards, its name there. sparse: a sparse vector instead of a vector."""

    collection: str
    vector: bytes
    k: int
    filter: bytes = b""
    with_metadata: bool = True
    with_vectors: bool = False
    exact: bool = False
    ef_search: int = 0
    claim: Claim | None = None
    max_distance: float | None = None
    min_score: float | None = None
    fields: tuple[str, ...] | None = None
    offset: int = 0
    like: str = ""
    explain: bool = False
    bound: bytes = b""
    group_by: str = ""
    group_size: int = 1
    groups: bytes = b""
    diversify: float | None = None
    take: int = 0
    bare: bool = False
    order_by: str = ""
    descending: bool = False
    keywords: str = ""
    words: TextQuery | None = None
    usual_ef: int = 0
    vector_name: str = ""
    sparse: SparseQuery | None = None


def score_of(distance: float, metric: Metric) -> float:
    """Higher is nearer; see Hit."""
    return 1.0 - distance if metric is Metric.COSINE else -distance


def scores_of(distances: Sequence[float], metric: Metric) -> list[float]:
    """`score_of` of each."""
    return [1.0 - one for one in distances] if metric is Metric.COSINE else [-one for one in distances]


def near_enough(distances: Sequence[float], metric: Metric, request: SearchRequest) -> int:
    """How many of these distances, which ascend, a search's bounds allow."""
    count, farthest, lowest = len(distances), request.max_distance, request.min_score
    if farthest is not None:
        count = bisect_right(distances, farthest, hi=count)
    if lowest is not None:
        count = bisect_right(distances, -lowest, hi=count, key=lambda distance: -score_of(distance, metric))
    return count


class HitBatch(msgspec.Struct, frozen=True, array_like=True):
    """Search results as columns, nearest first, ties by id. metadata: JSON bytes each (empty tuple when not asked
    for); vectors: k x dimensions float32 bytes (b"" when not asked for); applied_index: the log index the replica
    had applied when it searched: exactly that state was searched. metric: the collection's, which tells the score.
    explained: if asked for, of each shard. groups: of a search by groups, the value of each hit's group: the groups are
    behind each other, by their nearest hits. order: with order_by, the value by which each hit is ordered, None for a
    document without one. A node of a release that knows no groups, or no order, gives none of these. statistics: of
    words, in place of hits. Hits of words have the metric dot: their scores are what they are."""

    ids: list[str]
    distances: list[float]
    versions: list[int]
    metadata: list[bytes]
    vectors: bytes
    applied_index: int
    metric: Metric = Metric.COSINE
    explained: list[ShardExplanation] = []
    groups: list[str | int | float | bool] = []
    order: list[str | int | float | bool | None] = []
    statistics: Statistics | None = None


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a leader knows of a replica. recently_active: heard from within two election timeouts. lag_entries: commit
    index minus match index; lag_ms: how long ago the oldest entry it lacks was appended on the leader (0 when it lacks
    none)."""

    id: str
    address: str
    match_index: int
    state: str
    recently_active: bool
    is_learner: bool
    lag_entries: int
    lag_ms: float


class RaftStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One replica's view of its Raft group. state: Leader, Follower, Candidate, PreCandidate, Learner or Lost.
    lease_remaining: seconds, 0 when no lease. digest: of the documents at last_applied ("" unless asked for).
    unknown_collections: that this leader's shard holds and the catalog neither lists nor says were dropped.
    lost: why this replica must not go on ("" if it may; then its state is Lost). refused: nodes that this one does not
    hear because they lost what they told it, and why. held_moves: why moves of key ranges from this leader's shard wait
    for somebody to do something.
    damage: why this replica's data is not served, and fetched again from another; "" if it is whole.
    waits_for: what the members of this leader's group lack to be those that the catalog names; "" for nothing.
    fetched: what share of this leader's group each of its learners has, 0 to 1.
    documents: that a reader can see, of all collections; live_bytes: what they weigh (docs/rebalancing.md). copied:
    documents that this leader has copied to other shards, by id of the move that is under way. writes, searches: a
    second, lately, that this node took; hot: if asked for, (first key, key behind the last or None, writes,
    searches) of the ranges with the most. parts: if asked for, of a leader, (first key, key behind the last or
    None, documents) of what is owned, cut at some ids; empty where documents lie evenly over the keys. elections,
    stepdowns: how often this replica asked for votes in a new term, and gave up leadership, since it started, by cause
    (docs/operations.md has them). compared: the last entry at which this leader compared replicas; diverged: the
    digests that they had there, by node, if not all had the same one: then one of them, at least, is wrong. recall: the
    mean recall of searches that this replica answered lately, where it is low, by collection. worn: the share of the
    document versions that a collection may have here which it has taken, from one half on; of those with the most."""

    node_id: str
    group: int
    state: str
    current_term: int
    leader: str | None
    commit_index: int
    last_applied: int
    first_index: int
    last_index: int
    peers: list[PeerStatus]
    voters: list[str]
    learners: list[str]
    lease_remaining: float
    leader_changes: int
    maintenance: bool = False
    documents: int = 0
    digest: str = ""
    unknown_collections: list[str] = []
    lost: str = ""
    refused: dict[str, str] = {}
    damage: str = ""
    held_moves: list[str] = []
    waits_for: str = ""
    live_bytes: int = 0
    copied: dict[int, int] = {}
    writes: float = 0.0
    searches: float = 0.0
    hot: list[tuple[bytes, bytes | None, float, float]] = []
    parts: list[tuple[bytes, bytes | None, int]] = []
    elections: dict[str, int] = {}
    stepdowns: dict[str, int] = {}
    compared: int = 0
    diverged: dict[str, str] = {}
    recall: dict[str, float] = {}
    fetched: dict[str, float] = {}
    worn: dict[str, float] = {}
