"""What requests hold and answers say: the schemas of the OpenAPI document are made of these.

Vectors are arrays of numbers, or the bytes of little-endian numbers: base64 in JSON, binary in MessagePack; then
`vector_type` says which numbers. Unknown fields are refused: a name that is spelled wrong would be ignored otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from needle.base.explain import ShardExplanation
from needle.base.model import ReadMode, WriteResult
from needle.server.http.problems import Problem
from needle.server.http.sparse import Sparse

Vector = list[float] | bytes
Vectors = list[list[float]] | bytes
NamedVector = Annotated[dict[str, list[float]], Meta(max_length=16)]
NamedVectors = Annotated[dict[str, list[list[float] | None]], Meta(max_length=16)]
VectorType = Literal["float32", "float16", "uint8"]
"""uint8: whole numbers from 0 to 255, as the bytes of vectors of bits."""
VectorFormat = Literal["numbers", "float32", "uint8"]
INT_MAX = 2**63 - 1
"""The largest whole number that the calls of nodes can say."""
Whole = Annotated[int, Meta(ge=0, le=INT_MAX)]
Positive = Annotated[int, Meta(ge=1, le=INT_MAX)]
PAGE_MAX = 1000
IDS_MAX = 10_000
FIELDS_MAX = 1000
TEXTS_MAX = 1000
Ids = Annotated[list[str], Meta(max_length=IDS_MAX)]
Texts = Annotated[list[str], Meta(max_length=TEXTS_MAX)]
Fields = Annotated[list[str], Meta(max_length=FIELDS_MAX)]
Names = Annotated[list[str], Meta(max_length=16)]
_WITH_OFFSET = "k and offset are together at most `k_max` of the nodes' settings: 10,000 by default."
Seconds = Annotated[float, Meta(ge=0.001, le=86_400, description="Seconds that the call may take.")]
Filter = Annotated[
    dict[str, Any] | None, Meta(description='A filter, as in {"genre": "scifi", "year": {"$gte": 1970}}.')
]
TIMEOUT = 10.0


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of every request. timeout: seconds that the call may take."""

    timeout: Seconds = TIMEOUT


class Nothing(Body, frozen=True, kw_only=True):
    """Of a request that says nothing else."""


class ReadBody(Body, frozen=True, kw_only=True):
    """mode: strong (linearizable), leased (so while clocks keep within their bound) or eventual. max_staleness: of
    eventual reads, in seconds."""

    mode: ReadMode = ReadMode.STRONG
    max_staleness: Annotated[float, Meta(ge=0.001, le=86_400)] | None = None


# --- writes ----------------------------------------------------------------------------------------------------------
ExpiresAt = Annotated[
    str | None,
    Meta(
        description='When the document is deleted: RFC 3339, as in "2030-01-01T00:00:00Z", or "never". Left out: as '
        "the collection's ttl says, and without one a change leaves it as it is."
    ),
]


class PutDocument(Body, frozen=True, kw_only=True):
    """text: instead of a vector, what the node makes it of, by the model that the collection names. if_version: only
    if the document has this version, 0: only if there is none. if_matches: only if it matches this filter as it is
    stored. vectors: its named vectors, by name, as arrays of numbers; a document that is replaced keeps none."""

    vector: Vector | None = None
    text: str | None = None
    vector_type: VectorType = "float32"
    vectors: NamedVector | None = None
    metadata: Any = None
    expires_at: ExpiresAt = None
    if_version: Whole | None = None
    if_matches: Filter = None


class InsertDocuments(Body, frozen=True, kw_only=True):
    """ids, vectors and metadatas have one entry for each document. vectors as bytes: all of them, one behind the other.
    texts: instead of vectors, as in PutDocument; of 256 KiB together. expires_at: for all of them, or one for each. Of
    documents with one id the last one counts. named_vectors: by name an array of numbers, or null, for each."""

    ids: list[str]
    vectors: Vectors | None = None
    texts: Texts | None = None
    vector_type: VectorType = "float32"
    named_vectors: NamedVectors | None = None
    metadatas: list[Any] | None = None
    expires_at: str | list[str | None] | None = None


