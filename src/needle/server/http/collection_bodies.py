"""What requests about collections hold, and answers say: schemas of the OpenAPI document, as those of bodies.py."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from needle.base.collection_sizes import CollectionSize, FieldIndex
from needle.base.dtypes import DType
from needle.base.model import IndexParams, Metric, VectorSpec, metrics_of
from needle.base.text import TextField
from needle.client.values import check_index
from needle.server.http.bodies import Body, Positive


class AskedIndex(IndexParams, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As it is asked for: logs of later releases may say more of it, requests may not."""

    __doc__ = IndexParams.__doc__


class AskedText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """field: the path of a field of metadata with a text, or a list of texts. language: whose endings are taken off
    words, `none` for nobody's."""

    field: str
    language: str = "english"


class AskedVector(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named vector that documents may have. metric, index, dtype: as of a collection."""

    dimensions: Positive
    metric: Metric | None = None
    index: AskedIndex | str | None = None
    dtype: DType = DType.FLOAT32

    def spec(self) -> VectorSpec:
        """As a client says it. Raises InvalidArgument."""
        metric = self.metric or metrics_of(self.dtype)[0]
        return VectorSpec(dimensions=self.dimensions, metric=metric, index=check_index(self.index), dtype=self.dtype)


class AddVector(Body, frozen=True, kw_only=True):
    """As AskedVector. if_absent: no error if there is an equal one already."""

    dimensions: Positive
    metric: Metric | None = None
    index: AskedIndex | str | None = None
    dtype: DType = DType.FLOAT32
    if_absent: bool = False


class CreateCollection(Body, frozen=True, kw_only=True):
    """dimensions: to be named without `like`. metric: cosine if none is named, hamming for bits. index: its parameters,
    or a word: a kind such as "hnsw_sq8", a preset such as "high_recall", or kind:preset. ttl: seconds that a document
    lives after its last write. model: the name of the model whose vectors of texts it holds, such as "wordllama", of
    256 dimensions, which need not be named then. text: by which documents are found with `keywords`: a field of
    metadata, or this with its language. dtype: as which numbers vectors are kept; float32, if none is named. like: a
    collection, or an alias of one, whose settings it gets where no other is named, with its declared indexes of fields;
    ttl 0, model "" and text "" are none then. vectors: named ones that documents may have. sparse: fields of metadata
    that are sparse vectors. if_absent: no error if there is an equal one already."""

    name: str
    dimensions: Positive | None = None
    metric: Metric | None = None
    index: AskedIndex | str | None = None
    ttl: Annotated[float, Meta(ge=0)] | None = None
    model: str | None = None
    text: AskedText | str | None = None
    dtype: DType | None = None
    vectors: Annotated[dict[str, AskedVector], Meta(max_length=16)] | None = None
    sparse: Annotated[list[str], Meta(max_length=16)] | None = None
    like: str | None = None
    if_absent: bool = False


class AlteredVector(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is altered of a named vector, as of a collection; either may be left out."""

    index: AskedIndex | str | None = None
    ef_search: Positive | None = None


class AlterCollection(Body, frozen=True, kw_only=True):
    """ef_search: of searches that do not say it. ttl: seconds that a document lives after its last write, 0 for no end;
    for writes from now on. index: its parameters, or a word as in creating: files of it are built in the background,
    and then searches use these (`size.index` of the collection shows how far it is). vectors: the same of named
    vectors, by name (`size.vectors`). What is left out stays as it is."""

    index: AskedIndex | str | None = None
    ef_search: Positive | None = None
    ttl: Annotated[float, Meta(ge=0)] | None = None
    vectors: Annotated[dict[str, AlteredVector], Meta(max_length=16)] | None = None


class ListCollections(Body, frozen=True, kw_only=True):
    """sizes: also ask all shards how many documents they hold, and how large these are."""

    sizes: bool = False


class Collection(msgspec.Struct, frozen=True, kw_only=True):
    """A collection; documents: how many it holds, by shard. sizes: how large it is in each shard; size: in all of them.
    ttl: seconds that a document lives after its last write. model: whose vectors of texts it holds. text: by which
    documents are found with `keywords`. dtype: as which numbers its vectors are kept. fields: the declared indexes of
    metadata's fields, in all shards. vectors: what the named ones are like. sparse: the fields that are
    sparse vectors, and their indexes."""

    name: str
    dimensions: int
    metric: Metric
    index: IndexParams
    ttl: float | None = None
    model: str | None = None
    text: TextField | None = None
    dtype: DType = DType.FLOAT32
    documents: dict[int, int] | None = None
    sizes: dict[int, CollectionSize] | None = None
    size: CollectionSize | None = None
    fields: dict[str, FieldIndex] | None = None
    vectors: dict[str, VectorSpec] | None = None
    sparse: dict[str, FieldIndex] | None = None


class Collections(msgspec.Struct, frozen=True, kw_only=True):
    """All of them, by name."""

    collections: list[Collection]
