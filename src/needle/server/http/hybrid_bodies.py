"""What a hybrid search asks for: schemas of the OpenAPI document, as those of bodies.py."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from needle.server.http.bodies import Fields, Filter, Positive, ReadBody, Vector, VectorFormat, VectorType, Whole
from needle.server.http.sparse import Sparse


class Fusion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Reciprocal rank fusion. k: the larger, the less the first ranks count beside the others. weights: of the hits of
    the vector, of those of the keywords, and of those of the sparse vector, as far as they are asked for: 0,
    or from 1e-9 to 1e9; [] for all alike."""

    k: float = 60.0
    weights: Annotated[list[float], Meta(max_length=3)] = []


class HybridSearch(ReadBody, frozen=True, kw_only=True):
    """Two searches or three, whose hits become one list: by a vector, keywords and a sparse vector. text: instead of a
    vector, as in PutDocument; like: instead, the id of a document. pool: of the first so many hits of each (at least k
    and offset together, at most 1000). vector_name, sparse: as in Search."""

    keywords: str | None = None
    sparse: Sparse | None = None
    vector: Vector | None = None
    vector_type: VectorType = "float32"
    text: str | None = None
    like: str | None = None
    fusion: Fusion = Fusion()
    pool: Positive | None = None
    k: Positive = 10
    filter: Filter = None
    with_metadata: bool = True
    with_vectors: bool = False
    vector_format: VectorFormat = "numbers"
    fields: Fields | None = None
    exact: bool = False
    ef_search: Whole = 0
    offset: Whole = 0
    explain: bool = False
    vector_name: str | None = None