class Change(Body, frozen=True, kw_only=True):
    """set: fields to write, as in {"year": 1971, "author.name": "Le Guin"}. unset: fields to take away. append, remove:
    values of arrays."""

    set: dict[str, Any] | None = None
    unset: Fields = []
    append: dict[str, list[Any]] | None = None
    remove: dict[str, list[Any]] | None = None
    expires_at: ExpiresAt = None


class PatchDocument(Change, frozen=True, kw_only=True):
    """if_version, if_matches: as in PutDocument."""

    if_version: Positive | None = None
    if_matches: Filter = None


class PatchDocuments(PatchDocument, frozen=True, kw_only=True):
    """ids: up to 1000 documents. filter: instead, all that match. dry_run: with a filter, only count. return_ids: with
    a filter, which were changed."""

    ids: Annotated[list[str], Meta(max_length=1000)] | None = None
    filter: Filter = None
    dry_run: bool = False
    return_ids: bool = False


class DeleteDocuments(Body, frozen=True, kw_only=True):
    """As PatchDocuments."""

    ids: Ids | None = None
    if_matches: Filter = None
    filter: Filter = None
    dry_run: bool = False
    return_ids: bool = False


class Written(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An acknowledged write: it is on a majority of the shard's replicas. index: the entry of the shard's log. existed:
    whether the document was there before. count: documents concerned. ids: if they were asked for."""

    version: int
    index: int
    existed: bool
    count: int
    ids: list[str] | None = None

    @classmethod
    def of(cls, result: WriteResult, ids: bool = False) -> Written:
        """From what the client gets."""
        return cls(
            version=result.version,
            index=result.index,
            existed=result.existed,
            count=result.count,
            ids=result.ids if ids else None,
        )


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """Of documents that were not written, or may not have been (code outcome_unknown)."""

    ids: list[str]
    code: str
    detail: str
    retryable: bool


class InsertedDocuments(msgspec.Struct, frozen=True, kw_only=True):
    """written: documents that are acknowledged. failed: the others; each log entry of a shard is all or nothing."""

    written: int
    failed: list[Fate]


# --- reads -----------------------------------------------------------------------------------------------------------
class GetDocument(ReadBody, frozen=True, kw_only=True):
    """fields: paths of the metadata that comes back; all of it if left out. vectors: names of the named vectors that
    come with it."""

    with_vectors: bool = True
    vector_format: VectorFormat = "numbers"
    fields: Fields | None = None
    vectors: Names = []


class GetDocuments(GetDocument, frozen=True, kw_only=True):
    """ids: of the documents, at most 10,000."""

    ids: Ids


class Document(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """version: grows with every write. expires_at: if it does. vectors: of the named ones that were asked for, those
    that it has."""

    id: str
    version: int
    metadata: Any
    vector: list[float] | bytes | None = None
    expires_at: str | None = None
    vectors: dict[str, list[float] | bytes] = {}


class ExportEnd(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last line of an export. complete: all documents are there, so many. broken_off: not all, and why; export
    again. Without such a line the answer broke off, too."""

    end: Literal["complete", "broken_off"]
    documents: int = -1
    problem: Problem | None = None


class Documents(msgspec.Struct, frozen=True, kw_only=True):
    """Those that exist, in the order asked for."""

    documents: list[Document]


class SearchOptions(ReadBody, frozen=True, kw_only=True):
    """k: how many. exact: score every vector instead of using the index. offset: of the nearest, how many are left out.
    max_distance, min_score: leave out hits that are farther, or score less. explain: also tell how each shard found
    them. vector_name: the named vector of the documents that is searched; those without it are no hits. group_by: the
    path of a field: of each of the k values with the nearest documents the `group_size` nearest; k and offset count
    groups then, and with group_size multiplied they are at most 10,000. diversify: from 0, as without it, to 1: hits
    that are unlike each other, chosen of the `pool` nearest (at least k and offset together, at most 1000). order_by:
    the hits that there are, in the order of a field."""

    k: Annotated[int, Meta(ge=1, le=INT_MAX, description=_WITH_OFFSET)] = 10
    filter: Filter = None
    with_metadata: bool = True
    with_vectors: bool = False
    vector_format: VectorFormat = "numbers"
    fields: Fields | None = None
    exact: bool = False
    ef_search: Whole = 0
    offset: Annotated[int, Meta(ge=0, le=INT_MAX, description=_WITH_OFFSET)] = 0
    max_distance: float | None = None
    min_score: float | None = None
    explain: bool = False
    vector_name: str | None = None
    group_by: str | None = None
    group_size: Positive = 1
    diversify: float | None = None
    pool: Positive | None = None
    order_by: str | None = None
    descending: bool = False


class Search(SearchOptions, frozen=True, kw_only=True):
    """text: instead of a vector, as in PutDocument. keywords: instead of a vector, words that the documents have, of a
    collection that names a `text` to search; the score is that of BM25 then. sparse: instead of a
    vector, a sparse one by its name; the score is the inner product then. like: the id of a document. partial: after
    `timeout` seconds answer without the shards that cannot; `missing` names them."""

    vector: Vector | None = None
    vector_type: VectorType = "float32"
    text: str | None = None
    keywords: str | None = None
    sparse: Sparse | None = None
    like: str | None = None
    partial: bool = False


class SearchMany(SearchOptions, frozen=True, kw_only=True):
    """Up to 1000 searches at once, all with the same options. texts: instead of vectors, as in PutDocument; of 256 KiB
    together."""

    vectors: Annotated[list[Vector], Meta(max_length=1000)] | None = None
    texts: Texts | None = None
    vector_type: VectorType = "float32"


class Hit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """distance: lower is nearer; score: higher is nearer. group: with group_by, the value that it is grouped by.
    ranks: of a hybrid search, its places among the hits of the vector, of the keywords and of the sparse vector, of
    those that were asked for."""

    id: str
    distance: float
    score: float
    version: int
    metadata: Any = None
    vector: list[float] | bytes | None = None
    group: str | int | float | bool | None = None
    ranks: tuple[int | None, ...] | None = None


class Hits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Nearest first, ties by id; with group_by group by group. applied_index: of each shard, the entry of
    its log up to which its documents were searched. epoch: of the map of shards. missing: shards that did not answer,
    and why; only with `partial`. explained: how each shard found them; only with `explain`."""

    hits: list[Hit]
    applied_index: dict[int, int]
    epoch: int
    missing: dict[int, str] = {}
    explained: list[ShardExplanation] = []


class ManyHits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """For each query, its hits; with `explain`, how each shard found them."""

    results: list[list[Hit]]
    explained: list[list[ShardExplanation]] = []


class Count(ReadBody, frozen=True, kw_only=True):
    """Of all documents, or of those that match."""

    filter: Filter = None


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """How many."""

    count: int


class CountValues(ReadBody, frozen=True, kw_only=True):
    """field: a path; of an array each element counts. limit: of the values with the most documents, how many to tell.
    A field may have at most 20,000 values, of 2 MiB, in the documents of a shard that match."""

    field: str
    filter: Filter = None
    limit: Positive = 10


class Scan(ReadBody, frozen=True, kw_only=True):
    """cursor: of the page before. slice: (i, n), the i-th of n shares of the ids. order_by: a field of metadata in
    whose order documents come, instead of that of their ids; descending: from its greatest value. consistent: of a scan
    that begins: all its pages show each shard as it was at one moment. vectors: as in GetDocument."""

    filter: Filter = None
    cursor: str | None = None
    limit: Annotated[int, Meta(ge=1, le=PAGE_MAX)] = PAGE_MAX
    with_vectors: bool = False
    vector_format: VectorFormat = "numbers"
    fields: Fields | None = None
    vectors: Names = []
    slice: tuple[Whole, Positive] = (0, 1)
    order_by: str | None = None
    descending: bool = False
    consistent: bool = False


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """In the order of their ids, or of a field. cursor: where the next page begins, null behind the last one."""

    documents: list[Document]
    cursor: str | None


class Export(ReadBody, frozen=True, kw_only=True):
    """All documents, or those that match, one JSON object a line. timeout: of each page that is read. order_by,
    descending, consistent, vectors: as in Scan."""

    filter: Filter = None
    with_vectors: bool = True
    vector_format: VectorFormat = "numbers"
    fields: Fields | None = None
    vectors: Names = []
    order_by: str | None = None
    descending: bool = False
    consistent: bool = False
